# SPDX-License-Identifier: Apache-2.0
"""The rows of each step: every row once an epoch, images mixed, like lengths together, and the same when continued."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pefomed_recipes.training.row_order import order_rows

BY_LENGTH = pytest.mark.parametrize("by_length", [False, True])


def draw(rows: int, rows_per_image: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Lengths as of VQA data and images with so many rows each."""
    questions = np.random.default_rng(0).choice([2, 3, 5, 7, 8, 9, 10, 12, 14, 22], rows)
    return 263 + 40 * questions, np.arange(rows) // rows_per_image


@BY_LENGTH
@pytest.mark.parametrize(("rows", "per_step"), [(1, 1), (7, 1), (64, 8), (100, 8), (1000, 6), (1000, 96), (3, 8)])
def test_an_epoch_holds_every_row_and_its_last_step_is_filled_up(rows: int, per_step: int, by_length: bool) -> None:
    order = order_rows(*draw(rows), per_step, seed=0, epoch=0, by_length=by_length)
    assert order.shape == (-(-rows // per_step), per_step)
    counts = Counter(order.ravel().tolist())
    assert set(counts) == set(range(rows))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert counts.total() - rows < per_step


@BY_LENGTH
def test_seed_and_epoch_alone_decide(by_length: bool) -> None:
    orders = [
        order_rows(*draw(200), 4, seed=seed, epoch=epoch, by_length=by_length).tolist()
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] == orders[1]
    assert orders[1] != orders[2] != orders[3] != orders[1]


@BY_LENGTH
@pytest.mark.parametrize(("images", "rows_per_image"), [(2, 20), (3, 2), (5, 7), (40, 3)])
@pytest.mark.parametrize("per_step", [2, 3, 4])
def test_no_step_holds_one_image_only(images: int, rows_per_image: int, per_step: int, by_length: bool) -> None:
    of_row = np.repeat(np.arange(images), rows_per_image)
    for epoch in range(10):
        order = order_rows(of_row * 10, of_row, per_step, seed=0, epoch=epoch, by_length=by_length)
        assert min(len(set(of_row[step])) for step in order) > 1
        assert set(order.ravel()) == set(range(len(of_row)))


@pytest.mark.parametrize("by_length", [False, True])
def test_a_rare_second_image_is_in_as_many_steps_as_can_be(by_length: bool) -> None:
    of_row = np.array([0] * 13 + [1] * 3)
    order = order_rows(of_row, of_row, 4, seed=0, epoch=0, by_length=by_length)
    assert sum(1 in of_row[step] for step in order) == 3
    assert sorted(order.ravel()) == list(range(16))


def test_steps_of_like_lengths_need_little_padding() -> None:
    lengths, images = draw(1600)
    waste = {}
    for by_length in (False, True):
        order = order_rows(lengths, images, 8, seed=0, epoch=0, by_length=by_length)
        waste[by_length] = (lengths[order].max(axis=1) * 8).sum() / lengths[order].sum() - 1
    assert waste[True] < 0.1 < 0.3 < waste[False]


def test_batches_of_a_step_have_like_lengths_either_way() -> None:
    lengths, images = draw(1600)
    order = order_rows(lengths, images, 32, seed=0, epoch=0)
    assert (np.diff(lengths[order], axis=1) <= 0).all()


def test_an_image_of_one_row_can_be_a_step() -> None:
    assert order_rows(*draw(5), 1, seed=0, epoch=0).shape == (5, 1)

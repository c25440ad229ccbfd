# SPDX-License-Identifier: Apache-2.0
"""Which rows each step trains on: a function of seed, epoch and lengths alone.

A step's rows do not depend on how they are cut into batches, accumulated or shared out over processes, and a run that
is continued takes up the order where it stopped. transformers' own samplers depend on the state of a random number
generator, and its grouping by length on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from .packing import EPOCH_STRIDE, PackedRows

WINDOW_ROWS = 64  # rows among which those of like length are put together


def order_rows(
    lengths: np.ndarray, images: np.ndarray, rows_per_step: int, seed: int, epoch: int, *, by_length: bool = False
) -> np.ndarray:
    """Return the rows of each step of one epoch, int64 of shape (steps, rows_per_step).

    Every row stands in it once; the last step is filled up with rows of the first ones, so that all steps weigh alike.
    Within a step the longest rows come first, so that batches and processes get rows of like length. No step holds
    rows of one image only, as far as the data allows it.

    Args:
        lengths: tokens of each row.
        images: which image each row is about.
        by_length: also put rows of like length into one step, out of 64 that are drawn together; else a step's rows
            are drawn at random.
    """
    generator = np.random.default_rng((seed, epoch))
    steps = -(-len(lengths) // rows_per_step)
    # In the first epoch, the draw that accelerate's own sampler makes of this seed.
    draws = torch.Generator().manual_seed(seed + EPOCH_STRIDE * epoch)
    drawn = torch.randperm(len(lengths), generator=draws).numpy()
    order: np.ndarray = np.resize(drawn, steps * rows_per_step)
    if by_length:
        size = max(1, WINDOW_ROWS // rows_per_step) * rows_per_step
        windows = [order[start : start + size] for start in range(0, len(order), size)]
        windows = [window[np.argsort(-lengths[window], kind="stable")] for window in windows]
        order = np.concatenate([generator.permutation(window.reshape(-1, rows_per_step)) for window in windows])
    order = order.reshape(steps, rows_per_step)
    _mix_images(order, images)
    return np.take_along_axis(order, np.argsort(-lengths[order], axis=1, kind="stable"), axis=1)


def _mix_images(order: np.ndarray, images: np.ndarray) -> None:
    """Exchange rows between steps, in place, so that none holds rows of one image only where that can be helped."""

    def alone() -> np.ndarray:
        return (images[order] == images[order[:, :1]]).all(axis=1)

    if order.shape[1] == 1:
        return
    for image in np.unique(images[order[alone(), 0]]):
        is_other = images[order] != image
        needy = np.flatnonzero(alone() & ~is_other[:, 0])
        spare = is_other.sum(axis=1) - 1  # a step that gives rows of other images away keeps one
        givers = np.repeat(np.arange(len(order)), spare.clip(min=0))
        for step, giver in zip(needy, givers, strict=False):
            place = np.flatnonzero(images[order[giver]] != image)[-1]
            order[step, -1], order[giver, place] = order[giver, place], order[step, -1]


class StepSampler(Sampler[tuple[int, int]]):
    """Yields `(epoch, row)`, step after step; see [`order_rows`]. The epoch travels with the row, so that processes of
    the data loader that live longer than an epoch read the right one."""

    def __init__(self, rows: PackedRows, rows_per_step: int, seed: int, *, by_length: bool = False) -> None:
        self.rows, self.rows_per_step, self.seed, self.by_length = rows, rows_per_step, seed, by_length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.rows_per_step) * self.rows_per_step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rows = self.rows
        order = order_rows(
            rows.lengths, rows.images, self.rows_per_step, self.seed, self.epoch, by_length=self.by_length
        )
        return ((self.epoch, row) for row in order.ravel().tolist())

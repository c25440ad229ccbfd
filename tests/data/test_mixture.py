# SPDX-License-Identifier: Apache-2.0
"""Several data sets in one run: drawn by weight in training, whole elsewhere, and none forgotten."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset

from pefomed_recipes.data.mixture import load_mixture, mix_rows
from pefomed_recipes.data.phantoms import write_phantoms
from pefomed_recipes.errors import PeFoMedError

# The weights and about the proportions of sizes of the paper's stage 1.
WEIGHTS = {"clef_caption": 60, "roco": 60, "medicat": 20, "mimic_cxr": 60}
SIZES = {"clef_caption": 340, "roco": 300, "medicat": 800, "mimic_cxr": 1100}
ROWS = {name: Dataset.from_list([{"name": name, "number": n} for n in range(size)]) for name, size in SIZES.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small data sets side by side."""
    root = tmp_path_factory.mktemp("mixture")
    for seed, name in enumerate(("one", "two")):
        cases = {"train": 3 + seed, "validation": 1, "test": 1}
        write_phantoms(root / name, tasks=("caption",), cases_per_split=cases, size_px=32, seed=seed)
    return root


def test_training_draws_each_set_as_often_as_its_weight_says() -> None:
    drawn = Counter(mix_rows(ROWS, WEIGHTS, training=True, seed=42)["name"])
    total = sum(drawn.values())
    assert total > 3000
    for name, weight in WEIGHTS.items():
        assert drawn[name] / total == pytest.approx(weight / 200, abs=0.02)


def test_training_sees_every_row_of_every_set_and_repeats_the_small_ones() -> None:
    drawn = Counter((row["name"], row["number"]) for row in mix_rows(ROWS, WEIGHTS, training=True, seed=42))
    assert len(drawn) == sum(SIZES.values())
    assert max(count for (name, _), count in drawn.items() if name == "roco") > 1


def test_sets_stand_mixed_and_the_seed_alone_decides_how() -> None:
    first, again, other = (mix_rows(ROWS, WEIGHTS, training=True, seed=seed)["name"][:200] for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first[:50])) == len(WEIGHTS)


def test_validation_holds_every_row_once() -> None:
    rows = mix_rows(ROWS, WEIGHTS, training=False, seed=42)
    assert Counter(rows["name"]) == SIZES


def test_each_set_is_read_from_its_folder_and_its_samples_say_so(folders: Path) -> None:
    sets = load_mixture({"one": 1, "two": 3}, "phantoms", folders, "train", "caption")
    assert {name: len(samples) for name, samples in sets.items()} == {"one": 3, "two": 4}
    assert all(sample.source == name for name, samples in sets.items() for sample in samples)
    limited = load_mixture({"one": 1, "two": 3}, "phantoms", folders, "train", "caption", limit=2)
    assert [len(samples) for samples in limited.values()] == [2, 2]


def test_all_missing_folders_are_named_in_one_line(folders: Path) -> None:
    with pytest.raises(PeFoMedError, match=r"the mixture's folders three, four are missing") as refused:
        load_mixture({"one": 1, "three": 1, "four": 1}, "phantoms", folders, "train", "caption")
    assert "\n" not in str(refused.value)


def test_a_set_without_samples_of_the_task_is_refused(folders: Path) -> None:
    with pytest.raises(PeFoMedError, match="vqa"):
        load_mixture({"one": 1}, "phantoms", folders, "train", "vqa")

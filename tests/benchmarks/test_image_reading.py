# SPDX-License-Identifier: Apache-2.0
"""What the reading of images is timed on: every image is read, by each number of processes."""

from __future__ import annotations

from pathlib import Path

from pefomed_recipes.benchmarks.image_reading import measure, write_images


def test_all_numbers_of_processes_read_every_image_and_are_compared_with_the_first(tmp_path: Path) -> None:
    paths = write_images(tmp_path, images=4, size=(64, 48))
    runs = measure(paths, workers=(1, 2), repeats=1)
    assert [run["workers"] for run in runs] == [1, 2]
    assert runs[0]["ratio_to_one"] == 1
    assert all(run["images_per_second"] > 0 for run in runs)

# SPDX-License-Identifier: Apache-2.0
"""The rows that `pefomed data check` is timed on: as many as said, without leaks, so that the command succeeds."""

from __future__ import annotations

from pathlib import Path

from pefomed_recipes.benchmarks.data_check import measure, write_rows
from pefomed_recipes.data.datasets_index import stream_samples


def test_the_generated_rows_are_as_many_as_said_and_pass(tmp_path: Path) -> None:
    write_rows(tmp_path / "data", rows=200, images=20)
    counts = {
        split: len(list(stream_samples("jsonl", tmp_path / "data", split)))
        for split in ("train", "validation", "test")
    }
    assert counts == {"train": 140, "validation": 20, "test": 40}
    taken = measure(tmp_path / "data", tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "check.json").is_file()
    assert 0 < taken["cpu_seconds"] < 60

# SPDX-License-Identifier: Apache-2.0
"""README's table of speed-ups comes from the result files, and says where a number is missing."""

from __future__ import annotations

import json
from pathlib import Path

from pefomed_recipes.benchmarks.speed_table import NO_GPU, ROWS, describe, speed_table


def test_the_table_quotes_the_result_files(tmp_path: Path) -> None:
    contents: dict[str, dict[str, object]] = {}
    for number, (_, _, _, (name, *keys)) in enumerate(ROWS):
        place = contents.setdefault(name, {})
        for key in keys[:-1]:
            place = place.setdefault(key, {})  # type: ignore[assignment]
        place[keys[-1]] = number + 0.25
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    table = speed_table(tmp_path).splitlines()
    assert len(table) == 2 + len(ROWS) + 1
    for number, line in enumerate(table[2:-1]):
        assert line.endswith(f"| {number + 0.25:.1f} |")
    assert NO_GPU in table[-1]


def test_a_missing_result_is_said_to_be_missing(tmp_path: Path) -> None:
    assert speed_table(tmp_path).count("| not measured |") == len(ROWS)


def test_a_result_is_shown_with_the_names_that_lead_to_each_number() -> None:
    result = {
        "benchmark": "train",
        "preset": {"name": "tiny"},
        "steps": {"packed": 4.5},
        "growth": [{"samples": 10}],
        "environment": {"python": "3"},
    }
    assert describe(result).splitlines() == [
        "train, preset tiny", "  steps", "    packed: 4.5", "  growth", "    samples: 10"
    ]  # fmt: skip

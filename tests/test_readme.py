# SPDX-License-Identifier: Apache-2.0
"""README keeps its word: its numbers stand in result files, its commands and files exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def readme(repo: Path) -> str:
    return (repo / "README.md").read_text(encoding="utf-8")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def wanted_cells(row: dict[str, Any]) -> list[str]:
    interval = row["score"]["interval"]
    return [
        str(row["items"]),
        percent(row["score"]["value"]),
        f"{percent(interval['low'])} to {percent(interval['high'])}",
        percent(row["baselines"]["majority_answer"]["value"]),
        percent(row["controls"]["blank_image"]["value"]),
    ]


def test_every_row_of_the_table_is_one_of_the_result_file(repo: Path, readme: str) -> None:
    results = json.loads((repo / "recipes/results/quickstart--validation.json").read_text(encoding="utf-8"))
    chosen = {
        "all": ("overall", ""),
        "open": ("answer_type", "open"),
        "closed": ("answer_type", "closed"),
        "left or right, closed": ("laterality", "closed"),
    }
    for name, (slice_of, answer_type) in chosen.items():
        [row] = [r for r in results["rows"] if r["slice"] == slice_of and r["answer_type"] == answer_type]
        assert f"| {name} | {' | '.join(wanted_cells(row))} |" in readme


def test_quoted_caption_losses_are_those_of_the_run_record(repo: Path, readme: str) -> None:
    record = json.loads((repo / "recipes/results/quickstart--training.json").read_text(encoding="utf-8"))["stage1"]
    before, after = record["validation_loss_before"], record["validation_loss_after"]
    assert f"fell from {before:.2f} to {after:.2f}" in " ".join(readme.split())


def test_readme_is_short_and_names_only_files_and_targets_that_exist(repo: Path, readme: str) -> None:
    assert len(readme.splitlines()) <= 200
    makefile = (repo / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\S+)", readme, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    for room in re.findall(r"^\| `([a-z_/]+)/`", readme, flags=re.MULTILINE):
        assert (repo / room).is_dir()
    for launcher in re.findall(r"accelerate launch (\S+\.py)", readme):
        assert (repo / launcher).is_file()

# SPDX-License-Identifier: Apache-2.0
"""PAPER.md keeps its word: what it names exists, and each number that it gives is the config's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIG_KEY = re.compile(r"(stage[12]/\w+):(\w+(?:\.\w+)*)")
PLACE = re.compile(r"(?:tests|recipes|modeling_pefomed|hub|demo)/[\w./-]+(?:::\w+)?")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


@pytest.fixture(scope="module")
def paper(repo: Path) -> str:
    return (repo / "recipes" / "PAPER.md").read_text(encoding="utf-8")


def value_of(repo: Path, config: str, key: str) -> Any:
    """The value behind a dotted key of a packaged config; KeyError where there is none."""
    value = yaml.safe_load((repo / "recipes" / "configs" / f"{config}.yaml").read_text(encoding="utf-8"))
    for part in key.split("."):
        value = value[part]
    return value


def says(cell: str, value: Any) -> bool:
    """Whether a table's cell gives a value, as a number or as a word."""
    if isinstance(value, str):
        return value in re.findall(r"\w+", cell)
    return float(value) in [float(number.replace(",", "")) for number in NUMBER.findall(cell)]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row that names a config's key."""
    lines = [line for line in text.splitlines() if line.startswith("|") and CONFIG_KEY.search(line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_config_key_exists_and_holds_the_number_beside_it(repo: Path, paper: str) -> None:
    found = rows(paper)
    assert len(found) > 30
    for row in found:
        for config, key in CONFIG_KEY.findall(row[-1]):
            assert says(row[1], value_of(repo, config, key)), (row[0], config, key)


def test_every_value_of_the_papers_configs_that_is_from_the_code_is_in_the_table(repo: Path, paper: str) -> None:
    named = {key.split(".")[0] for _, key in CONFIG_KEY.findall(paper)}
    for config in ("stage1/paper", "stage2/vqa_rad", "stage2/slake", "stage2/path_vqa", "stage2/iu_xray"):
        lines = (repo / "recipes" / "configs" / f"{config}.yaml").read_text(encoding="utf-8").splitlines()
        cited = {line.split(":")[0] for line in lines if "released code" in line and not line.startswith("#")}
        assert len(cited) > 10
        assert cited - named <= {"gradient_checkpointing"}, config


def test_every_file_and_test_exists(repo: Path, paper: str) -> None:
    places = [place for quoted in re.findall(r"`([^`\n]+)`", paper) for place in PLACE.findall(quoted)]
    assert len(places) > 20
    for place in places:
        path, _, test = place.partition("::")
        assert (repo / path).is_file(), place
        assert not test or f"\ndef {test}(" in (repo / path).read_text(encoding="utf-8"), place


def test_what_is_not_given_has_a_reason(paper: str) -> None:
    cells = [line.strip("|").split("|")[-1].strip() for line in paper.splitlines() if line.startswith("|")]
    without = [cell for cell in cells[1:] if not re.search(r"`", cell) and cell not in ("here", "---")]
    assert without and all(re.match(r"not given(?: here)?: \w+ \w+", cell) for cell in without)


@pytest.mark.parametrize(
    ("cell", "value", "given"),
    [
        ("50 epochs x 100 = 5000", 5000, True),
        ("1e-5", 1.0e-5, True),
        ("1e-5", 1.0e-6, False),
        ("mixed: one of 2", "mixed", True),
        ("mixed", "mix", False),
        ("1,024 tokens", 1024, True),
    ],
)
def test_a_number_is_compared_and_not_only_looked_for(cell: str, value: Any, given: bool) -> None:
    assert says(cell, value) is given


def test_the_tags_that_the_paper_does_not_build_are_named(paper: str) -> None:
    for tag in ("retrieval augmentation", "mixture of experts", "chain of thought"):
        assert tag in paper

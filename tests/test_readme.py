# SPDX-License-Identifier: Apache-2.0
"""README keeps its word: its numbers stand in result files, its commands and files exist."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pefomed_recipes.benchmarks.speed_table import speed_table
from pefomed_recipes.predict import predict
from pefomed_recipes.predict_api import predict_api


@pytest.fixture(scope="module")
def readme(repo: Path) -> str:
    return (repo / "README.md").read_text(encoding="utf-8")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def result_file(repo: Path, name: str) -> dict[str, Any]:
    return json.loads((repo / "recipes" / "results" / name).read_text(encoding="utf-8"))


def wanted_cells(row: dict[str, Any]) -> list[str]:
    interval = row["score"]["interval"]
    return [
        f"{row['items']:,}",
        percent(row["score"]["value"]),
        f"{percent(interval['low'])} to {percent(interval['high'])}",
        percent(row["baselines"]["majority_answer"]["value"]),
        percent(row["controls"]["blank_image"]["value"]),
    ]


def test_every_row_of_the_table_is_one_of_the_result_file(repo: Path, readme: str) -> None:
    results = result_file(repo, "quickstart--test.json")
    chosen = {
        "all": ("overall", "", ""),
        "open": ("answer_type", "", "open"),
        "closed": ("answer_type", "", "closed"),
        "MODALITY, open": ("question_type", "MODALITY", "open"),
        "PLANE, open": ("question_type", "PLANE", "open"),
        "ORGAN, open": ("question_type", "ORGAN", "open"),
        "POS, closed": ("question_type", "POS", "closed"),
        "left or right, closed": ("laterality", "left or right", "closed"),
    }
    for name, key in chosen.items():
        scored = [r for r in results["rows"] if r["metric"] == "accuracy"]
        [row] = [r for r in scored if (r["slice"], r["value"], r["answer_type"]) == key]
        assert f"| {name} | {' | '.join(wanted_cells(row))} |" in readme
    assert len(re.findall(r"^\| .* \| [\d.]+ to [\d.]+ \|", readme, flags=re.MULTILINE)) == len(chosen)


def test_quoted_losses_costs_and_controls_are_those_of_the_result_files(repo: Path, readme: str) -> None:
    said = " ".join(readme.split())
    record = result_file(repo, "quickstart--training.json")["stage1"]
    assert f"fell from {record['validation_loss_before']:.2f} to {record['validation_loss_after']:.2f}" in said
    cost = result_file(repo, "quickstart--cost.json")
    assert f"{cost['seconds']:.0f} s after the installation" in said
    assert f"at most {cost['peak_memory_mib']:,} MiB" in said
    rows = result_file(repo, "quickstart--test.json")["rows"]
    [sides] = [row for row in rows if row["slice"] == "laterality" and row["metric"] == "accuracy"]
    assert f"Shuffled images get {percent(rows[0]['controls']['shuffled_images']['value'])} % of all" in said
    assert f"mirrored ones {percent(sides['controls']['mirrored_images']['value'])} % of left or right" in said
    control = result_file(repo, "quickstart_random_tower--test.json")["rows"]
    assert f"{percent(control[0]['score']['value'])} % of all questions" in said
    [laterality] = [row for row in control if row["slice"] == "laterality"]
    assert f"{percent(laterality['score']['value'])} % of left or right" in said
    for name, measure, baseline, words in (
        ("report", "factual F1", "constant_text", "a constant report"),
        ("refer", "mean IoU", "centre_box", "the centre box"),
    ):
        row = result_file(repo, f"quickstart_{name}--test.json")["rows"][0]
        blank = percent(row["controls"]["blank_image"]["value"])
        other = percent(row["baselines"][baseline]["value"])
        assert f"{measure} {percent(row['score']['value'])}, {words} {other}, blank images {blank}" in said


def test_the_quoted_conversion_is_that_of_the_result_file(repo: Path, readme: str) -> None:
    record = result_file(repo, "full_size_conversion--fp16.json")
    cost = record["conversion"]
    said = f"in {cost['seconds']:.0f} s with {cost['peak_memory_mib'] / 1024:.1f} GiB of memory"
    assert said in " ".join(readme.split())
    assert f"{record['opened']['trained']:,} of 7,805,149,184 parameters" in " ".join(readme.split())


def test_the_quoted_run_keeps_its_promises(repo: Path) -> None:
    results, cost = result_file(repo, "quickstart--test.json"), result_file(repo, "quickstart--cost.json")
    overall = results["rows"][0]
    assert overall["items"] > 1000
    assert overall["score"]["value"] >= 0.8
    assert overall["score"]["value"] - overall["controls"]["blank_image"]["value"] >= 0.3
    score = {(row["value"], row["answer_type"]): row["score"]["value"] for row in results["rows"]}
    assert all(score[code, "open"] >= 0.95 for code in ("MODALITY", "PLANE", "ORGAN"))
    assert min(score["POS", "closed"], score["left or right", "closed"]) >= 0.65
    assert cost["seconds"] <= 900
    assert cost["peak_memory_mib"] < 4096


def test_readme_is_short_and_names_only_files_and_targets_that_exist(repo: Path, readme: str) -> None:
    assert len(readme.splitlines()) <= 270
    makefile = (repo / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\S+)", readme, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    for room in re.findall(r"^\| `([a-z_/]+)/`", readme, flags=re.MULTILINE):
        assert (repo / room).is_dir()
    for launcher in re.findall(r"accelerate launch (\S+\.py)", readme):
        assert (repo / launcher).is_file()


def test_readme_uses_only_options_and_configs_that_exist(repo: Path, readme: str) -> None:
    for name in re.findall(r"\b(stage[12]/\w+)", readme):
        assert (repo / "recipes" / "configs" / f"{name}.yaml").is_file(), name
    parameters = [*inspect.signature(predict).parameters, *inspect.signature(predict_api).parameters]
    known = {f"--{name.replace('_', '-')}" for name in parameters}
    commands = re.findall(r"^ *pefomed predict .*$", readme, flags=re.MULTILINE)
    assert len(commands) >= 2
    assert {option for command in commands for option in re.findall(r"--[a-z-]+", command)} <= known


def test_the_speed_table_is_that_of_the_result_files(readme: str) -> None:
    begin, end = (
        "<!-- speed table: python -m pefomed_recipes.benchmarks.speed_table -->",
        "<!-- end of the speed table -->",
    )
    assert readme.partition(begin)[2].partition(end)[0].strip() == speed_table().strip()

# SPDX-License-Identifier: Apache-2.0
"""The report of a run finds what is known to go wrong, with evidence and the next command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pefomed_recipes.evaluation.scoring import score
from pefomed_recipes.records import CONTROLS, Prediction

from .page_runs import (
    Page,
    WordJudge,
    found_in,
    judge_into,
    mix_up_sides,
    page_predictions,
    score_into,
)

pytestmark = pytest.mark.integration

Change = Callable[[Prediction], Prediction]


def _answer_open_questions_wordily(item: Prediction) -> Prediction:
    return replace(item, prediction=f"It is the {item.prediction}") if item.answer_type == "OPEN" else item


def _say_what_nobody_can_read(item: Prediction) -> Prediction:
    return replace(item, prediction="perhaps", p_yes=None) if item.question_types == ["POS"] else item


def _be_too_sure(item: Prediction) -> Prediction:
    return item if item.p_yes is None else replace(item, p_yes=0.999, prediction="yes")


@pytest.mark.parametrize(
    ("name", "change", "level", "evidence", "command"),
    [
        ("open_far_below_closed", _answer_open_questions_wordily, "problem", "Open 0.0 %", "pefomed judge"),
        ("sides_at_chance", mix_up_sides, "problem", "chance is 50.0 %", "pefomed doctor"),
        ("unparsed", _say_what_nobody_can_read, "problem", "60 of 120", "--instruction short_answer"),
        ("empty", lambda item: replace(item, prediction=""), "problem", "240 of 240", "pefomed doctor"),
        ("confidence", _be_too_sure, "caution", "(ECE)", "pefomed calibrate validation.jsonl"),
        ("not_above_majority_answer", lambda item: replace(item, prediction="x"), "problem", "Model 0.0 %", "doctor"),
    ],
)
def test_a_signature_of_failure_is_found_with_evidence_and_the_next_command(
    tmp_path: Path, name: str, change: Change, level: str, evidence: str, command: str
) -> None:
    score_into(tmp_path, [change(item) for item in page_predictions()])
    found = found_in(tmp_path)[name]
    assert found.level == level
    assert evidence in found.evidence
    assert command in found.command


def test_a_model_that_needs_no_image_is_found(tmp_path: Path) -> None:
    score_into(tmp_path, page_predictions(), blank="")
    found = found_in(tmp_path)["not_above_blank_image"]
    assert (found.level, "+0.0 (+0.0 to +0.0)" in found.evidence) == ("problem", True)
    assert "pefomed doctor" in found.command


def test_few_images_make_a_wide_interval_and_grey_slices(tmp_path: Path) -> None:
    score_into(tmp_path, page_predictions(12))
    found = found_in(tmp_path)["wide"]
    assert found.level == "caution"
    assert "would make it 10" in found.evidence
    assert {"class": "few"} in Page.read(tmp_path / "page.html").of("tr")


def test_exact_match_far_from_a_judge_is_found_unless_the_judge_failed_its_gate(tmp_path: Path) -> None:
    items = [_answer_open_questions_wordily(item) for item in page_predictions()]
    score_into(tmp_path, items)
    judge_into(tmp_path, WordJudge(), items)
    found = found_in(tmp_path)["exact_match_far_from_judge"]
    assert found.level == "problem"
    assert "words-1 90.0 % and exact match 45.0 %: +45.0 points" in found.evidence
    assert "organ +90.0" in found.evidence
    assert "pefomed rate export" in found.command

    judge_into(tmp_path, WordJudge(always=1), items)
    levels = {name: finding.level for name, finding in found_in(tmp_path).items()}
    assert (levels["judge_gate"], levels["exact_match_far_from_judge"]) == ("problem", "unchecked")
    failed = Page.read(tmp_path / "page.html")
    assert "not trustworthy" in failed.text
    assert {"class": "doubtful"} in failed.of("span")


@pytest.mark.parametrize(("stage1_is_worse", "level"), [(True, "problem"), (False, "clear")])
def test_a_model_after_stage_1_alone_is_held_against_its_base(
    tmp_path: Path, stage1_is_worse: bool, level: str
) -> None:
    good = page_predictions()
    bad = [replace(item, prediction="x") if item.id.endswith("-2") else item for item in good]
    ours, base = (bad, good) if stage1_is_worse else (good, bad)
    run, other = tmp_path / "run", tmp_path / "base"
    for folder in (run / "stage1", other):
        folder.mkdir(parents=True)
    training = {"settings": {"base": "base", "task": "caption"}, "trainable_parameters": 1}
    (run / "stage1" / "run.json").write_text(json.dumps(training))
    score_into(run, [replace(item, adapter="stage1@0123") for item in ours])
    score_into(other, [replace(item, adapter="") for item in base])

    alone = found_in(run)["below_its_base"]
    assert alone.level == "caution"
    assert alone.command.startswith("pefomed predict base ")
    found = found_in(run, other / "results.json")["below_its_base"]
    assert found.level == level
    assert found.title.startswith("The model after stage 1 alone")
    assert ("pefomed stage2" in found.command) == stage1_is_worse


@pytest.mark.parametrize("names", [("blank", "shuffle"), ("blank", "shuffle", "mirror")])
def test_sides_are_judged_with_mirrored_images_only(tmp_path: Path, names: tuple[str, ...]) -> None:
    score_into(tmp_path, page_predictions())
    controls = {name: tmp_path / f"predictions-{CONTROLS[name]}.jsonl" for name in names}
    train = tmp_path / "train.jsonl"
    score(tmp_path / "predictions.jsonl", controls=controls, train_samples=train, out=tmp_path / "results.json")
    found, there = found_in(tmp_path)["sides_at_chance"], "mirror" in names
    assert found.level == ("clear" if there else "caution")
    assert ("--control mirror" in found.command) != there
    assert ("sides say nothing without mirrored images" in Page.read(tmp_path / "page.html").text) != there

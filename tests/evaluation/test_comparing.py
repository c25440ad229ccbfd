# SPDX-License-Identifier: Apache-2.0
"""Comparing two systems: only on the same items, with paired tests, and Holm over the slices."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.evaluation.comparing import Comparison, compare, markdown_comparison
from pefomed_recipes.evaluation.intervals import holm_adjusted
from pefomed_recipes.records import Prediction, read_records, write_records


@pytest.fixture
def pair(vqa_run: Path) -> Path:
    """`predictions.jsonl` (27 of 36 right) beside `other.jsonl` (12 right: always yes), in another order."""
    items = read_records(vqa_run / "blank.jsonl", Prediction)
    write_records(vqa_run / "other.jsonl", [replace(item, control="") for item in reversed(items)])
    return vqa_run


def _compare(run: Path, **options: object) -> Comparison:
    return compare(run / "predictions.jsonl", run / "other.jsonl", **options)  # type: ignore[arg-type]


def test_difference_has_an_interval_and_both_tests(pair: Path) -> None:
    row = _compare(pair).rows[0]
    assert (row.first, row.second, row.difference) == (27 / 36, 12 / 36, pytest.approx(15 / 36))
    assert row.interval is not None and 0 < row.interval.low < 15 / 36 < row.interval.high
    assert row.p_permutation is not None and row.p_permutation < 0.01
    assert (row.only_first, row.only_second) == (18, 3)
    assert row.p_mcnemar == pytest.approx(2 * (1 + 21 + 210 + 1330) / 2**21)


def test_slices_are_adjusted_together_and_the_whole_is_not(pair: Path) -> None:
    rows = _compare(pair).rows
    tested = [row for row in rows if row.p_holm is not None]
    assert rows[0].p_holm is None
    assert {row.slice for row in tested} == {"answer_type", "laterality", "question_type"}
    assert [row.p_holm for row in tested] == pytest.approx(holm_adjusted([row.p_permutation or 0 for row in tested]))


def test_slices_of_the_same_items_are_tested_once(pair: Path) -> None:
    """Open questions are all of the type ORGAN, and left or right are all of POS."""
    names = [row.name for row in _compare(pair).rows]
    assert names == [
        "Accuracy",
        "Accuracy, answer type, open",
        "Accuracy, answer type, closed",
        "Accuracy, left or right, closed",
        "Accuracy, PRES, closed",
    ]


def test_other_ids_are_refused_unless_told(pair: Path) -> None:
    items = read_records(pair / "other.jsonl", Prediction)
    write_records(pair / "other.jsonl", [*items[6:], replace(items[0], id="new")])
    with pytest.raises(PeFoMedError, match="6 ids are missing: 10-0, 10-1, 10-2 and 3 more") as error:
        _compare(pair)
    assert "1 ids are not in" in str(error.value) and "--intersect" in str(error.value)
    comparison = _compare(pair, intersect=True)
    assert (comparison.items, comparison.left_out) == (30, (6, 1))
    assert "6 items that only the first file has, 1 of the second" in markdown_comparison(comparison)


def test_other_questions_under_the_same_ids_are_refused_in_any_case(pair: Path) -> None:
    items = read_records(pair / "other.jsonl", Prediction)
    items[0].answers = ["another"]
    write_records(pair / "other.jsonl", items)
    for intersect in (False, True):
        with pytest.raises(PeFoMedError, match="1 ids have another task, question or reference"):
            _compare(pair, intersect=intersect)


def test_a_model_is_not_compared_with_its_own_control(pair: Path) -> None:
    with pytest.raises(PeFoMedError, match="given under the control blank_image, those of .* under no control"):
        compare(pair / "predictions.jsonl", pair / "blank.jsonl")
    both = compare(pair / "blank.jsonl", pair / "blank.jsonl")
    assert "Both were made under the control blank_image" in markdown_comparison(both)


def test_a_comparison_that_cannot_be_written_is_one_sentence(pair: Path) -> None:
    with pytest.raises(PeFoMedError, match=r"c\.md: cannot be written \(.*\); name another place"):
        _compare(pair, out=pair / "train.jsonl" / "c.json")
    _compare(pair)
    items = read_records(pair / "other.jsonl", Prediction)
    lines = [json.dumps({**vars(item), "source": "\ud800"}) + "\n" for item in items]
    (pair / "other.jsonl").write_text("".join(lines), encoding="utf-8")
    with pytest.raises(PeFoMedError, match="lines 1, 2, .*: a text holds half a surrogate pair"):
        _compare(pair)


def test_files_without_a_common_id_are_refused(pair: Path) -> None:
    items = read_records(pair / "other.jsonl", Prediction)
    write_records(pair / "other.jsonl", [replace(item, id=f"x{item.id}") for item in items])
    with pytest.raises(PeFoMedError, match="36 ids are missing"):
        _compare(pair, intersect=True)


def test_comparison_is_written_whole_and_the_same_each_time(pair: Path) -> None:
    comparison = _compare(pair, out=pair / "c.json")
    first = (pair / "c.json").read_bytes()
    _compare(pair, out=pair / "c.json")
    assert (pair / "c.json").read_bytes() == first
    stored = json.loads(first)
    assert stored["schema"] == "pefomed-comparison/1"
    assert stored["rows"][0]["only_first"] == 18
    assert (pair / "c.md").read_text(encoding="utf-8") == markdown_comparison(comparison)


def test_an_empty_slice_is_null_with_a_reason(pair: Path) -> None:
    for name in ("predictions", "other"):
        items = read_records(pair / f"{name}.jsonl", Prediction)
        write_records(pair / f"{name}.jsonl", [item for item in items if item.answer_type == "OPEN"])
    comparison = _compare(pair)
    [closed] = [row for row in comparison.rows if row.answer_type == "closed" and row.slice == "answer_type"]
    assert (closed.first, closed.difference, closed.p_permutation, closed.reason) == (None, None, None, "no item")
    assert "n/a, no item" in markdown_comparison(comparison)


@pytest.mark.parametrize(
    ("task", "reference", "wrong", "metrics"),
    [
        ("refer", "{<10><10><50><50>}", "?", ["mean_iou", "accuracy_at_iou_0.5"]),
        ("report", "The lungs are clear.", "", ["token_f1", "bleu_4", "rouge_l", "cider_d"]),
    ],
)
def test_other_tasks_have_their_own_metrics(
    tmp_path: Path, task: str, reference: str, wrong: str, metrics: list[str]
) -> None:
    items = [Prediction(str(at), task, "", [reference], reference, image_id=str(at)) for at in range(8)]
    if task == "report":  # words that not all references have
        items = [
            replace(item, answers=[f"{at} {reference}"], prediction=f"{at} {reference}")
            for at, item in enumerate(items)
        ]
    write_records(tmp_path / "one.jsonl", items)
    write_records(tmp_path / "two.jsonl", [replace(item, prediction=wrong) for item in items])
    rows = compare(tmp_path / "one.jsonl", tmp_path / "two.jsonl").rows
    assert [row.metric for row in rows] == metrics
    for row in rows:
        assert row.difference == pytest.approx(10 if row.metric == "cider_d" else 1)
        assert row.p_permutation == pytest.approx(2 / 2**8)
        assert row.interval is not None and row.interval.low > 0.9


@pytest.mark.integration
def test_command_prints_the_table_and_fails_on_other_items(
    pair: Path, repo: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    command = (repo / "recipes" / "compare.py", pair / "predictions.jsonl")
    process = run_python(*command, pair / "other.jsonl")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("# Comparison: vqa, 36 items in both")
    process = run_python(*command, pair / "missing.jsonl")
    assert (process.returncode, process.stdout) == (1, "")
    assert "missing.jsonl: no such file" in process.stderr

# SPDX-License-Identifier: Apache-2.0
"""The Markdown page: which rows stand where, and that nothing undefined looks like a number."""

from __future__ import annotations

from pathlib import Path

from pefomed_recipes.evaluation.scoring import score
from pefomed_recipes.evaluation.tables import headline, markdown_report


def _page(run: Path) -> str:
    results = score(
        run / "predictions.jsonl", controls={"blank_image": run / "blank.jsonl"}, train_samples=run / "train.jsonl"
    )
    return markdown_report(results)


def test_headline_has_interval_baseline_control_and_difference(vqa_run: Path) -> None:
    line = _page(vqa_run).splitlines()[2]
    assert line.startswith("**Accuracy 75.0 %** (27 of 36; Wilson 95 % 58.9 to 86.2; over 12 clusters ")
    assert "Majority answer 66.7 %: difference +8.3 (" in line
    assert "Blank image 33.3 %: difference +41.7 (" in line


def test_table_has_a_row_per_question_type_and_laterality_apart(vqa_run: Path) -> None:
    page = _page(vqa_run)
    main, laterality = page.split("## Laterality")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in main.splitlines() if line.startswith("|")]
    assert cells[0] == [
        *("Question type", "Answers", "n", "Model", "95 % interval"),
        *("Majority answer", "Blank image", "Unparsed"),
    ]
    assert [row[:4] for row in cells[2:]] == [
        ["all", "all", "36", "75.0"],
        ["all", "open", "12*", "75.0"],
        ["all", "closed", "24*", "75.0"],
        ["ORGAN", "open", "12*", "75.0"],
        ["POS", "closed", "12*", "75.0"],
        ["PRES", "closed", "12*", "75.0"],
    ]
    assert "| left or right | closed  | 12* |  75.0 |" in laterality
    assert "fewer than 30 items" in page
    assert "seed 0" in page


def test_every_row_of_a_table_has_the_same_width(vqa_run: Path) -> None:
    for block in _page(vqa_run).split("\n\n"):
        widths = {len(line) for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1


def test_undefined_numbers_are_named_with_their_reason(vqa_run: Path) -> None:
    lines = (vqa_run / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (vqa_run / "predictions.jsonl").write_text("".join(line for line in lines if "OPEN" in line), encoding="utf-8")
    results = score(vqa_run / "predictions.jsonl")
    page = markdown_report(results)
    assert "Majority answer: n/a (no training samples were given)." in headline(results)
    assert "Warning: no control was given" in page
    assert "- Accuracy, closed: n/a, no item." in page
    assert "- Accuracy, left or right, closed: n/a, no item." in page

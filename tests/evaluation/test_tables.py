# SPDX-License-Identifier: Apache-2.0
"""The Markdown page: which rows stand where, and that nothing undefined looks like a number."""

from __future__ import annotations

from pathlib import Path

import pytest

from pefomed_recipes.evaluation.results import read_results
from pefomed_recipes.evaluation.scoring import score
from pefomed_recipes.evaluation.tables import headline, markdown_report
from pefomed_recipes.records import CONTROLS


def _page(run: Path) -> str:
    controls = {name: run / f"{name}.jsonl" for name in CONTROLS}
    return markdown_report(score(run / "predictions.jsonl", controls=controls, train_samples=run / "train.jsonl"))


def test_headline_has_interval_baseline_control_and_difference(vqa_run: Path) -> None:
    line = _page(vqa_run).splitlines()[2]
    assert line.startswith("**Accuracy 75.0 %** (27 of 36; Wilson 95 % 58.9 to 86.2; over 12 clusters ")
    assert "Majority answer 66.7 %: difference +8.3 (" in line
    assert "Blank image 33.3 %: difference +41.7 (" in line


def test_table_has_a_row_per_question_type_and_laterality_apart(vqa_run: Path) -> None:
    page = _page(vqa_run)
    main, laterality = page.split("## ")[:2]
    assert laterality.startswith("Laterality")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in main.splitlines() if line.startswith("|")]
    assert cells[0] == [
        *("Question type", "Answers", "n", "Model", "95 % interval"),
        *("Majority answer", "Blank image", "Shuffled images", "Mirrored images", "Unparsed"),
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
    for name in ("predictions.jsonl", *(f"{name}.jsonl" for name in CONTROLS)):
        lines = (vqa_run / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (vqa_run / name).write_text("".join(line for line in lines if "OPEN" in line), encoding="utf-8")
    page = _page(vqa_run)
    assert "- Accuracy, closed: n/a, no item." in page
    assert "- Accuracy, left or right, closed: n/a, no item." in page
    assert "- All right, rephrasings: n/a, no such questions about one image." in page


@pytest.mark.parametrize("given", ["", "train", "blank", "blank shuffle", "train blank", "train shuffle mirror"])
def test_no_number_is_printed_without_its_baseline_blank_and_shuffled_images(vqa_run: Path, given: str) -> None:
    controls = {name: vqa_run / f"{name}.jsonl" for name in given.split() if name != "train"}
    train = vqa_run / "train.jsonl" if "train" in given else None
    results = score(vqa_run / "predictions.jsonl", controls=controls, train_samples=train)
    page = markdown_report(results)
    assert headline(results).startswith("**Accuracy: not shown.** It says nothing without ")
    assert ("--train FILE" in headline(results)) == (train is None)
    for name in ("blank", "shuffle"):
        command = f"pefomed predict tiny --data-root DATA --task vqa --control {name} --out predictions-"
        assert (command in headline(results)) == (name not in given)
    assert "75.0" not in page and "27 of 36" not in page and "|" not in page


def test_laterality_is_shown_beside_mirrored_images_only(vqa_run: Path) -> None:
    controls = {name: vqa_run / f"{name}.jsonl" for name in ("blank", "shuffle")}
    results = score(vqa_run / "predictions.jsonl", controls=controls, train_samples=vqa_run / "train.jsonl")
    page = markdown_report(results)
    assert "**Accuracy 75.0 %**" in page and "left or right" not in page.replace("by left or right", "")
    assert "Not shown: sides say nothing without mirrored images" in page and "--control mirror --out" in page


def test_the_page_says_which_baselines_and_controls_are_there(vqa_run: Path) -> None:
    page = _page(vqa_run)
    assert "- Majority answer (the most frequent training answer to the same question" in page
    assert (
        "- Shuffled images (another study's images: whether it looks at the image that is asked about, needed" in page
    )
    assert page.count(": is there.") == 4


def test_every_control_has_its_column(vqa_run: Path) -> None:
    controls = {CONTROLS[name]: vqa_run / f"{name}.jsonl" for name in ("shuffle", "mirror", "blank")}
    results = score(vqa_run / "predictions.jsonl", controls=controls, train_samples=vqa_run / "train.jsonl")
    assert "| Majority answer | Shuffled images | Mirrored images | Blank image |" in markdown_report(results)
    assert "Mirrored images 33.3 %: difference +41.7" in headline(results)


def test_historic_numbers_stand_apart_with_their_quirks(vqa_run: Path) -> None:
    results = score(
        vqa_run / "predictions.jsonl",
        controls={name: vqa_run / f"{name}.jsonl" for name in ("blank", "shuffle")},
        train_samples=vqa_run / "train.jsonl",
        compat=["pefomed", "llava-med"],
        out=vqa_run / "results.json",
    )
    page = markdown_report(results)
    ours, historic = page.split("## Historic protocol `pefomed`: not comparable with the tables above")
    assert "apex ray" in historic and "apex ray" not in ours
    assert "## Historic protocol `llava-med`" in historic
    [overall] = [line for line in historic.splitlines() if line.startswith("| overall ")]
    assert [cell.strip() for cell in overall.split("|")[2:-1]] == ["36", "75.00", "66.67", "33.33", "33.33"]
    assert read_results(vqa_run / "results.json").historic == results.historic

# SPDX-License-Identifier: Apache-2.0
"""Which items stand in which slice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pefomed_recipes.evaluation.slices import common_slices, question_word_of, specialty_of, vqa_slices
from pefomed_recipes.evaluation.text_slices import text_slice_rows
from pefomed_recipes.records import Prediction, Sample


def _item(
    name: str, question: str = "Is it?", answer: str = "yes", kind: str = "CLOSED", **labels: object
) -> Prediction:
    return Prediction(name, "vqa", question, [answer], "yes", kind, **labels)  # type: ignore[arg-type]


ITEMS = [
    _item("0", organ="CHEST", modality="CT", question_types=["PRES, ABN"], source="slake"),
    _item("1", organ="chest ", modality="MRI", question_types=["PRES"], source="slake"),
    _item(
        "2", "What is it?", "liver", "OPEN", organ="Abdomen", question_types=["ORGAN"], source="slake", language="zh"
    ),
    _item("3", "Where?", "left lung", "OPEN", modality="MRI", source="path_vqa", question_types=["WHERE"]),
]


def _positions(name: str, train: tuple[Sample, ...] = (), **columns: list[str]) -> dict[tuple[str, str], list[int]]:
    slices = vqa_slices(ITEMS, train, columns)
    return {(part.value, part.answer_type): part.positions for part in slices if part.name == name}


def test_an_item_counts_in_each_of_its_question_types() -> None:
    assert _positions("question_type") == {
        ("ABN", "closed"): [0],
        ("ORGAN", "open"): [2],
        ("PRES", "closed"): [0, 1],
    }


def test_question_words_are_pathvqas_and_not_told_twice() -> None:
    assert _positions("question_word") == {("WHERE", ""): [3]}
    assert ("WHERE", "open") not in _positions("question_type")
    assert question_word_of(_item("x", "  what's this", source="path_vqa")) == "WHAT"
    assert question_word_of(_item("x", "Is it?", source="vqa_rad")) == ""


def test_labels_group_items_whatever_their_case() -> None:
    assert _positions("organ") == {("ABDOMEN", ""): [2], ("CHEST", ""): [0, 1]}
    assert _positions("modality") == {("CT", ""): [0], ("MRI", ""): [1, 3]}
    assert _positions("language") == {("en", ""): [0, 1, 3], ("zh", ""): [2]}


def test_the_specialty_is_marked_as_derived() -> None:
    assert _positions("specialty (derived from organ)") == {("gastroenterology", ""): [2], ("pulmonology", ""): [0, 1]}


@pytest.mark.parametrize(
    ("organ", "specialty"),
    [
        ("HEAD", "neurology"),
        ("ABD", "gastroenterology"),
        ("Brain_Tissue", "neurology"),
        ("Chest_mediastinal", "cardiology"),
        ("Chest_lung", "pulmonology"),
        ("Pelvic Cavity", "urology and gynaecology"),
        ("headphones", ""),
        ("", ""),
    ],
)
def test_specialty_follows_from_the_organ_in_whole_words(organ: str, specialty: str) -> None:
    assert specialty_of(_item("x", organ=organ)) == specialty


def test_answers_that_training_never_gave_stand_apart() -> None:
    train = (Sample("t", "vqa", [], "?", ["Yes."]), Sample("u", "vqa", [], "?", ["Left lung"]))
    assert _positions("unseen_answer", train) == {
        ("answer in train", ""): [0, 1, 3],
        ("answer never in train", ""): [2],
    }
    assert _positions("unseen_answer") == {}


def test_columns_of_a_users_table_are_slices_and_empty_cells_are_in_none() -> None:
    assert _positions("hospital", hospital=["B", "", "A", "B"]) == {("A", ""): [2], ("B", ""): [0, 3]}


def test_what_all_items_share_is_no_slice() -> None:
    assert common_slices(ITEMS[:1], {"hospital": ["A"]}) == []


def test_reports_are_sliced_by_a_sum_over_items_with_intervals_over_images() -> None:
    items = [
        Prediction(
            str(at), "report", "", ["Clear lungs."], "Clear lungs." if at % 2 else "", organ=organ, image_id=str(at)
        )
        for at, organ in enumerate(("CHEST", "CHEST", "HEAD", "HEAD"))
    ]
    empty = [replace(item, prediction="") for item in items]
    rows = text_slice_rows({"model": items, "blank_image": empty}, {"hospital": ["A", "A", "A", "B"]})
    assert [(row.slice, row.value, row.metric, row.score.value) for row in rows] == [
        ("organ", "CHEST", "token_f1", 0.5),
        ("organ", "HEAD", "token_f1", 0.5),
        ("specialty (derived from organ)", "neurology", "token_f1", 0.5),
        ("specialty (derived from organ)", "pulmonology", "token_f1", 0.5),
        ("hospital", "A", "token_f1", pytest.approx(1 / 3)),
        ("hospital", "B", "token_f1", 1),
    ]
    assert rows[0].score.cluster_interval is not None
    assert rows[0].controls["blank_image"].value == 0
    assert rows[0].baselines["constant_text"].value is None

# SPDX-License-Identifier: Apache-2.0
"""Consistency: which questions belong together, and what lucky answers cost."""

from __future__ import annotations

import pytest

from pefomed_recipes.evaluation.consistency import Group, consistency_rows, find_groups, opposite_questions
from pefomed_recipes.evaluation.results import Row
from pefomed_recipes.records import Prediction


def _item(
    question: str, answer: str, said: str, image: str = "1", linked: str = "", kind: str = "CLOSED"
) -> Prediction:
    name = f"{image} {question} {linked} {said}"
    return Prediction(name, "vqa", question, [answer], said, kind, image_id=image, linked_id=linked)


def _rows(items: list[Prediction], controls: dict[str, list[Prediction]] | None = None) -> dict[tuple[str, str], Row]:
    return {(row.value, row.metric): row for row in consistency_rows(items, controls or {}, [])}


def test_rephrasings_are_linked_questions_about_one_image_with_one_reference() -> None:
    items = [
        _item("Which organ?", "Liver", "", linked="a", kind="OPEN"),
        _item("What organ is it?", "the liver", "", linked="a", kind="OPEN"),
        _item("What organ is it?", "liver", "", image="2", linked="a", kind="OPEN"),
        _item("Where?", "left", "", linked="b", kind="OPEN"),
        _item("Which side?", "right", "", linked="b", kind="OPEN"),
        _item("Which lobe?", "liver", "", kind="OPEN"),
    ]
    assert find_groups(items) == [Group("rephrasings", (0, 1))]


@pytest.mark.parametrize(
    ("question", "opposite"),
    [
        ("is heart normal", "is heart abnormal"),
        ("is it on left side", "is it on right side"),
        ("is there no effusion", "is there effusion"),
        ("is it not enlarged", "is it enlarged"),
    ],
)
def test_opposites_differ_by_one_word(question: str, opposite: str) -> None:
    assert opposite in opposite_questions(question)


def test_logical_opposites_are_found_by_link_or_by_wording() -> None:
    items = [
        _item("Is the heart normal?", "yes", ""),
        _item("Is the heart abnormal?", "no", ""),
        _item("Is it on the left?", "no", ""),
        _item("Is it on the right?", "no", ""),  # neither: no opposites
        _item("Is there no effusion?", "yes", ""),
        _item("Is there effusion?", "no", "", image="2"),  # another image
        _item("Is it large?", "yes", "", linked="a"),
        _item("Would you call it tiny?", "no", "", linked="a"),
    ]
    assert set(find_groups(items)) == {
        Group("logical opposites", (0, 1)),
        Group("logical opposites", (6, 7)),
    }


def test_a_lucky_answer_is_one_that_changes_with_the_wording() -> None:
    items = [
        _item("Mass?", "yes", "yes", "1", "a"),
        _item("Is there a mass?", "yes", "Yes.", "1", "a"),  # all right
        _item("Mass?", "yes", "yes", "2", "b"),
        _item("Is there a mass?", "yes", "no", "2", "b"),  # one right answer was luck
        _item("Mass?", "yes", "no", "3", "c"),
        _item("Is there a mass?", "yes", "No.", "3", "c"),  # consistent and wrong
        _item("Mass?", "yes", "", "4", "d"),
        _item("Is there a mass?", "yes", "", "4", "d"),  # saying nothing is not consistent
    ]
    rows = _rows(items)
    all_right, same, lucky = (
        rows["rephrasings", name] for name in ("all_right", "consistent_replies", "lucky_answers")
    )
    assert (all_right.score.numerator, all_right.items) == (1, 4)
    assert same.score.numerator == 2
    assert (lucky.score.numerator, lucky.score.denominator) == (1, 3)
    assert all_right.score.cluster_interval is not None


def test_a_model_that_always_says_yes_is_exposed_by_opposites() -> None:
    pairs = [(f"Is the {organ} normal?", f"Is the {organ} abnormal?") for organ in ("heart", "liver", "lung")]
    items = [
        _item(question, answer, "yes") for pair in pairs for question, answer in zip(pair, ("yes", "no"), strict=True)
    ]
    good = [_item(item.instruction, item.answers[0], item.answers[0]) for item in items]
    rows = _rows(items, {"good": good})
    assert rows["logical opposites", "all_right"].score.value == 0
    assert rows["logical opposites", "consistent_replies"].score.value == 0
    assert rows["logical opposites", "lucky_answers"].score.value == 1  # half of all answers are right
    assert rows["logical opposites", "all_right"].controls["good"].value == 1
    assert rows["logical opposites", "consistent_replies"].controls["good"].value == 1
    assert rows["logical opposites", "lucky_answers"].controls["good"].value == 0


def test_without_such_questions_the_numbers_are_null_with_a_reason() -> None:
    rows = _rows([_item("Mass?", "yes", "yes")])
    assert [(row.items, row.score.value, row.score.reason) for row in rows.values()] == [
        (0, None, "no such questions about one image")
    ] * 2

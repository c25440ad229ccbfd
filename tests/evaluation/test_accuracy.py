# SPDX-License-Identifier: Apache-2.0
"""Accuracy on examples that can be counted by hand."""

from __future__ import annotations

import pytest

from pefomed_recipes.evaluation.accuracy import score_answer, score_exact_match, score_tokens, token_overlap, vqa_rows
from pefomed_recipes.evaluation.results import Row
from pefomed_recipes.evaluation.slices import is_laterality
from pefomed_recipes.records import Prediction, Sample


def _item(
    name: str,
    question: str,
    reference: str,
    prediction: str,
    answer_type: str = "CLOSED",
    question_types: tuple[str, ...] = ("PRES",),
    image: str = "1",
) -> Prediction:
    return Prediction(
        name, "vqa", question, [reference], prediction, answer_type, list(question_types), image_id=image
    )


ITEMS = [
    _item("a", "Is there a mass?", "yes", "Yes, on the left."),
    _item("b", "Is there a mass?", "no", "normal", image="2"),  # unparsed: "no" inside "normal" is no answer
    _item("c", "Is there an effusion?", "no", "yes", image="2"),
    _item("d", "On which side is it, left or right?", "left", "Left.", question_types=("POS",)),
    _item("e", "On which side is it, left or right?", "right", "left", question_types=("POS", "ABN"), image="2"),
    _item("f", "Is it in the upper lobe or the lower lobe?", "upper lobe", "upper lobe", question_types=("POS",)),
    _item("g", "Which organ?", "The lung", "lung", "OPEN", ("ORGAN",)),
    _item("h", "Which organ?", "liver", "the liver and the spleen", "open ", ("ORGAN",), image="2"),
    _item("i", "Which modality?", "x-ray", "X ray", "OPEN", ("MODALITY",), image="2"),
]
CONTROL = [_item(item.id, item.instruction, item.answers[0], "yes", item.answer_type) for item in ITEMS]
TRAIN = [
    Sample("1", "vqa", [], "Is there a mass?", ["no"], "CLOSED", ["PRES"]),
    Sample("2", "vqa", [], "Which organ?", ["Lung"], "OPEN", ["ORGAN"]),
    Sample("3", "vqa", [], "On which side is it, left or right?", ["left"], "CLOSED", ["POS"]),
    Sample("4", "vqa", [], "Is it large?", ["no"], "CLOSED", ["SIZE"]),
]


def _rows() -> dict[tuple[str, str, str], Row]:
    rows = vqa_rows(ITEMS, {"blank_image": CONTROL}, TRAIN)
    return {(row.slice, row.value, row.answer_type): row for row in rows if row.metric == "accuracy"}


def test_counts_by_hand() -> None:
    counted = {
        key: (row.score.numerator, row.items, row.score.unparsed)
        for key, row in _rows().items()
        if row.slice not in ("question_type", "unseen_answer")
    }
    assert counted == {
        ("overall", "", ""): (5, 9, 1),
        ("answer_type", "", "open"): (2, 3, 0),
        ("answer_type", "", "closed"): (3, 6, 1),
        ("laterality", "left or right", "closed"): (1, 2, 0),
    }


def test_an_item_counts_in_each_of_its_question_types() -> None:
    counted = {
        key[1:]: (row.score.numerator, row.items) for key, row in _rows().items() if row.slice == "question_type"
    }
    assert counted == {
        ("ABN", "closed"): (0, 1),
        ("MODALITY", "open"): (1, 1),
        ("ORGAN", "open"): (1, 2),
        ("POS", "closed"): (2, 3),
        ("PRES", "closed"): (1, 3),
    }


def test_majority_and_control_stand_beside_the_model() -> None:
    overall = _rows()["overall", "", ""]
    # majority: no to a and b and c, left to d and e and f (by type), lung to g and h, no to i
    assert overall.baselines["majority_answer"].numerator == 4  # b, c, d, g
    assert overall.controls["blank_image"].numerator == 1  # a
    difference = overall.differences["blank_image"]
    assert difference.value == pytest.approx(4 / 9)
    assert difference.interval is not None and difference.interval.low <= 4 / 9 <= difference.interval.high
    assert overall.clusters == 2
    assert overall.score.interval is not None and overall.score.cluster_interval is not None


def test_without_training_samples_the_majority_is_null_with_a_reason() -> None:
    [overall, *_] = vqa_rows(ITEMS, {}, [])
    assert overall.baselines["majority_answer"].value is None
    assert "no training samples" in overall.baselines["majority_answer"].reason
    assert overall.differences["majority_answer"].value is None


def test_an_empty_slice_is_null_with_a_reason_and_not_zero() -> None:
    rows = {(row.slice, row.answer_type): row for row in vqa_rows(ITEMS[:3], {}, TRAIN) if row.metric == "accuracy"}
    for key in (("answer_type", "open"), ("laterality", "closed")):
        assert (rows[key].items, rows[key].score.value, rows[key].score.reason) == (0, None, "no item")


def test_unknown_answer_types_are_scored_by_exact_match_and_shown_apart() -> None:
    rows = vqa_rows([_item("a", "Mass?", "no", "No mass", ""), *ITEMS], {}, [])
    [unknown] = [row for row in rows if (row.metric, row.answer_type) == ("accuracy", "unknown") and not row.value]
    assert (unknown.items, unknown.score.numerator, unknown.score.unparsed) == (1, 0, 0)


def test_empty_prediction_is_wrong_even_where_a_reference_normalizes_to_little() -> None:
    assert score_answer(_item("a", "Which option?", "A", "", "OPEN")) == (False, False)
    assert score_answer(_item("a", "Is it?", "no", " ")) == (False, True)


def test_any_of_several_references_is_right() -> None:
    item = _item("a", "Which modality?", "x-ray", "radiograph", "OPEN")
    item.answers.append("Radiograph")
    assert score_answer(item) == (True, False)


def test_laterality_is_closed_position_questions_about_left_and_right_only() -> None:
    assert [item.id for item in ITEMS if is_laterality(item)] == ["d", "e"]
    assert not is_laterality(_item("x", "Left or right?", "left", "left", question_types=("PRES",)))
    assert not is_laterality(_item("x", "Which side?", "left", "left", "OPEN", ("POS",)))


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "precision", "recall"),
    [
        ("left lung", "left lung", 1, 1, 1),
        ("left left left", "left lung", 2 / 5, 1 / 3, 1 / 2),  # clipped: the second and third left gain nothing
        ("The left upper lobe.", "left lobe", 4 / 5, 2 / 3, 1),
        ("right", "left lung", 0, 0, 0),
        ("", "left", 0, 0, 0),
        ("3.5 cm", "3.5 CM", 1, 1, 1),
    ],
)
def test_token_overlap_by_hand(prediction: str, reference: str, f1: float, precision: float, recall: float) -> None:
    assert token_overlap(prediction, reference) == pytest.approx((f1, precision, recall))


def test_token_scores_take_the_reference_with_the_best_f1() -> None:
    item = _item("a", "Where?", "left lung", "left", "OPEN")
    item.answers.append("left")
    assert [scores.numerators[0] for scores in score_tokens([item]).values()] == [1, 1, 1]


def test_exact_match_is_stricter_than_accuracy_on_closed_questions_only() -> None:
    assert list(score_exact_match(ITEMS).numerators) == [0, 0, 0, 1, 0, 1, 1, 0, 1]
    rows = {(row.metric, row.answer_type): row for row in vqa_rows(ITEMS, {}, TRAIN) if row.slice != "question_type"}
    assert (rows["exact_match", ""].score.numerator, rows["exact_match", "closed"].score.numerator) == (4, 2)
    assert rows["token_f1", "open"].score.value == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert rows["token_recall", "open"].score.cluster_interval is not None

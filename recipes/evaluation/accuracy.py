# SPDX-License-Identifier: Apache-2.0
"""Accuracy of visual question answering under our strict rules, per answer type and question type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..answers import (
    SIDES,
    MajorityBaseline,
    is_exact_match,
    normalize_answer,
    normalize_answer_type,
    normalize_question_types,
    parse_closed_answer,
)
from ..records import Prediction, Sample
from .intervals import ItemScores
from .results import Row
from .rows import NO_TRAIN_SAMPLES, Metric, Undefined, build_row, clusters_of

PROTOCOL = "pefomed-strict-vqa-1"
ACCURACY = Metric("accuracy", is_proportion=True)
LATERALITY = "left or right"
_ANSWER_TYPES = {"OPEN": "open", "CLOSED": "closed", "": "unknown"}


def score_answer(prediction: Prediction) -> tuple[bool, bool]:
    """Return `(correct, unparsed)` for one answer.

    A closed question goes through [`parse_closed_answer`]: the option that the reply takes must equal a reference, and
    a reply that takes none is wrong and unparsed. Any other question needs an exact match after normalisation, and is
    never unparsed. An empty prediction is never correct.
    """
    if normalize_answer_type(prediction.answer_type) != "CLOSED":
        return is_exact_match(prediction.prediction, prediction.answers), False
    parsed = [
        (parse_closed_answer(prediction.prediction, prediction.instruction, reference), normalize_answer(reference))
        for reference in prediction.answers
    ]
    return any(answer == wanted for answer, wanted in parsed), all(answer is None for answer, _ in parsed)


def score_answers(predictions: Sequence[Prediction]) -> ItemScores:
    """Return 1 for each correct and 0 for each wrong answer, over 1 each."""
    marks = [score_answer(prediction) for prediction in predictions]
    return ItemScores.of([correct for correct, _ in marks], unparsed=[unparsed for _, unparsed in marks])


def is_laterality(prediction: Prediction) -> bool:
    """Whether the item asks for a side: a closed question of type `POS` whose references are all left or right."""
    return (
        normalize_answer_type(prediction.answer_type) == "CLOSED"
        and "POS" in normalize_question_types(prediction.question_types)
        and all(normalize_answer(reference) in SIDES for reference in prediction.answers)
    )


def answer_by_majority(predictions: Sequence[Prediction], train: Sequence[Sample]) -> list[Prediction]:
    """Return the predictions with the majority answer of the training samples in place of the model's."""
    majority = MajorityBaseline.fit(train)
    return [replace(prediction, prediction=majority.predict(prediction)) for prediction in predictions]


def vqa_rows(
    predictions: Sequence[Prediction], controls: Mapping[str, Sequence[Prediction]], train: Sequence[Sample]
) -> list[Row]:
    """Return the accuracy overall, by answer type, of left/right, and by question type and answer type.

    `controls` hold the same items in the same order. An item with several question types counts in each, so the
    question types do not add up to the whole. Laterality is a part of the closed `POS` questions, shown apart because
    an aggregate hides a model that cannot tell left from right.
    """
    model = score_answers(predictions)
    clusters = clusters_of(predictions)
    majority = score_answers(answer_by_majority(predictions, train)) if train else Undefined(NO_TRAIN_SAMPLES)
    scored_controls = {name: score_answers(items) for name, items in controls.items()}

    def row(positions: Sequence[int] | None, slice: str, value: str, answer_type: str, headline: bool = False) -> Row:
        return build_row(
            ACCURACY,
            model,
            clusters=clusters,
            baselines={"majority_answer": majority},
            controls=scored_controls,
            positions=positions,
            slice=slice,
            value=value,
            answer_type=answer_type,
            headline=headline,
        )

    by_answer_type: dict[str, list[int]] = {}
    by_question_type: dict[tuple[str, str], list[int]] = {}
    for at, prediction in enumerate(predictions):
        answer_type = _ANSWER_TYPES[normalize_answer_type(prediction.answer_type)]
        by_answer_type.setdefault(answer_type, []).append(at)
        for question_type in normalize_question_types(prediction.question_types):
            by_question_type.setdefault((question_type, answer_type), []).append(at)
    sides = [at for at, prediction in enumerate(predictions) if is_laterality(prediction)]

    rows = [row(None, "overall", "", "", headline=True)]
    for answer_type in _ANSWER_TYPES.values():
        # Open and closed always have a row, null where there is none; unknown only where it occurs.
        if answer_type != "unknown" or answer_type in by_answer_type:
            rows.append(row(by_answer_type.get(answer_type, []), "answer_type", "", answer_type, headline=True))
    rows.append(row(sides, "laterality", LATERALITY, "closed", headline=True))
    order = list(_ANSWER_TYPES.values())
    for question_type, answer_type in sorted(by_question_type, key=lambda key: (key[0], order.index(key[1]))):
        positions = by_question_type[question_type, answer_type]
        rows.append(row(positions, "question_type", question_type, answer_type))
    return rows

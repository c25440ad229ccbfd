# SPDX-License-Identifier: Apache-2.0
"""The slices of results: which items belong together by what is asked, shown, or written in a user's own table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..answers import SIDES, normalize_answer, normalize_answer_type, normalize_question_types
from ..records import Prediction, Sample

ANSWER_TYPES = {"OPEN": "open", "CLOSED": "closed", "": "unknown"}
LATERALITY = "left or right"
SEEN, UNSEEN = "answer in train", "answer never in train"

# Part of the body: the specialty that reads it. Derived, because no data set states who asked.
# Source: ours; the parts are those of VQA-RAD's `image_organ`, SLAKE's `location` and the phantoms.
_SPECIALTIES = {
    "neurology": "head brain skull spine spinal neuro",
    "ear, nose and throat": "neck face throat ear nose",
    "cardiology": "heart cardiac mediastinal mediastinum aorta",
    "pulmonology": "chest lung lungs thorax pleura",
    "gastroenterology": "abd abdomen abdominal liver stomach bowel colon pancreas spleen gallbladder gastrointestinal",
    "urology and gynaecology": "pelvic pelvis kidney bladder prostate uterus ovary",
    "orthopaedics": "bone bones knee hip hand foot shoulder musculoskeletal",
    "ophthalmology": "eye retina fundus",
    "dermatology": "skin",
    "breast imaging": "breast",
}


@dataclass(frozen=True)
class Slice:
    """The items at `positions`, which have `value` in `name` (`organ`: `CHEST`) and one answer type, "" for all.

    `is_headline`: a part of the headline, quoted with differences and intervals over images.
    """

    name: str
    value: str
    positions: list[int]
    answer_type: str = ""
    is_headline: bool = False


def answer_kind(item: Prediction) -> str:
    """Return `open`, `closed` or `unknown`."""
    return ANSWER_TYPES[normalize_answer_type(item.answer_type)]


def is_laterality(item: Prediction) -> bool:
    """Whether the item asks for a side: a closed question of type `POS` whose references are all left or right."""
    return (
        answer_kind(item) == "closed"
        and "POS" in normalize_question_types(item.question_types)
        and all(normalize_answer(reference) in SIDES for reference in item.answers)
    )


def specialty_of(item: Prediction) -> str:
    """Return the medical specialty that follows from the organ, "" where none does."""
    words = re.findall("[a-z]+", item.organ.lower())
    for specialty, parts in _SPECIALTIES.items():
        if any(word in parts.split() for word in words):
            return specialty
    return ""


def question_word_of(item: Prediction) -> str:
    """Return the first word of a question of PathVQA, in upper case; "" for other data sets."""
    word = re.search("[A-Za-z]+", item.instruction) if item.source == "path_vqa" else None
    return word[0].upper() if word else ""


def common_slices(predictions: Sequence[Prediction], columns: Mapping[str, Sequence[str]]) -> list[Slice]:
    """Return the slices of any task: organ, modality, language, specialty, and the columns of a user's table.

    What has one value for all items, or none, is no slice. Values keep their spelling but for case.
    """
    slices = []
    for name, value_of in (
        ("organ", lambda item: item.organ.strip().upper()),
        ("modality", lambda item: item.modality.strip().upper()),
        ("language", lambda item: item.language),
        ("specialty (derived from organ)", specialty_of),
    ):
        slices += _by_value(name, [[value_of(item)] for item in predictions])
    for column, cells in columns.items():
        slices += _by_value(column, [[cell] for cell in cells])
    return slices


def vqa_slices(
    predictions: Sequence[Prediction], train: Sequence[Sample], columns: Mapping[str, Sequence[str]]
) -> list[Slice]:
    """Return the slices of visual question answering, the headline's first.

    Overall, by answer type (open and closed always, unknown where it occurs), laterality; then each question type with
    its answer types (an item with several counts in each; of SLAKE these are the content types), PathVQA's question
    words, whether the answer occurs in the training samples, and [`common_slices`] (SLAKE's `organ` is its location).
    """
    kinds = [answer_kind(item) for item in predictions]
    slices = [Slice("overall", "", list(range(len(predictions))), is_headline=True)]
    for kind in ANSWER_TYPES.values():
        positions = [at for at, found in enumerate(kinds) if found == kind]
        if positions or kind != "unknown":
            slices.append(Slice("answer_type", "", positions, kind, is_headline=True))
    sides = [at for at, item in enumerate(predictions) if is_laterality(item)]
    slices.append(Slice("laterality", LATERALITY, sides, "closed", is_headline=True))

    words = [question_word_of(item) for item in predictions]
    types = [
        [code for code in normalize_question_types(item.question_types) if code != word]
        for item, word in zip(predictions, words, strict=True)
    ]
    for by_type in _by_value("question_type", types, keep_single=True):
        for kind in ANSWER_TYPES.values():
            positions = [at for at in by_type.positions if kinds[at] == kind]
            if positions:
                slices.append(Slice("question_type", by_type.value, positions, kind))
    slices += _by_value("question_word", [[word] for word in words], keep_single=True)
    if train:
        known = {normalize_answer(answer) for sample in train for answer in sample.answers}
        seen = [any(normalize_answer(answer) in known for answer in item.answers) for item in predictions]
        for value, wanted in ((SEEN, True), (UNSEEN, False)):
            slices.append(Slice("unseen_answer", value, [at for at, is_seen in enumerate(seen) if is_seen == wanted]))
    return slices + common_slices(predictions, columns)


def _by_value(name: str, values: Sequence[Sequence[str]], *, keep_single: bool = False) -> list[Slice]:
    """Return one slice a value, sorted; none where all items have the same one, unless `keep_single`."""
    positions: dict[str, list[int]] = {}
    for at, found in enumerate(values):
        for value in dict.fromkeys(found):
            if value:
                positions.setdefault(value, []).append(at)
    if not keep_single and len(positions) == 1 and len(next(iter(positions.values()))) == len(values):
        return []
    return [Slice(name, value, positions[value]) for value in sorted(positions)]

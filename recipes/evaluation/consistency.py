# SPDX-License-Identifier: Apache-2.0
"""Consistency: does a model say the same when a question is asked in other words, and the opposite of its opposite?

A right answer that changes with the wording was luck. Accuracy cannot see it; these numbers can.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..answers import YES_NO, normalize_answer, parse_closed_answer
from ..records import Prediction, Sample
from .accuracy import build_slice_row, score_answer, systems_of
from .intervals import ItemScores
from .results import Row
from .rows import NO_TRAIN_SAMPLES, Metric, Undefined, clusters_of
from .slices import Slice, answer_kind

REPHRASINGS, OPPOSITES = "rephrasings", "logical opposites"
ALL_RIGHT = Metric("all_right", is_proportion=True, reason="no such questions about one image")
SAME_REPLIES = Metric("consistent_replies", is_proportion=True, reason="no such questions about one image")
LUCKY = Metric("lucky_answers", is_proportion=False, reason="no right answer to such questions")

# Words that exchange a question for its opposite where one of the two is true.
_ANTONYMS = (
    "normal abnormal|left right|upper lower|anterior posterior|superior inferior|medial lateral|proximal distal|"
    "present absent|increased decreased|enlarged normal|large small|larger smaller|benign malignant|bright dark|"
    "hyperdense hypodense|hyperintense hypointense|hyperechoic hypoechoic|opaque lucent|symmetric asymmetric|"
    "symmetrical asymmetrical|bilateral unilateral|acute chronic|solid cystic|high low|male female|healthy unhealthy"
)
_OPPOSITE_WORDS: dict[str, list[str]] = defaultdict(list)
for _pair in _ANTONYMS.split("|"):
    _one, _other = _pair.split()
    _OPPOSITE_WORDS[_one].append(_other)
    _OPPOSITE_WORDS[_other].append(_one)
_NEGATIONS = ("not", "no")


@dataclass(frozen=True)
class Group:
    """Positions of questions about one image that ask for the same (`rephrasings`) or for opposites."""

    kind: str
    positions: tuple[int, ...]


def find_groups(predictions: Sequence[Prediction]) -> list[Group]:
    """Return the groups of questions that a consistent model answers alike, or by opposites.

    - Rephrasings: the same image, `linked_id` and reference (normalised); VQA-RAD's free-form question and its
      paraphrase are linked so.
    - Logical opposites: closed questions about the same image, one answered by yes and one by no, that are linked or
      whose wordings differ by one word for its antonym (normal, abnormal; left, right) or by a `not` or `no`.
    """
    linked: dict[tuple[str, str], list[int]] = defaultdict(list)
    asked: dict[str, dict[str, int]] = defaultdict(dict)
    for at, item in enumerate(predictions):
        image = item.image_id or item.study_id
        if image and item.linked_id:
            linked[image, item.linked_id].append(at)
        if image and answer_kind(item) == "closed" and _reference(item) in YES_NO:
            asked[image].setdefault(normalize_answer(item.instruction), at)
    groups = []
    opposites: dict[tuple[int, ...], None] = {}
    for members in linked.values():
        by_reference: dict[str, list[int]] = defaultdict(list)
        for at in members:
            by_reference[_reference(predictions[at])].append(at)
        groups += [Group(REPHRASINGS, tuple(same)) for same in by_reference.values() if len(same) > 1]
        if set(by_reference) == set(YES_NO) and all(answer_kind(predictions[at]) == "closed" for at in members):
            opposites[tuple(members)] = None
    for questions in asked.values():
        for question, at in questions.items():
            for opposite in opposite_questions(question):
                other = questions.get(opposite, at)
                if _reference(predictions[other]) != _reference(predictions[at]):
                    opposites[tuple(sorted((at, other)))] = None
    return groups + [Group(OPPOSITES, positions) for positions in opposites]


def opposite_questions(question: str) -> list[str]:
    """Return wordings that ask for the opposite of a normalised question: one word exchanged, or a negation less."""
    words = question.split()
    found = []
    for at, word in enumerate(words):
        replacements = [[other] for other in _OPPOSITE_WORDS.get(word, [])] + ([[]] if word in _NEGATIONS else [])
        found += [" ".join([*words[:at], *replacement, *words[at + 1 :]]) for replacement in replacements]
    return found


def consistency_rows(
    predictions: Sequence[Prediction], controls: Mapping[str, Sequence[Prediction]], train: Sequence[Sample]
) -> list[Row]:
    """Return three numbers for rephrasings and for logical opposites, null where there are no such questions.

    - `all_right`, 0..1, higher is better: groups in which every answer is right, of all groups.
    - `consistent_replies`, 0..1, higher is better: groups whose replies agree (rephrasings) or take opposite sides
      (opposites), right or wrong, of all groups. A group with an unparsed or empty reply is not consistent.
    - `lucky_answers`, 0..1, lower is better: right answers in groups that are not all right, of the right answers in
      all groups.

    Groups of one image are one cluster of the intervals.
    """
    groups = find_groups(predictions)
    image_of = clusters_of(predictions)
    clusters = [image_of[group.positions[0]] for group in groups]
    systems = systems_of(predictions, controls, train)
    scores = {name: _score_groups(groups, items) if items else {} for name, items in systems.items()}
    rows = []
    for kind in (REPHRASINGS, OPPOSITES):
        part = Slice("consistency", kind, [at for at, group in enumerate(groups) if group.kind == kind], "", True)
        for metric in (ALL_RIGHT, SAME_REPLIES, LUCKY) if part.positions else (ALL_RIGHT,):
            chosen = {name: of[metric.name] if of else Undefined(NO_TRAIN_SAMPLES) for name, of in scores.items()}
            rows.append(build_slice_row(metric, chosen, controls, clusters, part))
    return rows


def _score_groups(groups: Sequence[Group], items: Sequence[Prediction]) -> dict[str, ItemScores]:
    right = [[score_answer(items[at])[0] for at in group.positions] for group in groups]
    all_right = [all(marks) for marks in right]
    lucky = [0 if whole else sum(marks) for whole, marks in zip(all_right, right, strict=True)]
    return {
        ALL_RIGHT.name: ItemScores.of(all_right),
        SAME_REPLIES.name: ItemScores.of([_is_consistent(group, items) for group in groups]),
        LUCKY.name: ItemScores.of(lucky, [sum(marks) for marks in right]),
    }


def _is_consistent(group: Group, items: Sequence[Prediction]) -> bool:
    replies: dict[str, set[str | None]] = defaultdict(set)
    for at in group.positions:
        replies[_reference(items[at])].add(_reply(items[at]))
    found = list(replies.values())
    if any(len(said) != 1 or None in said for said in found):
        return False
    return len(found) < 2 or found[0] != found[1]


def _reply(item: Prediction) -> str | None:
    if answer_kind(item) == "closed":
        return parse_closed_answer(item.prediction, item.instruction, item.answers[0])
    return normalize_answer(item.prediction) if item.prediction.strip() else None


def _reference(item: Prediction) -> str:
    return normalize_answer(item.answers[0])

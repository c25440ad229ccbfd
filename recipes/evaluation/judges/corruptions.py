# SPDX-License-Identifier: Apache-2.0
"""Answers whose quality is known, made of the references: what a judge must tell apart before it is believed."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ...answers import YES_NO, normalize_answer
from .rubrics import Answer

PARTNERS_LOOKED_AT = 30
MAX_OVERLAP = 0.25  # token F1 of a reference and the one that takes its place: two normal reports are no contrast
PADDING = (
    "The examination was performed in standard technique.",
    "The images are of diagnostic quality.",
    "Thank you for the referral.",
)
_FINDINGS = (
    *("effusion", "fracture", "nodule", "cyst", "mass"),
    *("calcification", "abscess", "haematoma", "stone", "scar"),
)
_NEGATIONS = re.compile(r"\b(?:no evidence of|negative for|free of|without|never|not|no)\b\s*", re.IGNORECASE)
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.;!?])\s+")


def identity(answer: Answer) -> Answer:
    """Return the reference itself as the answer."""
    return replace(answer, candidate=answer.references[0], control="identity")


def empty(answer: Answer) -> Answer:
    """Return no answer."""
    return replace(answer, candidate="", control="empty")


def padded(answer: Answer) -> Answer:
    """Return the reference with harmless words around it."""
    text = answer.references[0].rstrip()
    more = "That is my answer." if answer.task == "vqa" else " ".join(PADDING)
    return replace(answer, candidate=f"{text}{'' if text.endswith('.') else '.'} {more}", control="padded")


def negated(answer: Answer) -> Answer | None:
    """Return the reference with every sentence turned into its opposite: denials lose their `no`, the others get one.

    `None` for an empty reference, and for a word that is no statement (an answer such as `liver`).
    """
    text = answer.references[0].strip()
    if normalize_answer(text) in YES_NO:
        return replace(answer, candidate=YES_NO[1 - YES_NO.index(normalize_answer(text))], control="negated")
    if answer.task == "vqa" or not text:
        return None
    sentences = [_opposite(sentence) for sentence in _SENTENCE_END.split(text)]
    return replace(answer, candidate=" ".join(sentences), control="negated")


def other_side(answer: Answer) -> Answer | None:
    """Return the reference with left and right exchanged; `None` where it names no side."""
    text = answer.references[0]
    if not _SIDES.search(text):
        return None
    other = {"left": "right", "right": "left"}
    turned = _SIDES.sub(lambda match: other[match[0].lower()], text)
    return replace(answer, candidate=turned, control="other_side")


def spare_answers(task: str) -> list[Answer]:
    """Return references of our own that name a side or state something, for data that has too few such: 20 of each."""
    found = [(finding, side) for finding in _FINDINGS for side in ("left", "right")]
    if task != "vqa":
        texts = [
            f"There is a small {finding} on the {side}. The other side is unremarkable." for finding, side in found
        ]
        return [Answer(f"gate:{text}", "gate", task, "", (text,), "") for text in texts]
    asked = [(f"On which side is the {finding}?", side) for finding, side in found]
    asked += [(f"Is there a {finding}?", said) for finding in _FINDINGS for said in YES_NO]
    return [Answer(f"gate:{question} {said}", "gate", task, question, (said,), "") for question, said in asked]


def shuffled(answers: Sequence[Answer], seed: int = 0) -> list[Answer]:
    """Return the answers with the reference of another item each, one that says something else.

    Of some drawn partners, the one with the least overlap is taken; an answer whose partners all say nearly the same
    is left out.
    """
    draws = random.Random(seed)
    swapped = []
    for answer in answers:
        partners = draws.sample(answers, min(PARTNERS_LOOKED_AT, len(answers)))
        overlaps = [token_f1(answer.references[0], partner.references[0]) for partner in partners]
        nearest = min(range(len(partners)), key=overlaps.__getitem__)
        if overlaps[nearest] <= MAX_OVERLAP:
            swapped.append(replace(answer, candidate=partners[nearest].references[0], control="shuffled"))
    return swapped


def token_f1(first: str, second: str) -> float:
    """Return the F1 of the words of two texts, each counted as often as it occurs: 0..1, 0 where one is empty."""
    words, others = Counter(normalize_answer(first).split()), Counter(normalize_answer(second).split())
    shared = (words & others).total()
    return 2 * shared / (words.total() + others.total()) if shared else 0.0


def _opposite(sentence: str) -> str:
    turned, times = _NEGATIONS.subn("", sentence)
    if times:
        return turned[:1].upper() + turned[1:]
    return f"No {sentence[:1].lower()}{sentence[1:]}"

# SPDX-License-Identifier: Apache-2.0
"""The released PeFoMed evaluator: exact match after the normaliser of the VQA challenge.

Source: the fact that its `MedVQAEval` is the VQA v2 normaliser with two typing errors. Written anew from its rules.
Differs: ids that repeat, which the evaluator overwrites silently, are refused when the file is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...records import Prediction

QUIRKS = [
    "only the first 32 full stops of a text are removed, and only where no digit follows: '5.' is '5', '.5' stays",
    "one comma between digits anywhere makes all punctuation vanish instead of becoming blanks: "
    "'1,000 cells/ul' is '1000 cellsul'",
    "'none' is '0', and '-5' is '5'; '10-20' is '10 20'",
    "articles go, so that a reference 'A' is '' and equals an empty answer",
    "'x ray' becomes 'xray' inside words too: 'apex ray' is 'apexray'",
    "answer types are compared as written: 'CLOSED ' is a bucket of its own, and 'PRES, ABN' a question type",
    "only the first reference counts; the overall number mixes open and closed questions",
]
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!:'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_REMOVED_STOPS = 32
_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
# Contractions get their apostrophes back; each is found without one of them, or without any.
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't "
    "needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll "
    "somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd "
    "there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's "
    "won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
).split()


def _spellings() -> dict[str, str]:
    known: dict[str, str] = {}
    for word in _CONTRACTIONS:
        places = [at for at, letter in enumerate(word) if letter == "'"]
        shorter = [word[:at] + word[at + 1 :] for at in places] if len(places) > 1 else [word.replace("'", "")]
        known |= dict.fromkeys(shorter, word)
    return known | {"somebody'd": "somebodyd"}  # the one entry that is written the wrong way round


_RESTORED = _spellings()


def normalize_word(text: str) -> str:
    """Return the challenge's spelling of a text, without the last three rules that [`normalize`] adds."""
    deletes_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    spaced = text
    for mark in _PUNCTUATION:
        at_word_edge = f"{mark} " in text or f" {mark}" in text
        spaced = spaced.replace(mark, "" if at_word_edge or deletes_all else " ")
    spaced = _FULL_STOP.sub("", spaced, count=_REMOVED_STOPS)
    words = [_NUMBERS.get(word, word) for word in spaced.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def normalize(text: str) -> str:
    """Return a text as the evaluator compares it."""
    return normalize_word(text).replace(",", "").replace("x ray", "xray").replace("\n", " ").replace("\t", " ")


def numbers(predictions: Sequence[Prediction]) -> dict[str, tuple[float | None, int]]:
    """Return exact match overall, by answer type and by question type as written, rounded to two places."""
    groups: dict[str, list[bool]] = {"overall": []}
    for item in predictions:
        match = normalize(item.prediction) == normalize(item.answers[0])
        groups["overall"].append(match)
        groups.setdefault(f"answer type {item.answer_type}", []).append(match)
        groups.setdefault(f"question type {', '.join(item.question_types)}", []).append(match)
    return {name: (round(100 * sum(marks) / len(marks), 2), len(marks)) for name, marks in groups.items()}

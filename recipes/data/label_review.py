# SPDX-License-Identifier: Apache-2.0
"""Lists labels that are likely wrong, for a person to look at: simple rules, made for small sets of one's own.

- *conflict*: the same images and the same question have different answers.
- *outlier*: an answer that is given once in all the data, to a question that is otherwise answered with a few words
  that recur, and that resembles none of that question's other answers. Such an answer is often a slip of row or
  column; it may as well be the one rare finding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

from ..answers import normalize_answer
from ..records import Sample
from .tallies import image_keys

MIN_ANSWERS = 10  # to a question, before any of them can be an outlier
RECURRING = 3  # times that an answer is given to a question, to count as one of its usual ones
USUAL_SHARE = 0.8  # of a question's answers that are usual ones
MAX_SIMILARITY = 0.5  # of an outlier to each other answer, 0..1


class LabelReview:
    """Collects questions and answers, and says which are to be reviewed.

    Args:
        show_text: put questions and answers into what is listed; ids alone without.
    """

    def __init__(self, *, show_text: bool = False) -> None:
        self.show_text = show_text
        # (images, question) -> answer -> ids
        self.asked: dict[tuple[tuple[str, ...], str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        # question -> answer -> times; and who gave an answer first
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        self.givers: dict[tuple[str, str], str] = {}
        self.everywhere: Counter[str] = Counter()

    def add(self, sample: Sample) -> None:
        """Take a question with its answers in; other tasks have no answer that could be compared."""
        if sample.task != "vqa" or not sample.answers:
            return
        question = normalize_answer(sample.instruction)
        key = tuple(image_keys(sample)), question
        self.asked[key]["|".join(sorted({normalize_answer(answer) for answer in sample.answers}))].append(sample.id)
        answer = normalize_answer(sample.answers[0])
        self.answers[question][answer] += 1
        self.givers.setdefault((question, answer), sample.id)
        self.everywhere[answer] += 1

    def findings(self, picture_of: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return what is to be reviewed: `kind`, `ids`, and with `show_text` the `question` and `answers`.

        Args:
            picture_of: by an image's key the fingerprint of its pixels, so that copies count as one image.
        """
        return [*self._conflicts(picture_of), *self._outliers()]

    def _conflicts(self, picture_of: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        joined: dict[tuple[tuple[str, ...], str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for (images, question), answers in self.asked.items():
            for answer, ids in answers.items():
                joined[tuple(picture_of.get(image, image) for image in images), question][answer] += ids
        for (_, question), answers in joined.items():
            if len(answers) > 1:
                yield self._entry("conflict", [id for ids in answers.values() for id in ids], question, list(answers))

    def _outliers(self) -> Iterator[dict[str, Any]]:
        for question, answers in self.answers.items():
            usual = sum(times for times in answers.values() if times >= RECURRING)
            if answers.total() < MIN_ANSWERS or usual < USUAL_SHARE * answers.total():
                continue
            for answer in answers:
                others = [other for other in answers if other != answer]
                if self.everywhere[answer] == 1 and all(
                    similarity(answer, other) < MAX_SIMILARITY for other in others
                ):
                    yield self._entry("outlier", [self.givers[question, answer]], question, [answer])

    def _entry(self, kind: str, ids: list[str], question: str, answers: list[str]) -> dict[str, Any]:
        texts = {"question": question, "answers": answers} if self.show_text else {}
        return {"kind": kind, "ids": ids, **texts}


def similarity(first: str, second: str) -> float:
    """Return 0 (no letter in common) to 1 (equal): twice the letters of matching runs, as a share of all letters."""
    return SequenceMatcher(None, first, second, autojunk=False).ratio()

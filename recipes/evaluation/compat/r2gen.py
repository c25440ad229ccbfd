# SPDX-License-Identifier: Apache-2.0
"""R2Gen's convention for reports, which most published numbers on IU-Xray and MIMIC-CXR follow.

Source: the rules of its released tokenizer and trainer (Chen et al. 2020), written anew.
Differs: an empty prediction stays empty, where cleaning would give it a `.`; CIDEr is added, as later papers print it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ...records import Prediction, Sample
from .coco import coco_numbers

QUIRKS = [
    "every sentence ends in a word '.', which is easy to guess and counts in every number",
    "apostrophes, slashes, brackets and decimal points are deleted: 'T2/FLAIR' is 't2flair', '3.5 cm' is '35 cm'",
    "the numbers 1 to 5 are deleted before a full stop, as those of lists",
    "references are cut after 59 words (IU-Xray; MIMIC-CXR: 99) and predictions are not: a report need not go on",
    "words of references that occur fewer than 3 times in training (MIMIC-CXR: 10) are <unk>: a right one is wrong",
    "only the first reference counts; METEOR needs Java and the extra [coco], and is null without",
]

UNKNOWN = "<unk>"
# The range from ":" to "[" in the released expression takes in ; < = > ? @ and the capitals, of which none are left.
_DROPPED = re.compile(r"[\[\]{}.,?;*!%^&_+():<=>@\"/\\']")
_LIST_NUMBERS = ("2", "3", "4", "5")


@dataclass(frozen=True)
class Convention:
    """R2Gen's settings for a data set: words kept of a reference, and how often a word must occur in training."""

    name: str
    kept_words: int
    least_count: int
    is_mimic: bool


# R2Gen cuts at 60 and 100 ids, of which the first marks the beginning.
IU_XRAY = Convention("r2gen-iu-xray", 59, 3, is_mimic=False)
MIMIC_CXR = Convention("r2gen-mimic-cxr", 99, 10, is_mimic=True)


def convention_of(sources: Collection[str]) -> Convention:
    """Return MIMIC-CXR's settings for its own reports, and IU-Xray's for all others."""
    return MIMIC_CXR if set(sources) == {"mimic_cxr"} else IU_XRAY


def clean_report(text: str, convention: Convention = IU_XRAY) -> list[str]:
    """Return the words of a report, each sentence closed by the word `.`.

    Source: the released tokenizer of R2Gen (Chen et al. 2020).
    """
    if convention.is_mimic:
        text = re.sub("_+", "_", text.replace("\n", " "))
        text = re.sub(" +", " ", text)
    text = re.sub(r"\.{2,8}", ".", text).replace("1. ", "")
    for before in (". ", " "):
        for number in _LIST_NUMBERS:
            text = text.replace(f"{before}{number}. ", ". ")
    sentences = (_DROPPED.sub("", sentence.strip()) for sentence in text.strip().lower().split(". "))
    return (" . ".join(sentences) + " .").split()


def vocabulary_of(train_reports: Sequence[str], convention: Convention) -> frozenset[str]:
    """Return the words that are frequent enough in the training reports."""
    counts = Counter(word for text in train_reports for word in clean_report(text, convention))
    return frozenset(word for word, count in counts.items() if count >= convention.least_count)


def prediction_words(text: str, convention: Convention) -> list[str]:
    """Return the words of a prediction: cleaned, and neither cut nor replaced; none for a blank one."""
    return clean_report(text, convention) if text.strip() else []


def reference_words(text: str, vocabulary: Collection[str], convention: Convention) -> list[str]:
    """Return the words of a reference: cleaned, cut, and rare ones replaced."""
    words = clean_report(text, convention)[: convention.kept_words]
    return [word if word in vocabulary else UNKNOWN for word in words]


def numbers(predictions: Sequence[Prediction], train: Sequence[Sample]) -> dict[str, tuple[float | None, int]]:
    """Return BLEU-1 to 4, ROUGE-L, CIDEr and METEOR times 100, under MIMIC-CXR's settings for its own reports only.

    Raises:
        ConfigError: there are no training samples, whose words decide which are rare.
    """
    if not train:
        raise ConfigError(
            "compat 'r2gen' found no training samples; give --train FILE: they decide which words are rare"
        )
    convention = convention_of({item.source for item in predictions})
    vocabulary = vocabulary_of([sample.answers[0] for sample in train], convention)
    said = [prediction_words(item.prediction, convention) for item in predictions]
    wanted = [[reference_words(item.answers[0], vocabulary, convention)] for item in predictions]
    return coco_numbers(said, wanted)

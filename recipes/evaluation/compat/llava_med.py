# SPDX-License-Identifier: Apache-2.0
"""LLaVA-Med's two evaluators: word recall on open questions, substrings on closed ones.

Source: the rules of `run_eval.py` and `run_eval_batch.py`, written anew.
Differs: its "open accuracy" needs a list of candidate answers that was never published, and its BLEU columns are left
out; a closed number without any item is null instead of a division by zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...answers import normalize_answer_type
from ...records import Prediction
from .pefomed import normalize_word

QUIRKS = [
    "closed (run_eval): a reply with 'yes' or 'no' in it that is wrong is left out of the denominator",
    "closed (run_eval): a reply without 'yes' and 'no' is wrong: 'left' is never right for 'left'",
    "closed: letters inside words count, so that 'normal' is a hit for 'no'",
    "closed (run_eval_batch): a hit wherever the reference is part of the reply, so that 'yes and no' is always right",
    "open recall: a word that is repeated counts each time; 'left left left' has recall 0.75 of 'left lung'",
    "the 'exact match score' is the share of words found among the words predicted, a precision",
    "the texts are normalised as in pefomed, where 'none' is '0' and 'a' is nothing",
]


def word_scores(candidate: str, reference: str) -> tuple[float, float, float]:
    """Return `(f1, precision, recall)` with counts that are not clipped; 0, 0, 0 where nothing is shared."""
    said, wanted = (Counter(normalize_word(text).split()) for text in (candidate, reference))
    shared = sum(count for word, count in said.items() if word in wanted)
    if not shared:
        return 0.0, 0.0, 0.0
    lacking = sum(count for word, count in wanted.items() if word not in said)
    precision, recall = shared / said.total(), shared / (shared + lacking)
    return 2 * precision * recall / (precision + recall), precision, recall


def found_words(candidate: str, reference: str) -> float:
    """Return the reference's distinct words that are found, over the words predicted; 0 for an empty reply."""
    said, wanted = (Counter(normalize_word(text).split()) for text in (candidate, reference))
    return sum(word in said for word in wanted) / said.total() if said else 0.0


def numbers(predictions: Sequence[Prediction]) -> dict[str, tuple[float | None, int]]:
    """Return the open and closed numbers in percent, with the denominators of each script."""
    scores: dict[str, list[float]] = {
        name: []
        for name in (
            *("open recall", "open precision", "open F1", "open exact match score"),
            *("closed (run_eval)", "closed (run_eval_batch)"),
        )
    }
    for item in predictions:
        said, reference = item.prediction.lower(), item.answers[0].lower()
        if normalize_answer_type(item.answer_type) == "CLOSED":
            reply, wanted = normalize_word(said), normalize_word(reference)
            is_hit = wanted in reply
            has_answer = "yes" in reply or "no" in reply
            if is_hit or not has_answer:
                scores["closed (run_eval)"].append(float(is_hit and has_answer))
            scores["closed (run_eval_batch)"].append(float(is_hit))
        else:
            f1, precision, recall = word_scores(said, reference)
            scores["open recall"].append(recall)
            scores["open precision"].append(precision)
            scores["open F1"].append(f1)
            scores["open exact match score"].append(found_words(said, reference))
    return {name: (100 * sum(found) / len(found) if found else None, len(found)) for name, found in scores.items()}

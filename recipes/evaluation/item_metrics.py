# SPDX-License-Identifier: Apache-2.0
"""Metrics of single answers, to be held against what raters and judges say of the same answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..records import Prediction
from .accuracy import score_answers, score_exact_match, score_tokens
from .boxes import score_boxes
from .panels import Unit
from .text_metrics import rouge_l
from .tokens import report_tokens


def item_metrics(predictions: Sequence[Prediction]) -> dict[str, dict[Unit, float]]:
    """Return each metric's value of each answer, 0..1, higher is better, by `(item_id, system)`.

    Questions: `accuracy` (our strict rules), `exact_match`, `token_f1`. Captions and reports: `token_f1`, `rouge_l_f1`
    and `sentence_bleu` (BLEU-4 of one text, higher orders smoothed, of the tokens of [`report_tokens`]). Boxes: `iou`.
    """
    found: dict[str, dict[Unit, float]] = {}
    by_task: dict[str, list[Prediction]] = {}
    for item in predictions:
        by_task.setdefault(item.task, []).append(item)
    for task, items in by_task.items():
        units = [(item.id, item.system) for item in items]
        if task == "vqa":
            values = {
                "accuracy": list(score_answers(items).numerators),
                "exact_match": list(score_exact_match(items).numerators),
                "token_f1": list(score_tokens(items)["token_f1"].numerators),
            }
        elif task == "refer":
            values = {"iou": list(score_boxes(items).numerators)}
        else:
            values = {"token_f1": list(score_tokens(items)["token_f1"].numerators)} | _text_values(items)
        for name, column in values.items():
            found.setdefault(name, {}).update(zip(units, map(float, column), strict=True))
    return found


def _text_values(items: Sequence[Prediction]) -> dict[str, list[float]]:
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(tokenize="none", effective_order=True)
    one = np.ones((1, 1))
    values: dict[str, list[float]] = {"rouge_l_f1": [], "sentence_bleu": []}
    for item in items:
        said, references = report_tokens(item.prediction), [report_tokens(answer) for answer in item.answers]
        values["rouge_l_f1"].append(float(rouge_l([said], [references])(one)["rouge_l_f1"][0]))
        score = scorer.sentence_score(" ".join(said), [" ".join(words) for words in references]).score
        values["sentence_bleu"].append(score / 100)
    return values

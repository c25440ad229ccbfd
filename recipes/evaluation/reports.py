# SPDX-License-Identifier: Apache-2.0
"""Reports and captions: factual precision, recall, F1 where the truth is exact, and BLEU, beside a constant text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..records import Prediction, Sample
from .intervals import ItemScores
from .phantom_facts import report_facts
from .results import Difference, Row, Score
from .rows import NO_TRAIN_SAMPLES, Metric, Undefined, build_row, clusters_of

PROTOCOL = "pefomed-report-facts-1"
PRECISION = Metric("fact_precision", is_proportion=False, reason="no fact was predicted")
RECALL = Metric("fact_recall", is_proportion=False, reason="no fact in the references")
F1 = Metric("fact_f1", is_proportion=False, reason="no fact, neither predicted nor in the references")
BLEU_INTERVAL = "no interval: BLEU is not a mean over reports"
CENTRAL_LIMIT = 500
ALWAYS_STATED = {"modality", "plane", "organ", "lesions"}

_TOKEN = re.compile(r"\w+(?:[.'/-]\w+)*")


def why_no_exact_facts(predictions: Sequence[Prediction]) -> str:
    """Return "" where all references are phantom texts, whose facts [`report_facts`] reads exactly, else the reason.

    A phantom text states the modality, the plane, the part of the body and the number of lesions. A report of a real
    image may state one of the facts by chance, but not all four in these sentences.
    """
    for item in predictions:
        stated = {fact.partition("=")[0] for fact in report_facts(item.answers[0])}
        if not stated >= ALWAYS_STATED:
            return f"exact facts are known for phantoms only, and the reference of {item.id!r} is not a phantom's"
    return ""


def score_facts(predictions: Sequence[Prediction]) -> dict[str, ItemScores]:
    """Return pooled fact precision, recall and F1 against the first reference, each per item.

    A fact is right when the reference states it too. precision = right / predicted, recall = right / in the
    references, F1 = 2 right / (predicted + in the references), each summed over all items (micro). An empty
    prediction states no fact and lowers the recall.
    """
    right, predicted, wanted = [], [], []
    for item in predictions:
        facts, reference = report_facts(item.prediction), report_facts(item.answers[0])
        right.append(float(len(facts & reference)))
        predicted.append(float(len(facts)))
        wanted.append(float(len(reference)))
    both = [p + w for p, w in zip(predicted, wanted, strict=True)]
    return {
        F1.name: ItemScores.of([2 * r for r in right], both),
        PRECISION.name: ItemScores.of(right, predicted),
        RECALL.name: ItemScores.of(right, wanted),
    }


def tokens_of(text: str) -> Counter[str]:
    """Return the words of a text with their counts, without case and punctuation."""
    return Counter(_TOKEN.findall(text.casefold()))


def most_central(bags: Sequence[Counter[str]]) -> int:
    """Return the position of the bag that, offered for every bag, has the highest pooled clipped F1.

    F1 = 2 common / (offered + there), counts summed over all bags, as in [`score_facts`]. Ties go to the first. More
    than 500 bags are thinned to 500 at equal steps.
    """
    positions = np.unique(np.linspace(0, len(bags) - 1, min(len(bags), CENTRAL_LIMIT)).astype(int))
    vocabulary = {word: at for at, word in enumerate(sorted({word for at in positions for word in bags[at]}))}
    counts = np.zeros((len(positions), max(len(vocabulary), 1)), dtype=np.int32)  # (bags, words)
    for at, position in enumerate(positions):
        for word, count in bags[position].items():
            counts[at, vocabulary[word]] = count
    sizes = counts.sum(axis=1)
    scores = [
        2 * np.minimum(counts, counts[at]).sum() / max((sizes + sizes[at]).sum(), 1) for at in range(len(positions))
    ]
    return int(positions[int(np.argmax(scores))])


def answer_with_constant(
    predictions: Sequence[Prediction], train: Sequence[Sample], *, by_facts: bool
) -> list[Prediction]:
    """Return the predictions with the most central training text in place of the model's.

    Central by the facts it states (`by_facts`), which makes it the training text with the highest factual F1 on up to
    500 training samples, or by its words.
    """
    texts = [sample.answers[0] for sample in train]
    bags = [Counter(report_facts(text)) if by_facts else tokens_of(text) for text in texts]
    constant = texts[most_central(bags)]
    return [replace(prediction, prediction=constant) for prediction in predictions]


def report_rows(
    predictions: Sequence[Prediction], controls: Mapping[str, Sequence[Prediction]], train: Sequence[Sample]
) -> list[Row]:
    """Return factual F1, precision and recall (null where the truth is not exact) and BLEU over all items.

    The first row is the headline: factual F1 where it is defined, else BLEU, which says little on its own: a constant
    report can score as high as a published model.
    """
    bleu = _bleu_row(predictions, controls, train)
    metrics = (F1, PRECISION, RECALL)
    reason = why_no_exact_facts(predictions)
    if reason:
        return [bleu] + [
            Row(metric.name, "overall", "", "", len(predictions), bleu.clusters, Score(None, reason=reason))
            for metric in metrics
        ]
    clusters = clusters_of(predictions)
    model = score_facts(predictions)
    constant = score_facts(answer_with_constant(predictions, train, by_facts=True)) if train else None
    scored_controls = {name: score_facts(items) for name, items in controls.items()}
    rows = [
        build_row(
            metric,
            model[metric.name],
            clusters=clusters,
            baselines={"constant_text": constant[metric.name] if constant else Undefined(NO_TRAIN_SAMPLES)},
            controls={name: scores[metric.name] for name, scores in scored_controls.items()},
            headline=True,
        )
        for metric in metrics
    ]
    return [*rows, bleu]


def corpus_bleu(predictions: Sequence[Prediction]) -> tuple[float, str]:
    """Return corpus BLEU as a share 0..1 against all references, and sacrebleu's signature of how it was computed."""
    from sacrebleu.metrics.bleu import BLEU

    most = max(len(item.answers) for item in predictions)
    references: list[list[Any]] = [  # None where an item has fewer references than another
        [item.answers[at] if at < len(item.answers) else None for item in predictions] for at in range(most)
    ]
    bleu = BLEU()
    score = bleu.corpus_score([item.prediction for item in predictions], references)
    return float(score.score) / 100, str(bleu.get_signature())


def _bleu_row(
    predictions: Sequence[Prediction], controls: Mapping[str, Sequence[Prediction]], train: Sequence[Sample]
) -> Row:
    value, signature = corpus_bleu(predictions)
    constant = Score(None, reason=NO_TRAIN_SAMPLES)
    if train:
        constant = Score(corpus_bleu(answer_with_constant(predictions, train, by_facts=False))[0])
    others = {name: Score(corpus_bleu(items)[0]) for name, items in controls.items()}
    differences = {
        name: Difference(None if other.value is None else value - other.value, reason=other.reason or BLEU_INTERVAL)
        for name, other in {"constant_text": constant, **others}.items()
    }
    return Row(
        metric="bleu",
        slice="overall",
        value="",
        answer_type="",
        items=len(predictions),
        clusters=len(set(clusters_of(predictions))),
        score=Score(value, reason=BLEU_INTERVAL),
        baselines={"constant_text": constant},
        controls=others,
        differences=differences,
        signature=signature,
    )

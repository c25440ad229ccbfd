# SPDX-License-Identifier: Apache-2.0
"""Visual question answering under our strict rules: accuracy by slice, and partial credit for open questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from ..answers import (
    MajorityBaseline,
    is_exact_match,
    normalize_answer,
    normalize_answer_type,
    parse_closed_answer,
)
from ..records import Prediction, Sample
from .intervals import ItemScores
from .results import Row
from .rows import NO_TRAIN_SAMPLES, Metric, Undefined, build_row, clusters_of
from .slices import Slice, vqa_slices

PROTOCOL = "pefomed-strict-vqa-1"
MODEL, MAJORITY = "model", "majority_answer"
ACCURACY = Metric("accuracy", is_proportion=True)
EXACT_MATCH = Metric("exact_match", is_proportion=True)
TOKEN_METRICS = tuple(Metric(f"token_{name}", is_proportion=False) for name in ("f1", "precision", "recall"))


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
    """Return 1 for each correct and 0 for each wrong answer, over 1 each.

    Accuracy is 0..1, higher is better; its denominator is all items, unparsed and empty answers among them.
    """
    marks = [score_answer(prediction) for prediction in predictions]
    return ItemScores.of([correct for correct, _ in marks], unparsed=[unparsed for _, unparsed in marks])


def score_exact_match(predictions: Sequence[Prediction]) -> ItemScores:
    """Return 1 for each answer that equals a reference when both are normalised, over 1 each, closed ones alike.

    0..1, higher is better. It differs from accuracy on closed questions only, where `Yes, on the left.` is no match.
    """
    return ItemScores.of([is_exact_match(item.prediction, item.answers) for item in predictions])


def token_overlap(prediction: str, reference: str) -> tuple[float, float, float]:
    """Return `(f1, precision, recall)` of the words of two texts, each 0..1, higher is better.

    The words are those of the normalised texts. A word is shared as often as both texts have it (clipped), so that
    repeating a right word gains nothing: precision = shared / words predicted, recall = shared / words of the
    reference, f1 = 2 shared / both. A blank prediction has 0 in all three.

    Source: the F1 of SQuAD (Rajpurkar et al. 2016). Differs: in the normaliser.
    """
    if not prediction.strip():
        return 0.0, 0.0, 0.0
    said, wanted = Counter(normalize_answer(prediction).split()), Counter(normalize_answer(reference).split())
    shared, words, expected = (said & wanted).total(), said.total(), wanted.total()
    return 2 * shared / (words + expected), shared / words, shared / expected


def score_tokens(predictions: Sequence[Prediction]) -> dict[str, ItemScores]:
    """Return token F1, precision and recall of each item against the reference with the highest F1, over 1 each.

    The number is the mean over items, the denominator the number of items. Ties between references go to the first.
    """
    best = [max((token_overlap(p.prediction, a) for a in p.answers), key=lambda found: found[0]) for p in predictions]
    return {metric.name: ItemScores.of([scores[at] for scores in best]) for at, metric in enumerate(TOKEN_METRICS)}


def answer_by_majority(predictions: Sequence[Prediction], train: Sequence[Sample]) -> list[Prediction]:
    """Return the predictions with the majority answer of the training samples in place of the model's."""
    majority = MajorityBaseline.fit(train)
    return [replace(prediction, prediction=majority.predict(prediction)) for prediction in predictions]


def vqa_rows(
    predictions: Sequence[Prediction],
    controls: Mapping[str, Sequence[Prediction]],
    train: Sequence[Sample],
    columns: Mapping[str, Sequence[str]] | None = None,
) -> list[Row]:
    """Return accuracy on every slice, then exact match, and partial credit on open questions.

    `controls` hold the same items in the same order. Laterality is a part of the closed `POS` questions, shown apart
    because an aggregate hides a model that cannot tell left from right. `columns` are a user's own slices.
    """
    clusters = clusters_of(predictions)
    systems = systems_of(predictions, controls, train)
    slices = vqa_slices(predictions, train, columns or {})
    by_kind = [part for part in slices if part.name in ("overall", "answer_type")]
    tokens = {name: score_tokens(items) if items else {} for name, items in systems.items()}

    def rows(metric: Metric, scores: Mapping[str, ItemScores | Undefined], chosen: Sequence[Slice]) -> list[Row]:
        return [build_slice_row(metric, scores, controls, clusters, part) for part in chosen]

    found = rows(ACCURACY, score_systems(systems, score_answers), slices)
    exact = [part for part in by_kind if part.answer_type in ("", "closed")]
    found += rows(EXACT_MATCH, score_systems(systems, score_exact_match), exact)
    for metric in TOKEN_METRICS:
        scores = {name: of[metric.name] if of else Undefined(NO_TRAIN_SAMPLES) for name, of in tokens.items()}
        found += rows(metric, scores, [part for part in by_kind if part.answer_type == "open"])
    return found


def systems_of(
    predictions: Sequence[Prediction], controls: Mapping[str, Sequence[Prediction]], train: Sequence[Sample]
) -> dict[str, Sequence[Prediction]]:
    """Return the answers of the model (`MODEL`), the majority baseline (empty without `train`) and each control."""
    majority = answer_by_majority(predictions, train) if train else []
    return {MODEL: predictions, MAJORITY: majority, **controls}


def score_systems(
    systems: Mapping[str, Sequence[Prediction]], score: Callable[[Sequence[Prediction]], ItemScores]
) -> dict[str, ItemScores | Undefined]:
    """Return each system's item scores, undefined for the baseline that has no training samples."""
    return {name: score(items) if items else Undefined(NO_TRAIN_SAMPLES) for name, items in systems.items()}


def build_slice_row(
    metric: Metric,
    scores: Mapping[str, ItemScores | Undefined],
    controls: Iterable[str],
    clusters: Sequence[str],
    part: Slice,
) -> Row:
    """Return the row of a slice from the scores of [`systems_of`]."""
    model = scores[MODEL]
    assert isinstance(model, ItemScores)
    return build_row(
        metric,
        model,
        clusters=clusters,
        baselines={MAJORITY: scores[MAJORITY]},
        controls={name: scores[name] for name in controls},
        positions=part.positions,
        slice=part.name,
        value=part.value,
        answer_type=part.answer_type,
        headline=part.is_headline,
    )

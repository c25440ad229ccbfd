# SPDX-License-Identifier: Apache-2.0
"""Reports and captions: facts where the truth is exact, lexical and clinical metrics, all beside a constant text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..records import Prediction, Sample
from .constant_text import constant_text
from .corpus_rows import undefined_row
from .intervals import ClusterBootstrap, ItemScores
from .phantom_facts import report_facts
from .results import Row
from .rows import NO_TRAIN_SAMPLES, Metric, Undefined, build_row, clusters_of
from .text_rows import CONSTANT, MODEL, TextModels, lexical_rows, model_rows

PROTOCOL = "pefomed-report-2"
PRECISION = Metric("fact_precision", is_proportion=False, reason="no fact was predicted")
RECALL = Metric("fact_recall", is_proportion=False, reason="no fact in the references")
F1 = Metric("fact_f1", is_proportion=False, reason="no fact, neither predicted nor in the references")
UNSUPPORTED = Metric("unsupported_sentences", is_proportion=False, reason="no report has a sentence")
ALWAYS_STATED = {"modality", "plane", "organ", "lesions"}


def report_rows(
    predictions: Sequence[Prediction],
    controls: Mapping[str, Sequence[Prediction]],
    train: Sequence[Sample],
    validation: Sequence[Sample] = (),
    text_models: TextModels | None = None,
) -> list[Row]:
    """Return the rows of reports or captions over all items, the headline first.

    The headline is factual F1 where the truth is exact, else BLEU-4, which says little on its own: a constant report
    can score as high as a published model. Every row has the constant text ([`constant_text`]) and the controls beside
    the model. All intervals resample images, and corpus numbers are computed again on each resample.
    """
    no_facts = why_no_exact_facts(predictions)
    systems = systems_of(predictions, controls, train, validation)
    bootstrap = ClusterBootstrap(clusters_of(predictions))
    lexical = lexical_rows(systems, bootstrap)
    facts = fact_rows(systems, no_facts, bootstrap)
    rows = [*lexical, *facts] if no_facts else [*facts, *lexical]
    rows += model_rows(systems, text_models or TextModels(), bootstrap)
    if any(item.sentence_support is not None for item in predictions):
        rows.append(support_row(systems))
    return rows


def systems_of(
    predictions: Sequence[Prediction],
    controls: Mapping[str, Sequence[Prediction]],
    train: Sequence[Sample],
    validation: Sequence[Sample] = (),
) -> dict[str, Sequence[Prediction]]:
    """Return the texts of the model (`MODEL`), of the constant baseline where there are `train`, and each control."""
    systems = {MODEL: predictions}
    if train:
        constant = constant_text(train, validation, by_facts=not why_no_exact_facts(predictions))
        systems[CONSTANT] = [replace(item, prediction=constant, sentence_support=None) for item in predictions]
    return {**systems, **controls}


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
    """Return pooled fact precision, recall and F1 against the first reference, each per item; 0..1, higher is better.

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


def fact_rows(systems: Mapping[str, Sequence[Prediction]], no_facts: str, bootstrap: ClusterBootstrap) -> list[Row]:
    """Return factual F1, precision and recall, null with the reason `no_facts` where that says something."""
    items = systems[MODEL]
    metrics = [replace(metric, signature="refs:first|agg:micro") for metric in (F1, PRECISION, RECALL)]
    if no_facts:
        return [undefined_row(metric, no_facts, items=len(items), bootstrap=bootstrap) for metric in metrics]
    scored = {name: score_facts(texts) for name, texts in systems.items()}
    constant = scored.get(CONSTANT)
    return [
        build_row(
            metric,
            scored[MODEL][metric.name],
            clusters=clusters_of(items),
            baselines={CONSTANT: constant[metric.name] if constant else Undefined(NO_TRAIN_SAMPLES)},
            controls={name: scored[name][metric.name] for name in systems if name not in (MODEL, CONSTANT)},
            headline=True,
        )
        for metric in metrics
    ]


def support_row(systems: Mapping[str, Sequence[Prediction]]) -> Row:
    """Return the share of sentences that the image made less likely, 0..1, lower is better.

    A sentence counts where log p(sentence | image) - log p(sentence | blank image) is below 0: the model would rather
    have written it without seeing anything. The denominator is all sentences of the reports that carry
    `sentence_support`; a report without a sentence adds none. The constant text is nobody's sentence.
    """
    model = systems[MODEL]
    scores = {name: _unsupported(items) for name, items in systems.items() if name != CONSTANT}
    carried = {
        name: scores[name]
        if any(item.sentence_support is not None for item in systems[name])
        else Undefined("its predictions carry no sentence_support")
        for name in scores
        if name != MODEL
    }
    return build_row(
        UNSUPPORTED, scores[MODEL], clusters=clusters_of(model), baselines={}, controls=carried, headline=True
    )


def _unsupported(items: Sequence[Prediction]) -> ItemScores:
    supports = [item.sentence_support or [] for item in items]
    return ItemScores.of([sum(value < 0 for value in each) for each in supports], [len(each) for each in supports])

# SPDX-License-Identifier: Apache-2.0
"""Rows of the numbers of whole texts: BLEU, ROUGE-L, CIDEr, METEOR, and those that need a model of language."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from ..errors import ConfigError
from ..records import Prediction
from .cider import TOO_FEW, cider
from .corpus_rows import Number, number_row, numbers_of, undefined_row
from .intervals import ClusterBootstrap
from .java import METEOR, JavaUnavailableError, meteor, ptb_words
from .java import TOKENIZER as JAVA_TOKENIZER
from .results import Row
from .rows import NO_TRAIN_SAMPLES, Metric
from .text_metrics import Values, Words, bleu, rouge_l
from .text_models import Found, bert_score_numbers, clinical_numbers
from .tokens import TOKENIZER, report_tokens

MODEL, CONSTANT = "model", "constant_text"


@dataclass(frozen=True)
class TextModels:
    """Which metrics that need a model of language are wanted: none, unless an encoder or a Python is named.

    Args:
        bert_score_model: the encoder of BERTScore, a folder or a name that bert-score knows.
        clinical_python: the interpreter of an environment with `radeval`.
        clinical_metrics: which of RadEval's metrics; see [`clinical_numbers`].

    Raises:
        ConfigError: clinical metrics are named, and no Python that can compute them.
    """

    bert_score_model: str | None = None
    clinical_python: str | os.PathLike[str] | None = None
    clinical_metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.clinical_metrics and not self.clinical_python:
            raise ConfigError(
                f"clinical metric {self.clinical_metrics[0]!r} found without a Python to compute it; give "
                "--clinical-python PATH, the interpreter of an environment that has radeval"
            )


def lexical_rows(systems: Mapping[str, Sequence[Prediction]], bootstrap: ClusterBootstrap) -> list[Row]:
    """Return BLEU-4 to 1, ROUGE-L, CIDEr and METEOR against all references; see the function of each.

    All but METEOR are of the words of [`report_tokens`]. METEOR is of the COCO tools' own words, and null with the
    reason where Java or the extra `[coco]` is missing: nothing else takes its place.
    """
    items = systems[MODEL]
    references = [[report_tokens(text) for text in item.answers] for item in items]
    said = {name: [report_tokens(item.prediction) for item in texts] for name, texts in systems.items()}
    words = f"tok:{TOKENIZER}|clean:none|refs:all"
    ours = f"lib:pefomed {_version('pefomed')}"
    of_bleu = f"{words}|smooth:none|agg:corpus|lib:sacrebleu {_version('sacrebleu')}"
    metrics = [Metric(f"bleu_{order}", False, signature=of_bleu) for order in (4, 3, 2, 1)]
    metrics.append(Metric("rouge_l", False, signature=f"{words}|beta:1.2|agg:mean|{ours}"))
    metrics.append(Metric("rouge_l_f1", False, signature=f"{words}|beta:1|agg:mean|{ours}"))
    of_cider = "idf:scored references|stem:no|agg:mean"
    metrics.append(Metric("cider_d", False, TOO_FEW, f"{words}|{of_cider}|clip:yes|sigma:6|{ours}"))
    metrics.append(Metric("cider", False, TOO_FEW, f"{words}|{of_cider}|clip:no|length penalty:no|{ours}"))

    numbers: dict[str, dict[str, Number]] = {}
    families: list[Callable[[Sequence[Words], Sequence[Sequence[Words]]], Values]] = [bleu, rouge_l, cider]
    for name, hypotheses in said.items():
        numbers[name] = {}
        for family in families:
            numbers[name] |= numbers_of(family(hypotheses, references), len(items), bootstrap, TOO_FEW)
    rows = [
        _row(metric, {name: of[metric.name] for name, of in numbers.items()}, len(items), bootstrap)
        for metric in metrics
    ]
    return [*rows, meteor_row(systems, bootstrap)]


def meteor_row(systems: Mapping[str, Sequence[Prediction]], bootstrap: ClusterBootstrap) -> Row:
    """Return METEOR 1.5 of the COCO tools' own words, null with the reason where Java cannot compute it."""
    items = systems[MODEL]
    library = f"lib:pycocoevalcap {_version('pycocoevalcap')}"
    metric = Metric(
        "meteor", False, signature=f"tok:{JAVA_TOKENIZER}|clean:none|refs:all|{METEOR}|agg:pooled|{library}"
    )
    texts = [text for item in items for text in item.answers]
    texts += [item.prediction for each in systems.values() for item in each]
    try:
        words = iter(ptb_words(texts))
        references = [[next(words) for _ in item.answers] for item in items]
        said = {name: [next(words) for _ in each] for name, each in systems.items()}
        values = meteor(said, references)
    except JavaUnavailableError as error:
        return undefined_row(Metric("meteor", False), str(error), items=len(items), bootstrap=bootstrap)
    numbers = {name: numbers_of(each, len(items), bootstrap)["meteor"] for name, each in values.items()}
    return _row(metric, numbers, len(items), bootstrap)


def model_rows(
    systems: Mapping[str, Sequence[Prediction]], text_models: TextModels, bootstrap: ClusterBootstrap
) -> list[Row]:
    """Return BERTScore and the clinical numbers as far as they are asked for, null with the reason where they fail."""
    runs: list[tuple[Found, dict[str, str]]] = []
    if text_models.bert_score_model:
        runs.append(bert_score_numbers(text_models.bert_score_model, systems, bootstrap))
    if text_models.clinical_python:
        runs.append(clinical_numbers(text_models.clinical_python, text_models.clinical_metrics, systems, bootstrap))
    items = len(systems[MODEL])
    rows = []
    for found, reasons in runs:
        for name, (signature, numbers) in found.items():
            rows.append(_row(Metric(name, False, signature=signature), numbers, items, bootstrap))
        for name, reason in reasons.items():
            rows.append(undefined_row(Metric(name, False), reason, items=items, bootstrap=bootstrap))
    return rows


def _row(metric: Metric, numbers: Mapping[str, Number], items: int, bootstrap: ClusterBootstrap) -> Row:
    return number_row(
        metric,
        numbers.get(MODEL, Number(None, reason=metric.reason)),
        items=items,
        bootstrap=bootstrap,
        baselines={CONSTANT: numbers.get(CONSTANT, Number(None, reason=NO_TRAIN_SAMPLES))},
        controls={name: number for name, number in numbers.items() if name not in (MODEL, CONSTANT)},
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:  # PackageNotFoundError: a clone that is not installed
        return "not installed"

# SPDX-License-Identifier: Apache-2.0
"""Reports and captions by slice: the number that is a sum over items, so that a part of them can be scored alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records import Prediction
from .accuracy import TOKEN_METRICS, score_tokens
from .reports import F1, score_facts, why_no_exact_facts
from .results import Row
from .rows import NO_TRAIN_SAMPLES, Undefined, build_row, clusters_of
from .slices import common_slices
from .text_rows import CONSTANT, MODEL


def text_slice_rows(
    systems: Mapping[str, Sequence[Prediction]], columns: Mapping[str, Sequence[str]] | None = None
) -> list[Row]:
    """Return factual F1, or token F1 where the truth is not exact, on each slice of [`common_slices`].

    Corpus numbers are not sliced: CIDEr counts words over all references, and BLEU pools its n-grams.
    """
    model = systems[MODEL]
    metric, score = (TOKEN_METRICS[0], score_tokens) if why_no_exact_facts(model) else (F1, score_facts)
    parts = common_slices(model, columns or {})
    scored = {name: score(items)[metric.name] for name, items in systems.items()} if parts else {}
    return [
        build_row(
            metric,
            scored[MODEL],
            clusters=clusters_of(model),
            baselines={CONSTANT: scored.get(CONSTANT, Undefined(NO_TRAIN_SAMPLES))},
            controls={name: scores for name, scores in scored.items() if name not in (MODEL, CONSTANT)},
            positions=part.positions,
            slice=part.name,
            value=part.value,
        )
        for part in parts
    ]

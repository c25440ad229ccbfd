# SPDX-License-Identifier: Apache-2.0
"""From what each item adds to a number to a row of the results: the model beside its baselines and controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..records import Prediction
from .intervals import ClusterBootstrap, ItemScores, wilson_interval
from .results import Difference, Row, Score

NO_TRAIN_SAMPLES = "no training samples were given"
ONE_CLUSTER = "no interval: fewer than two clusters (images)"


@dataclass(frozen=True)
class Undefined:
    """Stands for the item scores of a baseline that could not be computed, and says why."""

    reason: str


@dataclass(frozen=True)
class Metric:
    """A number's name, whether it is a share of items (then Wilson's interval applies), and its signature.

    `reason` says why the number is undefined where its denominator is 0.
    """

    name: str
    is_proportion: bool
    reason: str = "no item"
    signature: str = ""


def clusters_of(predictions: Iterable[Prediction]) -> list[str]:
    """Return the cluster of each item: its image, else its study; an item with neither is a cluster of its own."""
    return [
        f"image {p.image_id}" if p.image_id else f"study {p.study_id}" if p.study_id else f"item {p.id}"
        for p in predictions
    ]


def build_row(
    metric: Metric,
    model: ItemScores,
    *,
    clusters: Sequence[str],
    baselines: Mapping[str, ItemScores | Undefined] | None = None,
    controls: Mapping[str, ItemScores | Undefined] | None = None,
    positions: Sequence[int] | None = None,
    slice: str = "overall",
    value: str = "",
    answer_type: str = "",
    headline: bool = False,
) -> Row:
    """Return one row over the items at `positions` (all when `None`).

    A number that is no share of items has an interval over images. A `headline` row has one in any case, and the
    paired differences of the model to each baseline and control.
    """
    taken = np.arange(len(clusters)) if positions is None else np.asarray(positions, dtype=np.intp)
    kept_clusters = [clusters[at] for at in taken]
    bootstrap = ClusterBootstrap(kept_clusters) if headline or not metric.is_proportion else None

    def take(scores: ItemScores | Undefined) -> ItemScores | Undefined:
        return scores if isinstance(scores, Undefined) else scores.take(taken)

    chosen = model.take(taken)
    named_baselines = {name: take(scores) for name, scores in (baselines or {}).items()}
    named_controls = {name: take(scores) for name, scores in (controls or {}).items()}
    row = Row(
        metric=metric.name,
        slice=slice,
        value=value,
        answer_type=answer_type,
        items=len(taken),
        clusters=len(set(kept_clusters)),
        score=_score(metric, chosen, bootstrap),
        baselines={name: _score(metric, scores, bootstrap) for name, scores in named_baselines.items()},
        controls={name: _score(metric, scores, bootstrap) for name, scores in named_controls.items()},
        signature=metric.signature,
    )
    if headline and bootstrap is not None:
        row.differences = {
            name: _difference(metric, chosen, scores, bootstrap)
            for name, scores in {**named_baselines, **named_controls}.items()
        }
    return row


def _score(metric: Metric, scores: ItemScores | Undefined, bootstrap: ClusterBootstrap | None) -> Score:
    if isinstance(scores, Undefined):
        return Score(value=None, reason=scores.reason)
    numerator, denominator = float(scores.numerators.sum()), float(scores.denominators.sum())
    unparsed = int(scores.unparsed.sum())
    if denominator == 0:
        return Score(None, numerator, denominator, unparsed=unparsed, reason=metric.reason)
    cluster_interval = bootstrap.interval(scores) if bootstrap else None
    return Score(
        value=numerator / denominator,
        numerator=numerator,
        denominator=denominator,
        interval=wilson_interval(numerator, denominator) if metric.is_proportion else None,
        cluster_interval=cluster_interval,
        unparsed=unparsed,
        reason=ONE_CLUSTER if bootstrap and cluster_interval is None else "",
    )


def _difference(
    metric: Metric, model: ItemScores, other: ItemScores | Undefined, bootstrap: ClusterBootstrap
) -> Difference:
    if isinstance(other, Undefined):
        return Difference(None, reason=other.reason)
    if not model.denominators.sum() or not other.denominators.sum():
        return Difference(None, reason=metric.reason)
    value = model.numerators.sum() / model.denominators.sum() - other.numerators.sum() / other.denominators.sum()
    interval = bootstrap.difference(model, other)
    return Difference(float(value), interval, "" if interval else ONE_CLUSTER)

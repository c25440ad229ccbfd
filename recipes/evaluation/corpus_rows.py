# SPDX-License-Identifier: Apache-2.0
"""From numbers over a corpus, as BLEU is, to rows of the results: computed again on each resample of the items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import ClusterBootstrap, Floats
from .results import Difference, Row, Score
from .rows import ONE_CLUSTER, Metric
from .text_metrics import Values


@dataclass(frozen=True)
class Number:
    """One system's number. `draws` is its value in each resample, NaN where it is not defined there; `None` without.

    `reason` says why there is no value, or no interval.
    """

    value: float | None
    draws: Floats | None = None
    reason: str = ""


def numbers_of(values: Values, items: int, bootstrap: ClusterBootstrap, reason: str = "") -> dict[str, Number]:
    """Return each number of one system on all items, and on the resamples of `bootstrap`.

    Args:
        reason: says why a number is not defined where it is NaN.
    """
    weights = np.ones((1, items))
    if bootstrap.clusters > 1:
        weights = np.concatenate([weights, bootstrap.item_weights()])
    return {
        name: Number(
            None if math.isnan(column[0]) else float(column[0]),
            column[1:] if bootstrap.clusters > 1 else None,
            reason if math.isnan(column[0]) else "" if bootstrap.clusters > 1 else ONE_CLUSTER,
        )
        for name, column in values(weights).items()
    }


def number_row(
    metric: Metric,
    model: Number,
    *,
    items: int,
    bootstrap: ClusterBootstrap,
    baselines: Mapping[str, Number],
    controls: Mapping[str, Number],
) -> Row:
    """Return one row over all items, with intervals over clusters and paired differences."""
    return Row(
        metric=metric.name,
        slice="overall",
        value="",
        answer_type="",
        items=items,
        clusters=bootstrap.clusters,
        score=_score(model, bootstrap),
        baselines={name: _score(number, bootstrap) for name, number in baselines.items()},
        controls={name: _score(number, bootstrap) for name, number in controls.items()},
        differences={
            name: _difference(model, number, bootstrap) for name, number in {**baselines, **controls}.items()
        },
        signature=metric.signature,
    )


def undefined_row(metric: Metric, reason: str, *, items: int, bootstrap: ClusterBootstrap) -> Row:
    """Return the row of a number that is not defined, and says why."""
    return number_row(metric, Number(None, reason=reason), items=items, bootstrap=bootstrap, baselines={}, controls={})


def mean_number(values: Sequence[float], bootstrap: ClusterBootstrap) -> Number:
    """Return the mean of one value an item."""
    column = np.asarray(values, dtype=np.float64)
    return numbers_of(lambda weights: {"mean": weights @ column / weights.sum(axis=1)}, len(column), bootstrap)["mean"]


def _score(number: Number, bootstrap: ClusterBootstrap) -> Score:
    if number.value is None or number.draws is None:
        return Score(number.value, reason=number.reason)
    return Score(number.value, cluster_interval=bootstrap.percentiles(number.draws), reason=number.reason)


def _difference(model: Number, other: Number, bootstrap: ClusterBootstrap) -> Difference:
    reason = model.reason or other.reason
    if model.value is None or other.value is None:
        return Difference(None, reason=reason)
    interval = None
    if model.draws is not None and other.draws is not None:
        interval = bootstrap.percentiles(model.draws - other.draws, "paired bootstrap")
    return Difference(model.value - other.value, interval, "" if interval else reason)

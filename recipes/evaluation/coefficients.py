# SPDX-License-Identifier: Apache-2.0
"""Coefficients of agreement, each computed for many resamples at once.

Two parties' scores of the same items are a table of counts: `table[u, v]` items got level u by the first and v by the
second. A resample of images only changes the counts, so every function takes a batch of tables (B, U, V) and returns B
numbers, in float64. A number that is not defined is NaN.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from .intervals import CONFIDENCE, RESAMPLES, SEED, ClusterBootstrap

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
CELLS_AT_ONCE = 200_000  # of tables, so that a batch of them stays in the processor's cache


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval `low`..`high` over whole images, or null with the reason."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


class Draws:
    """How often each cluster (image) is drawn: once each in the first draw, which gives the number itself, then as
    [`ClusterBootstrap`] draws them.

    Args:
        clusters: the cluster of each item. The same draws serve all numbers, which pairs their differences.
    """

    def __init__(self, clusters: Sequence[str], *, seed: int = SEED, resamples: int = RESAMPLES) -> None:
        names, inverse = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        self.of_item: Ints = inverse.astype(np.intp)
        self.clusters = len(names)
        self._bootstrap = ClusterBootstrap(names.tolist(), seed=seed, resamples=resamples)

    @cached_property
    def weights(self) -> Floats:
        """(1 + resamples, clusters)."""
        if self.clusters < 2:
            return np.ones((1, self.clusters))
        return np.concatenate([np.ones((1, self.clusters)), self._bootstrap.item_weights()])

    def without_resamples(self) -> Draws:
        """Return draws that give the numbers themselves, at once and without intervals."""
        point = copy.copy(self)
        point.weights = self.weights[:1]
        return point

    def sums(self, values: Floats, items: Ints) -> Floats:
        """Return the sums over the drawn items of `values` (n, ...) of the items at `items` (n,): (B, ...)."""
        by_cluster = np.zeros((self.clusters, *values.shape[1:]))
        np.add.at(by_cluster, self.of_item[items], values)
        return np.tensordot(self.weights, by_cluster, axes=1)


def estimate(values: Floats, reason: str) -> Estimate:
    """Return the first of `values` (B,), the number itself, with the percentile interval of the rest.

    Null with `reason` where the first is NaN. Resamples in which the number is not defined are left out; where they
    are more than one in ten, there is no interval.
    """
    if not np.isfinite(values[0]):
        return Estimate(None, reason=reason)
    drawn = values[1:][np.isfinite(values[1:])]
    if len(values) == 1:
        return Estimate(float(values[0]), reason="no interval: fewer than two images, or not resampled")
    if len(drawn) < 0.9 * len(values[1:]):
        return Estimate(float(values[0]), reason="no interval: not defined in more than a tenth of the resamples")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(float(values[0]), float(low), float(high))


def pair_measures(
    first: Floats, second: Floats, draws: Draws, levels: int | None, items: Ints | None = None
) -> dict[str, Floats]:
    """Return every measure of two parties on the items that both scored: name -> (B,).

    Args:
        first, second: the scores of all items, NaN where there is none.
        levels: the number of levels 0, 1, ... of a common scale. `None` where the first is no score on that scale (a
            metric): only the rank correlations are defined then.
        items: positions of the items to look at; all by default.
    """
    chosen = np.arange(len(first)) if items is None else items
    chosen = chosen[np.isfinite(first[chosen]) & np.isfinite(second[chosen])]
    if not len(chosen):
        return {}
    if levels is not None:
        rows, columns = first[chosen].astype(np.intp), second[chosen].astype(np.intp)
        shape = (levels, levels)
    else:
        (u, rows), (v, columns) = (np.unique(x[chosen], return_inverse=True) for x in (first, second))
        shape = (len(u), len(v))
    cells = rows * shape[1] + columns
    used, cell = np.unique(cells, return_inverse=True)
    ones = np.ones(len(chosen))
    by_cluster = coo_array((ones, (draws.of_item[chosen], cell)), shape=(draws.clusters, len(used))).tocsr()
    parts: list[dict[str, Floats]] = []
    step = max(1, CELLS_AT_ONCE // (shape[0] * shape[1]))
    for start in range(0, len(draws.weights), step):
        weights = draws.weights[start : start + step]
        flat = np.zeros((len(weights), shape[0] * shape[1]))
        flat[:, used] = weights @ by_cluster
        table = flat.reshape(-1, *shape)
        found = {"tau_b": kendall_tau_b(table), "spearman": spearman(table)}
        if levels is not None:
            found |= {
                "raw_agreement": raw_agreement(table),
                "kappa": cohen_kappa(table, "none"),
                "kappa_linear": cohen_kappa(table, "linear"),
                "kappa_quadratic": cohen_kappa(table, "quadratic"),
                "bias": signed_bias(table),
            }
        parts.append(found)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def raw_agreement(table: Floats) -> Floats:
    """Return the share of items with equal scores, 0..1, higher is better; NaN without items."""
    return _divide(np.trace(table, axis1=1, axis2=2), table.sum((1, 2)))


def signed_bias(table: Floats) -> Floats:
    """Return the mean of first minus second, in points of the scale; above 0 the first scores higher."""
    levels = np.arange(table.shape[1])
    return _divide((table * (levels[:, None] - levels)).sum((1, 2)), table.sum((1, 2)))


def cohen_kappa(table: Floats, weights: str) -> Floats:
    """Return Cohen's kappa, 1 - observed / expected disagreement: at most 1, 0 is what chance gives.

    `weights` of a disagreement by d levels: `none` 1 for any, `linear` d, `quadratic` d². NaN without items, and where
    chance expects no disagreement because both gave one and the same level to everything.

    Source: Cohen 1960, 1968.
    """
    levels = np.arange(table.shape[1])
    apart = np.abs(levels[:, None] - levels).astype(float)
    cost = {"none": (apart > 0).astype(float), "linear": apart, "quadratic": apart**2}[weights]
    items = table.sum((1, 2))
    expected = table.sum(2)[:, :, None] * table.sum(1)[:, None, :]
    return 1 - _divide((table * cost).sum((1, 2)) * items, (expected * cost).sum((1, 2)))


def kendall_tau_b(table: Floats) -> Floats:
    """Return Kendall's tau-b, -1..1: concordant minus discordant pairs of items, over the mean of the untied ones.

    Pairs tied in the first or second count in neither; the denominator is the geometric mean of the pairs not tied in
    the first and those not tied in the second. NaN where either is constant.

    Source: Kendall 1945.
    """
    signed = _concordant(table) - _concordant(table[:, :, ::-1])
    items = table.sum((1, 2))
    untied = [(items**2 - (table.sum(axis) ** 2).sum(1)) / 2 for axis in (2, 1)]
    return _divide(signed, np.sqrt(untied[0] * untied[1]))


def spearman(table: Floats) -> Floats:
    """Return Spearman's rho, -1..1: Pearson's correlation of mean ranks. NaN where either is constant.

    Source: Spearman 1904.
    """
    ranks = []
    for axis in (2, 1):
        counts = table.sum(axis)
        middle = counts.cumsum(1) - (counts - 1) / 2
        ranks.append(middle - (table.sum((1, 2))[:, None] + 1) / 2)  # minus the mean rank
    together = np.einsum("buv,bu,bv->b", table, ranks[0], ranks[1])
    spread = [(table.sum(axis) * rank**2).sum(1) for axis, rank in zip((2, 1), ranks, strict=True)]
    return _divide(together, np.sqrt(spread[0] * spread[1]))


def krippendorff_alpha(scores: Floats, levels: int, draws: Draws, items: Ints | None = None) -> dict[str, Floats]:
    """Return Krippendorff's alpha of `scores` (items, raters), NaN = not rated: `nominal`, `ordinal`, `interval`.

    1 - observed / expected disagreement over all pairs of scores of the same item: at most 1, 0 is what chance gives.
    Items with fewer than two scores have no pair and do not count. NaN without pairs, and where all scores are equal.

    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability.
    """
    chosen = np.arange(len(scores)) if items is None else items
    counts = (scores[chosen][:, :, None] == np.arange(levels)).sum(1).astype(float)  # (n, levels)
    ratings = counts.sum(1)
    paired = ratings >= 2
    counts, ratings, chosen = counts[paired], ratings[paired], chosen[paired]
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs[:, np.arange(levels), np.arange(levels)] -= counts
    coincidences = draws.sums(pairs / (ratings - 1)[:, None, None], chosen)  # (B, levels, levels)
    margin = coincidences.sum(2)
    total = margin.sum(1)
    expected = margin[:, :, None] * margin[:, None, :]
    up_to = margin.cumsum(1)
    low = np.minimum.outer(np.arange(levels), np.arange(levels))
    high = np.maximum.outer(np.arange(levels), np.arange(levels))
    between = up_to[:, high] - up_to[:, low] + margin[:, low]  # all scores from the lower level to the higher
    ordinal = (between - (margin[:, low] + margin[:, high]) / 2) ** 2
    apart = (high - low).astype(float)
    distances = {"nominal": (apart > 0).astype(float)[None], "ordinal": ordinal, "interval": (apart**2)[None]}
    return {
        name: 1 - _divide((total - 1) * (coincidences * d).sum((1, 2)), (expected * d).sum((1, 2)))
        for name, d in distances.items()
    }


def icc_agreement(scores: Floats, draws: Draws, items: Ints | None = None) -> tuple[Floats, Floats]:
    """Return ICC(A,1) and ICC(A,k): absolute agreement of one rater, and of the mean of all k raters, at most 1.

    `scores` is (items, raters); only items that all of them scored count. A rater who is always one point higher
    lowers it. NaN with fewer than two such items or raters, and where all scores are equal.

    Source: McGraw and Wong 1996, two-way, absolute agreement; ICC(2,1) and ICC(2,k) of Shrout and Fleiss 1979.
    """
    chosen = np.arange(len(scores)) if items is None else items
    chosen = chosen[np.isfinite(scores[chosen]).all(1)]
    raters = scores.shape[1]
    if raters < 2 or len(chosen) < 2:
        nothing = np.full(len(draws.weights), np.nan)
        return nothing, nothing
    x = scores[chosen]
    terms = np.concatenate([np.ones((len(x), 1)), (x**2).sum(1)[:, None], (x.sum(1) ** 2)[:, None], x], axis=1)
    sums = draws.sums(terms, chosen)
    n, squares, row_squares, columns = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:]
    center = _divide(columns.sum(1) ** 2, n * raters)
    between_rows = row_squares / raters - center
    between_columns = _divide((columns**2).sum(1), n) - center
    error = squares - center - between_rows - between_columns
    msr, msc = _divide(between_rows, n - 1), between_columns / (raters - 1)
    mse = _divide(error, (n - 1) * (raters - 1))
    single = _divide(msr - mse, msr + (raters - 1) * mse + raters * _divide(msc - mse, n))
    average = _divide(msr - mse, msr + _divide(msc - mse, n))
    return single, average


def _concordant(table: Floats) -> Floats:
    """Return the number of pairs of items in which the one is higher by both: (B,)."""
    below = table.cumsum(1).cumsum(2)[:, :-1, :-1]
    return (table[:, 1:, 1:] * below).sum((1, 2))


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Return the quotient, NaN where the denominator is 0 up to rounding."""
    zero = np.abs(denominator) < 1e-9
    return np.where(zero, np.nan, numerator / np.where(zero, 1, denominator))

# SPDX-License-Identifier: Apache-2.0
"""Intervals: Wilson for a share of independent items, a bootstrap over whole images for everything else.

Questions about one image share its luck, so an interval that takes them as independent is too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .results import Interval, Resampling

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
SEED = 0
RESAMPLES = 2000


@dataclass(frozen=True)
class ItemScores:
    """What each item adds to a number of one system, in the items' order.

    The number is `numerators.sum() / denominators.sum()`: 0/1 over 1 for accuracy, IoU over 1 for mean IoU, pooled
    counts for precision. `unparsed` marks replies that no rule could read; they stay in the denominator.
    """

    numerators: Floats
    denominators: Floats
    unparsed: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        numerators: Sequence[float],
        denominators: Sequence[float] | None = None,
        unparsed: Sequence[bool] | None = None,
    ) -> ItemScores:
        """Build from plain sequences; without `denominators` each item counts 1."""
        count = len(numerators)
        return cls(
            np.asarray(numerators, dtype=np.float64),
            np.ones(count) if denominators is None else np.asarray(denominators, dtype=np.float64),
            np.zeros(count, dtype=bool) if unparsed is None else np.asarray(unparsed, dtype=bool),
        )

    def take(self, positions: npt.NDArray[np.intp]) -> ItemScores:
        """Return the items at `positions` (integers)."""
        return ItemScores(self.numerators[positions], self.denominators[positions], self.unparsed[positions])


def wilson_interval(successes: float, items: float) -> Interval | None:
    """Return Wilson's 95 % interval of a share of independent items, or `None` without items.

    Source: Wilson 1927, by statsmodels' `proportion_confint`.
    """
    if items == 0:
        return None
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, items, alpha=1 - CONFIDENCE, method="wilson")
    return Interval(float(low), float(high), "Wilson, items taken as independent")


class ClusterBootstrap:
    """Percentile intervals from resamples of whole clusters (images).

    Args:
        clusters: the cluster of each item. Clusters are sorted, so that the order of the items does not matter.
        seed, resamples: of the multinomial draws. The same draws serve every call, which pairs the systems.
    """

    def __init__(self, clusters: Sequence[str], *, seed: int = SEED, resamples: int = RESAMPLES) -> None:
        names, self._cluster_of_item = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        self.clusters = len(names)
        self.seed = seed
        self.resamples = resamples

    @cached_property
    def _weights(self) -> Floats:
        """How often each cluster is drawn: (resamples, clusters)."""
        rng = np.random.default_rng(self.seed)
        share = np.full(self.clusters, 1 / self.clusters)
        return rng.multinomial(self.clusters, share, size=self.resamples).astype(np.float64)

    def _resampled(self, scores: ItemScores) -> Floats:
        """Return the number in each resample, NaN where its denominator is 0: (resamples,)."""
        sums = np.stack(
            [
                np.bincount(self._cluster_of_item, weights=values, minlength=self.clusters)
                for values in (scores.numerators, scores.denominators)
            ],
            axis=1,
        )  # (clusters, 2)
        drawn = self._weights @ sums  # (resamples, 2)
        return np.divide(drawn[:, 0], drawn[:, 1], out=np.full(len(drawn), np.nan), where=drawn[:, 1] > 0)

    def _percentiles(self, values: Floats, kind: str) -> Interval | None:
        values = values[~np.isnan(values)]
        if self.clusters < 2 or not len(values):
            return None
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        method = f"{kind} over {self.clusters} clusters, {self.resamples} resamples, seed {self.seed}"
        return Interval(float(low), float(high), method)

    def interval(self, scores: ItemScores) -> Interval | None:
        """Return the interval of one system's number, or `None` with fewer than two clusters."""
        return self._percentiles(self._resampled(scores), "bootstrap") if self.clusters > 1 else None

    def difference(self, scores: ItemScores, other: ItemScores) -> Interval | None:
        """Return the interval of `scores` minus `other`, both taken from the same resamples."""
        if self.clusters < 2:
            return None
        return self._percentiles(self._resampled(scores) - self._resampled(other), "paired bootstrap")


def describe_resampling(cluster: str) -> Resampling:
    """Return the settings that [`ClusterBootstrap`] uses, for the results file."""
    return Resampling(seed=SEED, resamples=RESAMPLES, confidence=CONFIDENCE, cluster=cluster)

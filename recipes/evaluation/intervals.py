# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests: Wilson for a share of independent items, resamples of whole images for everything else.

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
PERMUTATIONS = 9999
PERMUTATION_CELLS = 2**22  # places exchanged at once: bounds the memory


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

    def item_weights(self) -> Floats:
        """Return how often each item is drawn: (resamples, items)."""
        return self._weights[:, self._cluster_of_item]

    def sums(self, columns: Sequence[Floats]) -> Floats:
        """Return the sum of each column over the items of each resample: (resamples, columns).

        A number that is made of sums, as a ratio is, is recomputed on each resample from what this returns.
        """
        by_cluster = np.stack(
            [np.bincount(self._cluster_of_item, weights=column, minlength=self.clusters) for column in columns], axis=1
        )
        return self._weights @ by_cluster  # (resamples, clusters) @ (clusters, columns)

    def _resampled(self, scores: ItemScores) -> Floats:
        """Return the number in each resample, NaN where its denominator is 0: (resamples,)."""
        drawn = self.sums([scores.numerators, scores.denominators])
        return np.divide(drawn[:, 0], drawn[:, 1], out=np.full(len(drawn), np.nan), where=drawn[:, 1] > 0)

    def percentiles(self, values: Floats, kind: str = "bootstrap") -> Interval | None:
        """Return the 95 % interval of a number from its value in each resample, NaN where it is not defined there."""
        values = values[~np.isnan(values)]
        if self.clusters < 2 or not len(values):
            return None
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        method = f"{kind} over {self.clusters} clusters, {self.resamples} resamples, seed {self.seed}"
        return Interval(float(low), float(high), method)

    def interval(self, scores: ItemScores) -> Interval | None:
        """Return the interval of one system's number, or `None` with fewer than two clusters."""
        return self.percentiles(self._resampled(scores)) if self.clusters > 1 else None

    def difference(self, scores: ItemScores, other: ItemScores) -> Interval | None:
        """Return the interval of `scores` minus `other`, both taken from the same resamples."""
        if self.clusters < 2:
            return None
        return self.percentiles(self._resampled(scores) - self._resampled(other), "paired bootstrap")


def paired_permutation(first: ItemScores, second: ItemScores, clusters: Sequence[str]) -> float | None:
    """Return the two-sided p-value (0..1) of the difference of two systems' numbers on the same items.

    Under the null hypothesis it does not matter which system gave which answers to an image, so the two are exchanged
    for whole clusters: all ways where there are few, else 9,999 random ones, with p = (at least as far + 1) /
    (resamples + 1). `None` with fewer than two clusters or where a number is not defined.

    Source: scipy.stats.permutation_test, `permutation_type="samples"`.
    """
    from scipy.stats import permutation_test

    names, cluster_of_item = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if len(names) < 2 or not first.denominators.sum() or not second.denominators.sum():
        return None
    numerators, denominators = (
        np.concatenate([np.bincount(cluster_of_item, weights=part, minlength=len(names)) for part in parts])
        for parts in ((first.numerators, second.numerators), (first.denominators, second.denominators))
    )

    # A cluster on which the systems are alike adds the same whichever way: only the others are exchanged.
    places = np.arange(len(names))
    other_places = places + len(names)
    differ = (numerators[places] != numerators[other_places]) | (denominators[places] != denominators[other_places])
    alike, places, other_places = places[~differ], places[differ], other_places[differ]
    if len(places) < 2:
        return 1.0
    numerator, denominator = numerators[alike].sum(), denominators[alike].sum()

    # The "observations" are places in the two arrays, so that a numerator and its denominator change sides together.
    def difference(one: npt.NDArray[np.intp], other: npt.NDArray[np.intp], axis: int) -> Floats:
        totals = [
            (numerator + numerators[at].sum(axis=axis)) / (denominator + denominators[at].sum(axis=axis))
            for at in (one, other)
        ]
        return np.asarray(totals[0] - totals[1])

    test = permutation_test(
        (places, other_places),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=max(1, PERMUTATION_CELLS // len(places)),
        rng=np.random.default_rng(SEED),
    )
    return float(test.pvalue)


def mcnemar_test(first: ItemScores, second: ItemScores) -> tuple[int, int, float]:
    """Return how many items only the first system has right, how many only the second, and the exact p-value.

    Two-sided. It takes the items as independent and is for 0/1 scores. Without a discordant item p is 1.

    Source: McNemar 1947, exact binomial form, by statsmodels.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    one, other = first.numerators > 0, second.numerators > 0
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    table = [[int((one & other).sum()), only_first], [only_second, int((~one & ~other).sum())]]
    return only_first, only_second, float(mcnemar(table, exact=True).pvalue)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all tests together (0..1).

    Source: Holm 1979, by statsmodels' `multipletests`.
    """
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def describe_resampling(cluster: str) -> Resampling:
    """Return the settings that [`ClusterBootstrap`] uses, for the results file."""
    return Resampling(seed=SEED, resamples=RESAMPLES, confidence=CONFIDENCE, cluster=cluster)

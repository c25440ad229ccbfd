# SPDX-License-Identifier: Apache-2.0
"""Intervals against known values and against the formulas they must agree with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test

from pefomed_recipes.evaluation.intervals import (
    ClusterBootstrap,
    ItemScores,
    holm_adjusted,
    mcnemar_test,
    paired_permutation,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "items", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_values(successes: int, items: int, low: float, high: float) -> None:
    """The cases of Newcombe, Statistics in Medicine 17 (1998), table I: score method without continuity correction."""
    interval = wilson_interval(successes, items)
    assert interval is not None
    assert (interval.low, interval.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_wilson_without_items_is_undefined() -> None:
    assert wilson_interval(0, 0) is None


def _clustered(clusters: int, size: int, seed: int = 3) -> tuple[list[str], np.ndarray]:
    """Items that agree within their cluster."""
    values = np.random.default_rng(seed).random(clusters) < 0.6
    return [f"{at:03d}" for at in range(clusters) for _ in range(size)], np.repeat(values, size).astype(float)


def test_cluster_interval_agrees_with_the_cluster_robust_standard_error() -> None:
    clusters, values = _clustered(clusters=200, size=5)
    interval = ClusterBootstrap(clusters, resamples=4000).interval(ItemScores.of(values.tolist()))
    assert interval is not None
    sums = np.array([(values[at : at + 5] - values.mean()).sum() for at in range(0, 1000, 5)])
    standard_error = np.sqrt((sums**2).sum()) / len(values) * np.sqrt(200 / 199)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.05)


def test_cluster_interval_is_wider_than_wilson_when_an_image_shares_its_luck() -> None:
    clusters, values = _clustered(clusters=40, size=10)
    by_image = ClusterBootstrap(clusters).interval(ItemScores.of(values.tolist()))
    wilson = wilson_interval(values.sum(), len(values))
    assert by_image is not None and wilson is not None
    assert by_image.high - by_image.low > 2 * (wilson.high - wilson.low)


def test_interval_does_not_depend_on_the_order_of_items() -> None:
    clusters, values = _clustered(clusters=12, size=3)
    order = np.random.default_rng(0).permutation(len(values))
    shuffled = ClusterBootstrap([clusters[at] for at in order]).interval(ItemScores.of(values[order].tolist()))
    assert ClusterBootstrap(clusters).interval(ItemScores.of(values.tolist())) == shuffled


def test_paired_difference_is_tight_where_both_systems_err_alike() -> None:
    clusters, values = _clustered(clusters=50, size=4)
    better = values.copy()
    better[np.flatnonzero(values == 0)[:8]] = 1
    model, other = ItemScores.of(better.tolist()), ItemScores.of(values.tolist())
    bootstrap = ClusterBootstrap(clusters)
    paired, alone = bootstrap.difference(model, other), bootstrap.interval(model)
    assert paired is not None and alone is not None
    assert paired.low <= better.mean() - values.mean() <= paired.high
    assert paired.high - paired.low < (alone.high - alone.low) / 2
    same = bootstrap.difference(model, model)
    assert same is not None and (same.low, same.high) == (0, 0)


def test_ratio_is_recomputed_in_each_resample() -> None:
    """Precision 1 of 1 in one image and 0 of 9 in the other: the extremes are 0 and 1, not means of the two."""
    scores = ItemScores.of([1, 0], denominators=[1, 9])
    interval = ClusterBootstrap(["a", "b"]).interval(scores)
    assert interval is not None and (interval.low, interval.high) == (0, 1)


def test_one_image_has_no_interval() -> None:
    scores = ItemScores.of([1, 0, 1])
    bootstrap = ClusterBootstrap(["a"] * 3)
    assert bootstrap.interval(scores) is None
    assert bootstrap.difference(scores, scores) is None


def test_permutation_equals_scipys_on_means_of_independent_items() -> None:
    rng = np.random.default_rng(5)
    one, other = rng.random(60), rng.random(60) + 0.15
    ours = paired_permutation(
        ItemScores.of(one.tolist()), ItemScores.of(other.tolist()), [str(at) for at in range(60)]
    )
    scipys = permutation_test(
        (one, other),
        lambda first, second, axis: np.mean(first - second, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    assert ours == pytest.approx(scipys.pvalue, abs=0.02)
    assert 0.0001 <= scipys.pvalue < 0.2


def test_permutation_of_few_clusters_is_exact_and_counts_whole_clusters() -> None:
    """Five images with three items each, all in favour of the first: 2 of the 2^5 exchanges are as extreme."""
    clusters = [str(at) for at in range(5) for _ in range(3)]
    first, second = ItemScores.of([1.0] * 15), ItemScores.of([0.0] * 15)
    assert paired_permutation(first, second, clusters) == pytest.approx(2 / 32)


def test_permutation_exchanges_numerators_with_their_denominators() -> None:
    """Ratios 3/4 and 1/1, 3/4 and 0/1 pooled: 6/8 against 1/2; all four exchanges by hand."""
    first = ItemScores.of([3, 3], [4, 4])
    second = ItemScores.of([1, 0], [1, 1])
    observed = 6 / 8 - 1 / 2
    differences = [observed, -observed, (1 + 3) / (1 + 4) - (3 + 0) / (4 + 1), (3 + 0) / 5 - (1 + 3) / 5]
    extreme_above = sum(value >= observed - 1e-12 for value in differences) / 4
    extreme_below = sum(value <= observed + 1e-12 for value in differences) / 4
    expected = min(1.0, 2 * min(extreme_above, extreme_below))
    assert paired_permutation(first, second, ["a", "b"]) == pytest.approx(expected)


def test_systems_that_are_alike_have_p_1_and_one_cluster_has_none() -> None:
    scores = ItemScores.of([1, 0, 1])
    assert paired_permutation(scores, scores, ["a", "b", "c"]) == 1
    assert paired_permutation(scores, ItemScores.of([0, 0, 0]), ["a"] * 3) is None


def test_mcnemar_by_hand() -> None:
    """Six items for the first system alone, one for the second: p = 2 * (1 + 7) / 2^7."""
    first, second = ItemScores.of([1] * 6 + [0, 1, 0]), ItemScores.of([0] * 6 + [1, 1, 0])
    assert mcnemar_test(first, second) == (6, 1, pytest.approx(2 * 8 / 128))
    assert mcnemar_test(first, first) == (0, 0, 1.0)


def test_holm_by_hand() -> None:
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([]) == []

# SPDX-License-Identifier: Apache-2.0
"""Every coefficient of agreement against a library or a published case, in the data and in a resample."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from pefomed_recipes.evaluation.agreement import mean_over_pairs
from pefomed_recipes.evaluation.coefficients import Draws, icc_agreement, krippendorff_alpha, pair_measures
from pefomed_recipes.evaluation.panels import middle_score

NAN = float("nan")


def _draws(items: int) -> Draws:
    return Draws([str(at) for at in range(items)], resamples=200)


def _values(first: object, second: object, levels: int | None) -> dict[str, float]:
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    return {name: values[0] for name, values in pair_measures(one, other, _draws(len(one)), levels).items()}


@pytest.mark.parametrize("levels", [2, 5])
@pytest.mark.parametrize("used", [1.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_kappa_equals_scikit_learn_also_where_levels_are_not_used(levels: int, used: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    highest = max(2, int(levels * used))
    first = rng.integers(0, highest, 60)
    second = np.where(rng.random(60) < 0.6, first, rng.integers(0, highest, 60))
    found = _values(first, second, levels)
    for name, weights in (("kappa", None), ("kappa_linear", "linear"), ("kappa_quadratic", "quadratic")):
        expected = cohen_kappa_score(first, second, labels=range(levels), weights=weights)
        assert found[name] == pytest.approx(expected, abs=1e-12)
    assert found["raw_agreement"] == pytest.approx((first == second).mean())
    assert found["bias"] == pytest.approx((first - second).mean())


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_rank_correlations_equal_scipy_in_the_data_and_in_a_resample(continuous: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    second = rng.integers(0, 5, 80).astype(float)
    first = second + rng.normal(0, 2, 80) if continuous else rng.integers(0, 3, 80).astype(float)
    draws = Draws([str(at // 2) for at in range(80)], resamples=50)
    found = pair_measures(first, second, draws, None)
    for draw in (0, 7, 50):
        times = draws.weights[draw][draws.of_item].astype(int)
        one, other = np.repeat(first, times), np.repeat(second, times)
        assert found["tau_b"][draw] == pytest.approx(stats.kendalltau(one, other).statistic, abs=1e-12)
        assert found["spearman"][draw] == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)


def test_missing_scores_are_left_out_pair_by_pair() -> None:
    whole = _values([0, 1, 2, 3], [0, 1, 1, 3], 5)
    assert _values([0, NAN, 1, 2, 3, 4], [0, 4, 1, 1, 3, NAN], 5) == pytest.approx(whole)
    assert pair_measures(np.array([NAN, 1.0]), np.array([1.0, NAN]), _draws(2), 5) == {}


def test_kappa_paradox_equal_raw_agreement_and_unequal_kappa() -> None:
    """Source: Feinstein and Cicchetti 1990: 85 of 100 agree in both tables, kappa .70 and .32."""
    for table, kappa in (([[40, 9], [6, 45]], 0.70), ([[80, 10], [5, 5]], 0.32)):
        pairs = [(a, b) for a in (0, 1) for b in (0, 1) for _ in range(table[a][b])]
        found = _values([a for a, _ in pairs], [b for _, b in pairs], 2)
        assert found["raw_agreement"] == 0.85
        assert found["kappa"] == pytest.approx(kappa, abs=0.005)


def test_krippendorff_alpha_of_the_published_case_with_missing_ratings() -> None:
    """Source: Krippendorff 2011, four observers, twelve units: .743 nominal, .815 ordinal, .849 interval."""
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
    alpha = krippendorff_alpha(np.array(observers).T - 1, 5, _draws(12))
    assert {name: round(values[0], 3) for name, values in alpha.items()} == {
        "nominal": 0.743,
        "ordinal": 0.815,
        "interval": 0.849,
    }


def test_intraclass_correlation_of_the_published_case() -> None:
    """Source: Shrout and Fleiss 1979, six targets, four judges: ICC(2,1) .29, ICC(2,4) .62."""
    scores = np.array(
        [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float
    )
    single, average = icc_agreement(scores, _draws(6))
    assert (round(single[0], 2), round(average[0], 2)) == (0.29, 0.62)
    with_a_gap = np.vstack([scores, [5, NAN, 5, 5]])
    assert icc_agreement(with_a_gap, _draws(7))[0][0] == pytest.approx(single[0])


def test_alpha_and_intraclass_correlation_agree_in_a_resample_with_the_items_written_out() -> None:
    rng = np.random.default_rng(3)
    scores = np.clip(rng.integers(0, 5, 30)[:, None] + rng.integers(-1, 2, (30, 3)), 0, 4).astype(float)
    draws = _draws(30)
    times = draws.weights[9][draws.of_item].astype(int)
    written = np.repeat(scores, times, axis=0)
    alone = _draws(len(written))
    for name, values in krippendorff_alpha(scores, 5, draws).items():
        assert values[9] == pytest.approx(krippendorff_alpha(written, 5, alone)[name][0])
    for found, expected in zip(icc_agreement(scores, draws), icc_agreement(written, alone), strict=True):
        assert found[9] == pytest.approx(expected[0])


def test_one_and_the_same_score_for_everything_is_undefined_not_zero_or_one() -> None:
    same = np.full(10, 3.0)
    found = _values(same, same, 5)
    assert found["raw_agreement"] == 1
    assert all(np.isnan(found[name]) for name in ("kappa", "kappa_linear", "kappa_quadratic", "tau_b", "spearman"))
    table = np.stack([same, same], axis=1)
    assert all(np.isnan(values[0]) for values in krippendorff_alpha(table, 5, _draws(10)).values())
    assert all(np.isnan(values[0]) for values in icc_agreement(table, _draws(10)))


def test_means_over_pairs_weigh_by_common_answers() -> None:
    rater = np.array([0, 1, 2, 3, 4, 0, 1, 2], dtype=float)
    agrees = rater.copy()
    agrees[6:] = NAN  # six in common, all equal
    differs = np.where(np.arange(8) >= 6, 4 - rater, NAN)  # two in common, one equal
    means, pairs = mean_over_pairs([(rater, agrees), (rater, differs)], _draws(8), 5)
    assert pairs == 2
    assert means["raw_agreement"][0] == pytest.approx((6 * 1 + 2 * 0.5) / 8)


@pytest.mark.parametrize(("scores", "middle"), [([3], 3), ([1, 3, 3], 3), ([0, 1, 1], 1), ([1, 3], 2), ([2, 3], NAN)])
def test_a_judges_samples_become_their_median_and_a_tie_no_score(scores: list[float], middle: float) -> None:
    assert middle_score(scores) == pytest.approx(middle, nan_ok=True)

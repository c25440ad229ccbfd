# SPDX-License-Identifier: Apache-2.0
"""WASM by hand, and the prediction-powered estimate: unbiased, never without raters, and worth having."""

from __future__ import annotations

import numpy as np
import pytest

from pefomed_recipes.evaluation.coefficients import Draws
from pefomed_recipes.evaluation.panels import build_panels
from pefomed_recipes.evaluation.ppi import estimate_mean, prediction_powered
from pefomed_recipes.evaluation.wasm import NOBODY, wasm, wasm_table
from pefomed_recipes.records import Prediction, Rating, Verdict

NAN = float("nan")


def _draws(items: int) -> Draws:
    return Draws([str(at) for at in range(items)])


def _rating(item: int, rater: str, score: int | None, system: str = "m") -> Rating:
    return Rating(f"i{item}", system, rater, "report", "paper-report", score, score is None)


def test_wasm_of_one_rater_is_the_weighted_average_of_the_counts() -> None:
    scores = np.array([[0], [1], [1], [2], [3], [3], [3], [4], [4], [4]], dtype=float)
    found = wasm(scores, 4, _draws(10), np.arange(10))
    assert found.counts == [1, 2, 1, 3, 3]
    assert found.wasm.value == pytest.approx((0 * 1 + 1 * 2 + 2 * 1 + 3 * 3 + 4 * 3) / 10)
    assert found.pooled == pytest.approx(found.wasm.value)
    assert found.percent == pytest.approx(100 * 2.5 / 4)
    assert found.wasm.low is not None and found.wasm.high is not None
    assert 0 <= found.wasm.low < 2.5 < found.wasm.high <= 4


def test_wasm_of_several_raters_is_the_mean_over_answers_not_over_ratings() -> None:
    """Five raters give the first answer 4, one gives the second 0: the answers count alike."""
    scores = np.array([[4, 4, 4, 4, 4], [0, NAN, NAN, NAN, NAN]])
    found = wasm(scores, 4, _draws(2), np.arange(2))
    assert found.wasm.value == 2
    assert found.pooled == pytest.approx(20 / 6)
    assert (found.rated, found.counts) == (6, [1, 0, 0, 0, 5])


def test_wasm_is_null_with_a_reason_when_nobody_rated() -> None:
    found = wasm(np.full((3, 2), NAN), 4, _draws(3), np.arange(3))
    assert (found.wasm.value, found.wasm.reason) == (None, NOBODY)
    assert (found.percent, found.pooled, found.lowest, found.highest) == (None, None, None, None)
    assert (found.rated, found.unrated, found.counts) == (0, 3, [0, 0, 0, 0, 0])


def test_answers_without_a_score_bound_what_wasm_could_be() -> None:
    found = wasm(np.array([[4], [2], [NAN], [NAN]]), 4, _draws(4), np.arange(4))
    assert found.wasm.value == 3
    assert (found.lowest, found.highest) == (1.5, 3.5)


def test_wasm_of_zero_and_one_is_an_accuracy() -> None:
    found = wasm(np.array([[1], [0], [1], [1]], dtype=float), 1, _draws(4), np.arange(4))
    assert (found.wasm.value, found.percent, found.counts) == (0.75, 75, [1, 3])


def test_interval_is_over_images_not_over_answers() -> None:
    """Ten answers about one image share its luck: the interval is as wide as that of the images."""
    rng = np.random.default_rng(0)
    by_image = rng.integers(0, 5, 40).astype(float)
    scores = np.repeat(by_image, 10)[:, None]
    clustered = wasm(scores, 4, Draws([str(at // 10) for at in range(400)]), np.arange(400)).wasm
    apart = wasm(by_image[:, None], 4, _draws(40), np.arange(40)).wasm
    naive = wasm(scores, 4, _draws(400), np.arange(400)).wasm
    assert None not in (clustered.low, clustered.high, apart.low, apart.high, naive.low, naive.high)
    assert clustered.high - clustered.low == pytest.approx(apart.high - apart.low, rel=0.15)
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)


def test_table_has_each_system_by_raters_and_judge_and_by_slice() -> None:
    predictions = [
        Prediction(f"i{at}", "report", "", ["r"], "p", organ="CHEST" if at < 2 else "HEAD", model=system)
        for system in ("a", "b")
        for at in range(4)
    ]
    ratings = [_rating(at, "R1", at, system) for system in ("a", "b") for at in range(4)]
    verdicts = [Verdict(f"i{at}", "a", "J", "report", "paper-report", "0" * 64, 4) for at in range(4)]
    [panel] = build_panels(ratings, verdicts, predictions, {})
    table = {(row.system, row.by, row.value): row for row in wasm_table(panel, Draws(panel.clusters, resamples=10))}
    assert table["a", "raters", ""].wasm.value == 1.5
    assert table["a", "raters", "CHEST"].wasm.value == 0.5
    assert table["b", "raters", "HEAD"].wasm.value == 2.5
    assert table["a", "J", ""].wasm.value == 4
    assert table["b", "J", ""].wasm.reason == NOBODY


def test_answers_that_nobody_was_asked_about_are_not_unrated() -> None:
    """Raters were asked about two of four answers and could not judge one; the judge's reply to one was not read."""
    ratings = [_rating(0, "R1", 4), _rating(1, "R1", None)]
    verdicts = [Verdict(f"i{at}", "m", "J", "report", "paper-report", "0" * 64, 2 if at else None) for at in range(4)]
    [panel] = build_panels(ratings, verdicts, [], {})
    by = {row.by: row for row in wasm_table(panel, Draws(panel.clusters, resamples=10))}
    assert (by["raters"].answers, by["raters"].unrated, by["raters"].lowest, by["raters"].highest) == (2, 1, 2, 4)
    assert (by["J"].answers, by["J"].unrated, by["J"].lowest, by["J"].highest) == (4, 1, 1.5, 2.5)


def test_prediction_powered_equals_the_raters_mean_when_they_rated_everything() -> None:
    rng = np.random.default_rng(1)
    human, judge = rng.integers(0, 5, 50).astype(float), rng.integers(0, 5, 50).astype(float)
    every = np.arange(50)
    found = estimate_mean(judge, human, every, every, every, 4)
    alone = estimate_mean(np.zeros(50), human, every, every, every, 4)
    assert found.value == pytest.approx(human.mean())
    assert (found.low, found.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    error = human.std(ddof=1) / np.sqrt(50)
    assert found.high - found.value == pytest.approx(1.959964 * error)


def test_prediction_powered_by_hand() -> None:
    """Judge mean over all 2.5; on the two rated answers raters give 1 less than the judge."""
    judge = np.array([1.0, 2.0, 3.0, 4.0])
    human = np.array([0.0, 1.0, NAN, NAN])
    found = estimate_mean(judge, human, np.arange(4), np.arange(4), np.array([0, 1]), 4)
    assert found.value == pytest.approx(1.5)


def test_prediction_powered_interval_holds_the_truth_and_is_narrower_than_raters_alone() -> None:
    rng = np.random.default_rng(2)
    hits, narrower, runs, size, few = 0, 0, 300, 400, 60
    for _ in range(runs):
        human = rng.normal(2, 0.7, size)
        judge = human + 0.5 + rng.normal(0, 0.3, size)  # a good judge that scores half a point too high
        rated = np.arange(few)
        known = np.where(np.arange(size) < few, human, NAN)
        found = estimate_mean(judge, known, np.arange(size), np.arange(size), rated, 4)
        alone = estimate_mean(np.zeros(size), known, np.arange(size), rated, rated, 4)
        hits += found.low <= 2 <= found.high
        narrower += found.high - found.low < alone.high - alone.low
    assert 0.91 <= hits / runs <= 0.985
    assert narrower == runs


def test_prediction_powered_needs_ratings_of_two_images() -> None:
    ratings = [_rating(0, "R1", 3)]
    verdicts = [Verdict(f"i{at}", "m", "J", "report", "paper-report", "0" * 64, 3) for at in range(4)]
    [panel] = build_panels(ratings, verdicts, [], {})
    [found] = prediction_powered(panel, Draws(panel.clusters, resamples=10))
    assert (found.judged, found.rated) == (4, 1)
    assert found.estimate.value is None
    assert "two images" in found.estimate.reason

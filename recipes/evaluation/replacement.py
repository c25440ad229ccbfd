# SPDX-License-Identifier: Apache-2.0
"""Whether a judge can stand in for raters: non-inferiority to the human-human ceiling, and the alternative-annotator
test."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from .agreement import PRIMARY, mean_over_pairs, pairs_with_raters, rater_pairs
from .coefficients import Draws, Estimate, Floats, estimate
from .panels import Panel

MARGIN, EPSILON = 0.1, 0.2
LEVEL, POWER = 0.05, 0.8
FEWEST_ANSWERS = 30


@dataclass(frozen=True)
class NonInferiority:
    """Whether a judge agrees with raters as well as they do with each other, but for a `margin` of quadratic kappa.

    `difference` is judge-human minus human-human kappa over the same answers (two raters and the judge scored each),
    with its 95 % interval; `bound` its one-sided 95 % lower bound. `result`: `shown` when the bound lies above
    -margin, `inferior` when the upper bound lies below it, else `not shown`.

    `answers_needed` (and `ratings_needed`, with as many raters) would show it with power 80 % if the judge really were
    as good as the ceiling: answers * ((1.645 + 0.842) * standard error / margin) ** 2. `answers_needed_as_observed`
    takes the observed difference for the true one; null where that lies beyond the margin. A normal approximation: the
    standard error is the bootstrap's, taken to shrink with the root of the answers, and 30 answers are the least.
    """

    judge: str
    margin: float
    answers: int
    raters: int
    judge_human: float | None
    human_human: float | None
    difference: Estimate
    bound: float | None = None
    result: str = "undefined"
    answers_needed: int | None = None
    ratings_needed: int | None = None
    answers_needed_as_observed: int | None = None


@dataclass(frozen=True)
class AlternativeAnnotator:
    """Whether a judge represents the raters better than one of them does, each left out in turn.

    For each rater: the share of answers on which the judge is at least as near to the other raters as the rater left
    out is (`advantage`, 0..1), and the p-value, adjusted for several raters by Benjamini and Yekutieli, of the
    hypothesis that the rater beats the judge by at least `epsilon`. Near is, for 0/1, the share of the others who gave
    the same score, else the negative root mean square difference. `winning_rate` is the share of raters whose
    hypothesis falls at 5 %; the judge `passes` from 0.5 on. `mean_advantage` compares judges.

    `epsilon` is what a judge is worth for being cheaper: 0.2 where the raters are experts, 0.1 where they are not.
    Source: Calderon et al. 2025: t-test from 30 answers on, Wilcoxon's below. Null with fewer than three raters.
    """

    judge: str
    epsilon: float
    winning_rate: float | None
    passes: bool | None
    mean_advantage: float | None
    advantage: dict[str, float]
    p_values: dict[str, float]
    answers: dict[str, int]
    reason: str = ""


def non_inferiority(panel: Panel, draws: Draws, margin: float = MARGIN) -> list[NonInferiority]:
    """Return the test of each judge; see [`NonInferiority`]."""
    found = []
    rated = np.isfinite(panel.ratings).sum(1)
    for judge, scores in panel.judges.items() if panel.raters else ():
        items = np.flatnonzero(np.isfinite(scores) & (rated >= 2))
        raters = len(panel.raters)
        of_judge, _ = mean_over_pairs(pairs_with_raters(panel, scores), draws, panel.levels, items)
        of_raters, _ = mean_over_pairs(rater_pairs(panel), draws, panel.levels, items)
        nothing = np.full(1, np.nan)
        first, second = of_judge.get(PRIMARY, nothing), of_raters.get(PRIMARY, nothing)
        why = "no answer has a verdict and two ratings" if not len(items) else "a kappa is not defined"
        difference = estimate(first - second, why)
        record = NonInferiority(judge, margin, len(items), raters, _finite(first[0]), _finite(second[0]), difference)
        found.append(_decide(record, first - second) if difference.low is not None else record)
    return found


def _decide(record: NonInferiority, values: Floats) -> NonInferiority:
    drawn = values[1:][np.isfinite(values[1:])]
    bound, upper = np.quantile(drawn, [LEVEL, 1 - LEVEL])
    error, reach = drawn.std(ddof=1), stats.norm.ppf(1 - LEVEL) + stats.norm.ppf(POWER)

    def needed(distance: float) -> int | None:
        return (
            max(FEWEST_ANSWERS, math.ceil(record.answers * (reach * error / distance) ** 2)) if distance > 0 else None
        )

    answers = needed(record.margin)
    result = "shown" if bound > -record.margin else "inferior" if upper < -record.margin else "not shown"
    return replace(
        record,
        bound=float(bound),
        result=result,
        answers_needed=answers,
        ratings_needed=answers * record.raters if answers else None,
        answers_needed_as_observed=needed(record.margin + float(values[0])),
    )


def alternative_annotator(panel: Panel, epsilon: float = EPSILON) -> list[AlternativeAnnotator]:
    """Return the test of each judge; see [`AlternativeAnnotator`]."""
    found = []
    for judge, scores in panel.judges.items() if panel.raters else ():
        advantage, p_values, answers = {}, {}, {}
        for name, left_out in panel.raters.items() if len(panel.raters) > 2 else ():
            others = np.stack([values for other, values in panel.raters.items() if other != name], axis=1)
            items = np.flatnonzero(np.isfinite(scores + left_out) & np.isfinite(others).any(1))
            if len(items) < 2:
                continue
            near_judge, near_rater = (_nearness(x[items], others[items], panel.top) for x in (scores, left_out))
            loses = (near_rater >= near_judge).astype(float) - (near_judge >= near_rater)
            advantage[name] = float((near_judge >= near_rater).mean())
            p_values[name], answers[name] = _p_value(loses - epsilon), len(items)
        if not advantage:
            few = "fewer than three raters" if len(panel.raters) < 3 else "too few common answers"
            found.append(AlternativeAnnotator(judge, epsilon, None, None, None, {}, {}, {}, few))
            continue
        adjusted = stats.false_discovery_control(list(p_values.values()), method="by")
        p_values = dict(zip(p_values, map(float, adjusted), strict=True))
        rate = float(np.mean([p <= LEVEL for p in p_values.values()]))
        mean = float(np.mean(list(advantage.values())))
        found.append(AlternativeAnnotator(judge, epsilon, rate, rate >= 0.5, mean, advantage, p_values, answers))
    return found


def _nearness(scores: Floats, others: Floats, top: int) -> Floats:
    """Return how near each score is to the others' of the same answer, NaN = not rated: (n,)."""
    count = np.isfinite(others).sum(1)
    if top == 1:
        return (others == scores[:, None]).sum(1) / count
    return -np.sqrt(np.nansum((others - scores[:, None]) ** 2, axis=1) / count)


def _p_value(values: Floats) -> float:
    """Return the p-value of a mean, or median, of 0 or more against one below 0."""
    if np.ptp(values) == 0:  # no variance: the tests are not defined, and the answer is plain
        return 0.0 if values[0] < 0 else 1.0
    if len(values) < FEWEST_ANSWERS:
        return float(stats.wilcoxon(values, alternative="less").pvalue)
    return float(stats.ttest_1samp(values, 0, alternative="less").pvalue)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

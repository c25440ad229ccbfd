# SPDX-License-Identifier: Apache-2.0
"""How steady judges, raters and metrics are: test and retest, answers in other words, and drift from run to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from .agreement import PRIMARY, Pair, mean_difference, mean_over_pairs
from .coefficients import Draws, Estimate, Floats, estimate
from .panels import Panel

PARAPHRASE = "+paraphrase"


@dataclass(frozen=True)
class Retest:
    """How often one party gives the same answer the same score again: raters on hidden repeats, a judge in samples
    of the same run. `raw_agreement` and `kappa_quadratic` are means over pairs; `minus_raters` is the judge's raw
    agreement minus the raters', and `more_stable` whether its interval lies above 0 (null without both)."""

    by: str
    answers: int
    raw_agreement: Estimate
    kappa_quadratic: Estimate
    minus_raters: Estimate | None = None
    more_stable: bool | None = None


@dataclass(frozen=True)
class Paraphrase:
    """How far a metric, judge or the raters' mean moves when an answer is said in other words: the mean over answers
    of the absolute difference, as a share of the scale (of a metric, of its range over all answers), 0..1, lower is
    better. Answers and their paraphrases (control `paraphrase`) are matched by item."""

    by: str
    kind: str
    answers: int
    change: Estimate


@dataclass(frozen=True)
class Drift:
    """A later run of a judge minus its first on the same answers: mean change in points, kappa of the two, share of
    answers whose score changed, and whether the interval of the mean change leaves out 0 (`drifted`). `changed` says
    whether the judge's reported name or its rubric differ between the two."""

    judge: str
    first_run: str
    run: str
    answers: int
    mean_change: Estimate
    kappa_quadratic: Estimate
    share_changed: float | None
    drifted: bool | None
    changed: bool


def retests(panel: Panel, draws: Draws) -> list[Retest]:
    """Return how stable the raters are, all together, and each judge beside them."""
    found, raters = [], None
    pairs = [(panel.raters[name], again) for name, again in panel.repeats.items()]
    if pairs:
        raters, line = _retest("raters", pairs, panel, draws)
        found.append(line)
    for judge, samples in panel.samples.items():
        pairs = list(combinations(samples.T, 2))
        if not pairs:
            continue
        own, line = _retest(judge, pairs, panel, draws)
        if raters is not None and own is not None:
            minus = estimate(own - raters, "not defined")
            above = None if minus.low is None else minus.low > 0
            line = replace(line, minus_raters=minus, more_stable=above)
        found.append(line)
    return found


def _retest(by: str, pairs: Sequence[Pair], panel: Panel, draws: Draws) -> tuple[Floats | None, Retest]:
    means, _ = mean_over_pairs(pairs, draws, panel.levels)
    both = np.any([np.isfinite(one + other) for one, other in pairs], axis=0)
    nothing = np.full(1, np.nan)
    why = "no answer was scored twice"
    raw = means.get("raw_agreement")
    return raw, Retest(
        by,
        int(both.sum()),
        estimate(means.get("raw_agreement", nothing), why),
        estimate(means.get(PRIMARY, nothing), "all scores are equal" if means else why),
    )


def paraphrase_changes(panel: Panel, draws: Draws) -> list[Paraphrase]:
    """Return the change of metrics, judges and raters; none where no system has paraphrased answers."""
    at = {unit: position for position, unit in enumerate(panel.units)}
    told_again = [
        (at[item, system.removesuffix(PARAPHRASE)], position)
        for (item, system), position in at.items()
        if system.endswith(PARAPHRASE) and (item, system.removesuffix(PARAPHRASE)) in at
    ]
    if not told_again:
        return []
    first, second = np.array(told_again).T
    parties = [(name, "metric", values) for name, values in panel.metrics.items()]
    parties += [(name, "judge", values) for name, values in panel.judges.items()]
    parties += [("raters", "human", panel.human_mean)] if panel.raters else []
    found = []
    for by, kind, values in parties:
        span = np.nanmax(values) - np.nanmin(values) if kind == "metric" else float(panel.top)
        moved = np.full(len(values), np.nan)
        moved[first] = np.abs(values[first] - values[second]) / (span or 1)
        change = mean_difference(moved, np.zeros(len(values)), draws, "no answer and paraphrase have both a score")
        found.append(Paraphrase(by, kind, int(np.isfinite(moved).sum()), change))
    return found


def drifts(panel: Panel, draws: Draws) -> list[Drift]:
    """Return each later run of each judge against its first."""
    found = []
    for judge, runs in panel.runs.items():
        names = list(runs)
        for name in names[1:]:
            before, after = runs[names[0]], runs[name]
            both = np.isfinite(before + after)
            why = "the two runs have no answer in common"
            change = mean_difference(after, before, draws, why)
            kappa = mean_over_pairs([(after, before)], draws, panel.levels)[0].get(PRIMARY, np.full(1, np.nan))
            found.append(
                Drift(
                    judge,
                    names[0],
                    name,
                    int(both.sum()),
                    change,
                    estimate(kappa, why if not both.any() else "all scores are equal"),
                    float((before[both] != after[both]).mean()) if both.any() else None,
                    None if change.low is None or change.high is None else not change.low <= 0 <= change.high,
                    panel.judged_by[judge][names[0]] != panel.judged_by[judge][name],
                )
            )
    return found

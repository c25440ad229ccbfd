# SPDX-License-Identifier: Apache-2.0
"""Who agrees with whom: raters among themselves (the ceiling), judges with raters, metrics with raters and judges.

Each number of a comparison is the mean over pairs of parties (two raters; a judge and a rater), weighed by how many
answers both scored, so that judges and metrics stand beside the ceiling on equal terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from .coefficients import (
    Draws,
    Estimate,
    Floats,
    Ints,
    estimate,
    icc_agreement,
    krippendorff_alpha,
    pair_measures,
)
from .panels import Panel, mean_of_rows

HUMAN_HUMAN, JUDGE_HUMAN = "human-human", "judge-human"
METRIC_HUMAN, METRIC_JUDGE = "metric-human", "metric-judge"
PRIMARY = "kappa_quadratic"
RANKS = ("tau_b", "spearman")
ON_SCALE = ("raw_agreement", "kappa", "kappa_linear", "kappa_quadratic", "bias")
UNDEFINED = {
    "raw_agreement": "no answer was scored by both",
    "bias": "no answer was scored by both",
    "tau_b": "fewer than two levels were used by one of them",
    "spearman": "fewer than two levels were used by one of them",
    "kappa": "both used one and the same level only",
    "kappa_linear": "both used one and the same level only",
    "kappa_quadratic": "both used one and the same level only",
}
NO_PAIR = "no answer was scored by both"
NOT_ON_SCALE = "the metric does not score on the raters' scale"

Pair = tuple[Floats, Floats]


@dataclass(frozen=True)
class Comparison:
    """How well `first` and `second` agree on a slice of the answers.

    `answers` have scores of both (of two raters), from `clusters` images; `pairs` of parties were compared. Measures:

    - `raw_agreement`: share of answers with equal scores, 0..1. High when nearly all answers have one level, whoever
      scores: read it beside `prevalence`.
    - `kappa`, `kappa_linear`, `kappa_quadratic`: Cohen's, at most 1, 0 = chance. `kappa_quadratic` is the primary one.
    - `tau_b`, `spearman`: rank correlations, -1..1.
    - `bias`: mean of first minus second, in points; of raters among themselves there is none.
    - `alpha_nominal`, `alpha_ordinal`, `alpha_interval`: Krippendorff's over all raters (human-human only).
    - `icc_single`, `icc_average`: ICC(A,1) and ICC(A,k) over answers that all raters scored; of a judge, `icc_single`
      with the raters' mean.

    Higher is better, and all but bias want 1. Null with a reason where not defined; intervals are 95 % over images.
    `prevalence` is the share of each level among the compared scores of first and second; `confusion[a][b]` counts
    pairs of scores a by first and b by second.
    """

    kind: str
    first: str
    second: str
    slice: str
    value: str
    answers: int
    clusters: int
    pairs: int
    measures: dict[str, Estimate]
    prevalence: dict[str, list[float]] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class RaterSummary:
    """One rater: answers rated, their mean score, `bias` against the mean of the other raters on the same answers (in
    points, null without common answers), marks of "cannot judge", and hidden controls rated as they should be (the
    reference at the top, nothing at the bottom) of all controls."""

    rater: str
    rated: int
    mean: float | None
    bias: Estimate
    cannot_judge: int
    controls_right: int
    controls: int


def compare_all(panel: Panel, draws: Draws) -> list[Comparison]:
    """Return all comparisons: over all answers first, the ceiling before judges before metrics, then by slice."""
    found = _comparisons(panel, draws, np.arange(len(panel.units)), "overall", "", in_full=True)
    for (name, value), items in panel.slices.items():
        if 0 < len(items) < len(panel.units):
            found += _comparisons(panel, draws, items, name, value, in_full=False)
    return found


def mean_over_pairs(
    pairs: Sequence[Pair], draws: Draws, levels: int | None, items: Ints | None = None
) -> tuple[dict[str, Floats], int]:
    """Return each measure's mean over pairs of parties, (B,), weighed by common answers, and how many pairs have any.

    A pair whose measure is not defined in a resample is left out of it.
    """
    total: dict[str, Floats] = {}
    weight: dict[str, Floats] = {}
    defined = 0
    for first, second in pairs:
        measures = pair_measures(first, second, draws, levels, items)
        chosen = slice(None) if items is None else items
        common = float(np.isfinite(first[chosen] + second[chosen]).sum())
        defined += bool(measures)
        for name, values in measures.items():
            known = np.isfinite(values)
            total[name] = total.get(name, 0) + np.where(known, values * common, 0)
            weight[name] = weight.get(name, 0) + np.where(known, common, 0)
    means = {}
    for name in total:
        empty = weight[name] == 0
        means[name] = np.where(empty, np.nan, total[name] / np.where(empty, 1, weight[name]))
    return means, defined


def rater_pairs(panel: Panel) -> list[Pair]:
    """Return the scores of each two raters."""
    return list(combinations(panel.raters.values(), 2))


def pairs_with_raters(panel: Panel, scores: Floats) -> list[Pair]:
    """Return the scores of a judge or metric with those of each rater."""
    return [(scores, rater) for rater in panel.raters.values()]


def summarize_raters(panel: Panel, draws: Draws) -> list[RaterSummary]:
    """Return one line a rater."""
    lines = []
    for name, scores in panel.raters.items():
        given = np.isfinite(scores)
        others = [values for other, values in panel.raters.items() if other != name]
        rest = mean_of_rows(np.stack(others, axis=1)) if others else np.full(len(scores), np.nan)
        right, controls = panel.controls[name]
        lines.append(
            RaterSummary(
                name,
                int(given.sum()),
                float(scores[given].mean()) if given.any() else None,
                mean_difference(scores, rest, draws, "no answer was rated by somebody else too"),
                panel.cannot_judge[name],
                right,
                controls,
            )
        )
    return lines


def mean_difference(first: Floats, second: Floats, draws: Draws, reason: str, items: Ints | None = None) -> Estimate:
    """Return the mean of first minus second over the answers that both have, with its interval over images."""
    difference = first - second
    chosen = np.flatnonzero(np.isfinite(difference)) if items is None else items[np.isfinite(difference[items])]
    if not len(chosen):
        return Estimate(None, reason=reason)
    sums = draws.sums(np.stack([difference[chosen], np.ones(len(chosen))], axis=1), chosen)
    empty = sums[:, 1] == 0
    return estimate(np.where(empty, np.nan, sums[:, 0] / np.where(empty, 1, sums[:, 1])), reason)


def _comparisons(panel: Panel, draws: Draws, items: Ints, name: str, value: str, *, in_full: bool) -> list[Comparison]:
    found = []

    def add(kind: str, first: str, second: str, pairs: Sequence[Pair], levels: int | None, used: Draws) -> None:
        means, defined = mean_over_pairs(pairs, used, levels, items)
        measures = _estimates(means, levels)
        if kind == HUMAN_HUMAN:
            measures.pop("bias")
            measures |= _among_raters(panel, draws, items) if in_full else {}
        elif kind == JUDGE_HUMAN and in_full:
            both = np.stack([panel.judges[first], panel.human_mean], axis=1)
            measures["icc_single"] = estimate(icc_agreement(both, draws, items)[0], "fewer than two answers, or equal")
        found.append(_comparison(panel, kind, first, second, name, value, items, pairs, defined, measures, levels))

    if len(panel.raters) > 1:
        add(HUMAN_HUMAN, "raters", "raters", rater_pairs(panel), panel.levels, draws)
    for judge, scores in panel.judges.items() if panel.raters else ():
        add(JUDGE_HUMAN, judge, "raters", pairs_with_raters(panel, scores), panel.levels, draws)
    for metric, scores in panel.metrics.items():
        levels = panel.levels if _is_on_scale(scores, panel.top) else None
        # A metric with a thousand different values costs a hundred times what a judge does: in slices, no interval.
        used = draws if in_full or levels is not None else draws.without_resamples()
        if panel.raters:
            add(METRIC_HUMAN, metric, "raters", pairs_with_raters(panel, scores), levels, used)
        for judge, verdicts in panel.judges.items():
            add(METRIC_JUDGE, metric, judge, [(scores, verdicts)], levels, used)
    return found


def _is_on_scale(scores: Floats, top: int) -> bool:
    """Whether a metric scores right or wrong where raters do, so that it can agree with them in full."""
    return top == 1 and set(np.unique(scores[np.isfinite(scores)])) <= {0.0, 1.0}


def _estimates(means: Mapping[str, Floats], levels: int | None) -> dict[str, Estimate]:
    estimates = {}
    for name in (*ON_SCALE, *RANKS):
        if name in means:
            estimates[name] = estimate(means[name], UNDEFINED[name])
        else:
            off_scale = levels is None and name in ON_SCALE
            estimates[name] = Estimate(None, reason=NOT_ON_SCALE if off_scale else NO_PAIR)
    return estimates


def _among_raters(panel: Panel, draws: Draws, items: Ints) -> dict[str, Estimate]:
    alphas = krippendorff_alpha(panel.ratings, panel.levels, draws, items)
    measures = {
        f"alpha_{name}": estimate(values, "all ratings are equal, or no answer has two")
        for name, values in alphas.items()
    }
    single, average = icc_agreement(panel.ratings, draws, items)
    why = "fewer than two answers have a rating of every rater, or all are equal"
    return measures | {"icc_single": estimate(single, why), "icc_average": estimate(average, why)}


def _comparison(
    panel: Panel,
    kind: str,
    first: str,
    second: str,
    name: str,
    value: str,
    items: Ints,
    pairs: Sequence[Pair],
    defined: int,
    measures: dict[str, Estimate],
    levels: int | None,
) -> Comparison:
    common = [items[np.isfinite(one[items] + other[items])] for one, other in pairs]
    answers = np.unique(np.concatenate(common)) if common else np.array([], dtype=np.intp)
    confusion = np.zeros((panel.levels, panel.levels), dtype=int)
    if levels is not None:
        for (one, other), both in zip(pairs, common, strict=True):
            np.add.at(confusion, (one[both].astype(int), other[both].astype(int)), 1)
    if kind == HUMAN_HUMAN:
        confusion = confusion + confusion.T  # neither is first
    total = int(confusion.sum())
    prevalence = {
        party: [round(float(count) / total, 6) for count in confusion.sum(axis)]
        for party, axis in ((("raters", 1),) if kind == HUMAN_HUMAN else ((first, 1), (second, 0)))
        if total
    }
    return Comparison(
        kind,
        first,
        second,
        name,
        value,
        len(answers),
        len({panel.clusters[at] for at in answers}),
        defined,
        measures,
        prevalence,
        confusion.tolist() if total else [],
    )

# SPDX-License-Identifier: Apache-2.0
"""WASM, the weighted average score of a Likert scale, from ratings or verdicts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .coefficients import Draws, Estimate, Floats, Ints, estimate
from .panels import RATERS, Panel, mean_of_rows

NOBODY = "nobody rated these answers"


@dataclass(frozen=True)
class Wasm:
    """The scores of one system, or of a slice of its answers, by one kind of party: `raters`, or a judge's name.

    `answers` are those that the party was asked about. `counts[k]` is how many ratings gave level k, `rated` their
    sum, and `pooled` = sum of k * counts[k] / rated, the formula on the counts. `wasm` is what to quote: the mean over
    answers of the mean over raters, 0..`top`, higher is better, with its interval over images; it equals `pooled` when
    all raters rated all answers. `percent` is 100 * wasm / top. All are null, with a reason, when nobody rated.
    `unrated` counts the answers without a score (cannot judge, unread or tied replies); `lowest` and `highest` are
    what `wasm` would be if all of those had the bottom, or the top, of the scale.

    Source: the formula is derived (the paper prints none): a weighted average of five counts, n_0..n_4.
    """

    system: str
    by: str
    slice: str
    value: str
    answers: int
    rated: int
    counts: list[int]
    wasm: Estimate
    percent: float | None
    pooled: float | None
    unrated: int = 0
    lowest: float | None = None
    highest: float | None = None


def wasm_table(panel: Panel, draws: Draws) -> list[Wasm]:
    """Return WASM by all raters together and by each judge, of each system, and of each system's slices."""
    parties = {RATERS: panel.ratings} if panel.raters else {}
    parties |= {name: scores[:, None] for name, scores in panel.judges.items()}
    systems = {value: items for (name, value), items in panel.slices.items() if name == "system"}
    table = []
    for system, of_system in systems.items():
        parts = [(("overall", ""), of_system)]
        parts += [(key, np.intersect1d(items, of_system)) for key, items in panel.slices.items() if key[0] != "system"]
        for (slice_name, value), items in parts:
            for by, scores in parties.items():
                asked = items[panel.asked[by][items]]
                if len(asked) or slice_name == "overall":
                    table.append(wasm(scores, panel.top, draws, asked, system, by, slice_name, value))
    return table


def wasm(
    scores: Floats,
    top: int,
    draws: Draws,
    items: Ints,
    system: str = "",
    by: str = "raters",
    slice_name: str = "overall",
    value: str = "",
) -> Wasm:
    """Return WASM of the answers at `items` from `scores` (units, raters), NaN = not rated; see [`Wasm`]."""
    given = scores[items]
    counts = [int((given == level).sum()) for level in range(top + 1)]
    rated = sum(counts)
    means = mean_of_rows(given)
    has_score = np.isfinite(means)
    unrated = int((~has_score).sum())
    number = Estimate(None, reason=NOBODY)
    pooled = lowest = highest = None
    if rated:
        sums = draws.sums(np.stack([means, np.ones(len(means))], axis=1)[has_score], items[has_score])
        empty = sums[:, 1] == 0
        number = estimate(np.where(empty, np.nan, sums[:, 0] / np.where(empty, 1, sums[:, 1])), NOBODY)
        pooled = sum(level * count for level, count in enumerate(counts)) / rated
        total = float(means[has_score].sum())
        lowest, highest = total / len(items), (total + top * unrated) / len(items)
    percent = None if number.value is None else 100 * number.value / top
    return Wasm(
        system, by, slice_name, value, len(items), rated, counts, number, percent, pooled, unrated, lowest, highest
    )

# SPDX-License-Identifier: Apache-2.0
"""Prediction-powered estimate: a judge's scores of all answers, corrected by raters' scores of some of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from .coefficients import Draws, Estimate, Floats, Ints
from .intervals import CONFIDENCE
from .panels import Panel


@dataclass(frozen=True)
class PredictionPowered:
    """WASM of one system as raters would give it, estimated with the help of one judge, on the scale's points.

    `estimate` is the mean of the judge over all `judged` answers, plus the mean of raters minus judge over the `rated`
    ones, which takes the judge's bias out. `raters_alone` is the mean over the rated answers without the judge: where
    its interval is the narrower one, the judge does not help. Intervals are normal, from the spread of the images.

    It holds where the rated answers are a random sample of the judged ones. Null where fewer than two images are
    rated.

    Source: Angelopoulos et al. 2023, Prediction-powered inference, for a mean. Differs: the rated answers are among
    the judged ones, and the variance accounts for it and for answers about one image.
    """

    system: str
    judge: str
    judged: int
    rated: int
    estimate: Estimate
    raters_alone: Estimate


def prediction_powered(panel: Panel, draws: Draws) -> list[PredictionPowered]:
    """Return the estimate for each system and judge where raters rated some of what the judge judged."""
    if not panel.raters:
        return []
    human = panel.human_mean
    found = []
    for (name, system), items in panel.slices.items():
        for judge, scores in panel.judges.items() if name == "system" else ():
            judged = items[np.isfinite(scores[items])]
            rated = judged[np.isfinite(human[judged])]
            found.append(
                PredictionPowered(
                    system,
                    judge,
                    len(judged),
                    len(rated),
                    estimate_mean(scores, human, draws.of_item, judged, rated, panel.top),
                    estimate_mean(np.zeros_like(human), human, draws.of_item, rated, rated, panel.top),
                )
            )
    return found


def estimate_mean(judge: Floats, human: Floats, clusters: Ints, judged: Ints, rated: Ints, top: float) -> Estimate:
    """Return mean of `judge` over `judged` plus mean of `human - judge` over `rated`, with its normal interval.

    The standard error is that of sums over clusters (images) of what each answer adds, so that the covariance of the
    two means, and of answers about one image, is in it. The interval is cut to the scale 0..`top`.
    """
    groups = np.unique(clusters[judged])
    if len(np.unique(clusters[rated])) < 2:
        return Estimate(None, reason="fewer than two images have ratings and verdicts")
    correction = human[rated] - judge[rated]
    value = judge[judged].mean() + correction.mean()
    adds = np.zeros(len(clusters))
    adds[judged] = (judge[judged] - judge[judged].mean()) / len(judged)
    adds[rated] += (correction - correction.mean()) / len(rated)
    by_group = np.bincount(clusters, weights=adds)
    error = np.sqrt((by_group**2).sum() * len(groups) / (len(groups) - 1))
    reach = norm.ppf((1 + CONFIDENCE) / 2) * error
    return Estimate(float(value), float(max(0, value - reach)), float(min(top, value + reach)))

# SPDX-License-Identifier: Apache-2.0
"""The reliability diagram and the risk-coverage curve of closed questions, as one picture."""

from __future__ import annotations

import os

from ..staging import whole_file
from .results import SMALL_SLICE, Calibration, told_if_unwritable


def write_reliability_plot(path: str | os.PathLike[str], calibration: Calibration) -> None:
    """Write a PNG: on the left accuracy against confidence by bin, on the right the share wrong against coverage.

    Bins with few items are pale. Equal input gives equal bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", label="as confident as right")
    for one in calibration.bins:
        strength = 0.35 if one.items < SMALL_SLICE else 1.0
        left.bar(one.confidence, one.accuracy, width=0.03, color="tab:blue", alpha=strength)
        left.annotate(f"{one.items}", (one.confidence, one.accuracy), ha="center", va="bottom", fontsize=8)
    left.set(xlim=(0.48, 1.02), ylim=(0, 1.2), xlabel="Confidence", ylabel="Share right")
    left.set_title(f"Reliability: ECE {calibration.ece.value:.3f}, temperature {calibration.temperature:.2f}")
    left.legend(loc="upper left")
    right.step(calibration.coverage, calibration.risk, where="post", color="tab:blue")
    if calibration.answered is not None:
        right.axvline(calibration.answered, color="grey", linestyle="--", label="abstention threshold")
        right.legend(loc="upper left")
    right.set(xlim=(0, 1), ylim=(0, None), xlabel="Coverage: questions answered", ylabel="Risk: share wrong")
    right.set_title(f"Risk and coverage: area {calibration.aurc:.3f}")
    with told_if_unwritable(path), whole_file(path) as staged:
        figure.savefig(staged, format="png", dpi=120, metadata={"Software": None})

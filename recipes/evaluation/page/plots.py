# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG for the page: their colours are the page's own, light or dark, and equal input gives equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..judges.drift import Drift
from ..results import SMALL_SLICE, Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins for the page's colours: each is replaced by the variable of that name.
COLOURS = {"ink": "#010101", "soft": "#020202", "line": "#030303", "accent": "#040404", "bad": "#050505"}
INK, SOFT, LINE, ACCENT, BAD = COLOURS.values()
SIZE_INCHES = (4.6, 3.5)  # at 72 points an inch: the width of a phone, so that letters keep their size


def reliability(calibration: Calibration) -> str:
    """Return accuracy against confidence by bin, with the number of questions; bins with few of them are hollow."""

    def draw(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=SOFT, linestyle="--", linewidth=1)
        bins = calibration.bins
        axes.plot([b.confidence for b in bins], [b.accuracy for b in bins], color=ACCENT, linewidth=1.5)
        for one in bins:
            few = one.items < SMALL_SLICE
            axes.plot(
                one.confidence, one.accuracy, "o", color=ACCENT, markersize=6, fillstyle="none" if few else "full"
            )
            axes.annotate(
                f"{one.items}", (one.confidence, one.accuracy), (0, 7), textcoords="offset points", ha="center",
                color=SOFT, fontsize=8,
            )  # fmt: skip
        axes.set(xlim=(0.48, 1.02), ylim=(0, 1.1), xlabel="Confidence", ylabel="Share right")

    return _svg("reliability", draw)


def risk_coverage(calibration: Calibration) -> str:
    """Return the share wrong against the share of questions answered, most confident first, and the threshold."""

    def draw(axes: Axes) -> None:
        axes.step(calibration.coverage, calibration.risk, where="post", color=ACCENT, linewidth=1.5)
        if calibration.answered is not None:
            axes.axvline(calibration.answered, color=SOFT, linestyle="--", linewidth=1)
            axes.text(calibration.answered, 0.01, " abstain beyond", color=SOFT, fontsize=9)
        top = max(calibration.risk, default=0)
        axes.set(xlim=(0, 1), ylim=(0, max(0.05, 1.15 * top)), xlabel="Questions answered", ylabel="Share wrong")

    return _svg("risk-coverage", draw)


def control_chart(drift: Drift, top: int) -> str:
    """Return the mean score of the sentinels by run, with the limits that the newest one must keep to."""

    def draw(axes: Axes) -> None:
        means = [float("nan") if run.mean is None else run.mean for run in drift.runs]
        axes.plot(range(1, len(means) + 1), means, "o-", color=ACCENT, linewidth=1.5)
        if drift.centre is not None and drift.limit is not None:
            axes.axhline(drift.centre, color=SOFT, linewidth=1)
            for bound in (drift.centre - drift.limit, drift.centre + drift.limit):
                axes.axhline(bound, color=BAD, linestyle="--", linewidth=1)
        axes.set(ylim=(-0.05 * top, 1.05 * top), xlabel="Run", ylabel="Sentinels, mean score")
        axes.set_xticks(range(1, len(means) + 1))

    return _svg("control-chart", draw)


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "text.color": INK}
    style |= {"xtick.color": SOFT, "ytick.color": SOFT, "axes.labelcolor": INK, "axes.edgecolor": LINE}
    out = io.StringIO()
    with rc_context(style):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.S)  # a style here would be the whole page's
    # One page holds several plots: their inner names must differ. The figure around them says what they show.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]+", "font-family: system-ui, sans-serif", text)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', text
    )
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.strip()

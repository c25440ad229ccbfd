# SPDX-License-Identifier: Apache-2.0
"""How the page writes numbers: shares as percentages, and never a number where there is none."""

from __future__ import annotations

from ..results import Difference, Interval, Row, Score
from ..tables import METRIC_TITLES

NOT_DEFINED = "not defined"
TASK_TITLES = {
    "vqa": "Visual question answering",
    "report": "Reports",
    "caption": "Captions",
    "refer": "Boxes of what a phrase names",
}
# VQA-RAD's codes of question types.
CODES = {
    "ABN": "abnormality",
    "ATTRIB": "attribute",
    "COLOR": "colour",
    "COUNT": "count",
    "MODALITY": "modality",
    "ORGAN": "organ",
    "OTHER": "other",
    "PLANE": "plane",
    "POS": "position",
    "PRES": "presence",
    "SIZE": "size",
}


def percent(score: Score | None) -> str:
    """Return `67.4 %`, or that it is not defined."""
    return NOT_DEFINED if score is None or score.value is None else f"{100 * score.value:.1f} %"


def interval_text(interval: Interval | None) -> str:
    """Return `64.7 to 70.1`, percent."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}" if interval else "no interval"


def points(difference: Difference | None) -> str:
    """Return `+25.1 (+21.1 to +29.1)`, points."""
    if difference is None or difference.value is None:
        return NOT_DEFINED
    value = f"{100 * difference.value:+.1f}"
    return f"{value} ({points_interval(difference.interval)})" if difference.interval else value


def points_interval(interval: Interval | None) -> str:
    """Return `+21.1 to +29.1`, points."""
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}" if interval else "no interval"


def quoted_interval(row: Row) -> Interval | None:
    """Return the interval to quote: over whole images where there is one, else Wilson's."""
    return row.score.cluster_interval or row.score.interval


def title_of(name: str) -> str:
    """Return a name of metric, baseline, control or slice as it is shown."""
    words = METRIC_TITLES.get(name, name.replace("_", " "))
    return words[:1].upper() + words[1:]


def capitalised(text: str) -> str:
    """Return a text that begins with a capital."""
    return text[:1].upper() + text[1:]

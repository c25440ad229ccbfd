# SPDX-License-Identifier: Apache-2.0
"""What the commands of `pefomed rate` do: merge sheets, import and export ratings, and say what is in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..records import Rating, append_records
from .panels import build_panels
from .raters import Defaults, is_control, read_ratings, write_csv
from .rating_sheets import merge_sheet, read_systems
from .tables import markdown_table

Paths = Sequence[str | os.PathLike[str]]


def merge_sheets(sheets: Paths, keys: Paths, out: str | os.PathLike[str]) -> list[str]:
    """Append the ratings of filled-in sheets to `out` and return what is worth saying. Nothing is appended on errors.

    Raises:
        ConfigError: there is not one key for each sheet, or `out` is no JSON lines file.
        PeFoMedError: as [`merge_sheet`].
    """
    if len(keys) != len(sheets):
        raise ConfigError(f"found {len(keys)} keys for {len(sheets)} sheets, expected one for each, in the same order")
    if Path(out).suffix != ".jsonl":
        raise ConfigError(f"out: found {out}, expected a file name that ends in .jsonl")
    known = read_ratings([out])[0] if Path(out).is_file() else []
    merged: list[Rating] = []
    said = []
    for sheet, key in zip(sheets, keys, strict=True):
        ratings, notes = merge_sheet(sheet, key, [*known, *merged])
        merged += ratings
        said += notes
    append_records(out, merged)
    return [*said, f"appended {len(merged)} ratings to {out}"]


def import_ratings(
    paths: Paths, out: str | os.PathLike[str], predictions: Paths = (), defaults: Defaults | None = None
) -> list[str]:
    """Check ratings and write them: appended to a `.jsonl`, or as a new `.csv`. Returns what is worth saying.

    Raises:
        ConfigError: `out` ends in neither.
        PeFoMedError: as [`read_ratings`], or a rating is in `out` already; nothing is written then.
    """
    if Path(out).suffix not in (".jsonl", ".csv"):
        raise ConfigError(f"out: found {out}, expected a file name that ends in .jsonl or .csv")
    adds = Path(out).suffix == ".jsonl"
    known = read_ratings([out])[0] if adds and Path(out).is_file() else []
    ratings, notes = read_ratings(paths, read_systems(predictions), defaults, known)
    if not adds:
        write_csv(out, ratings)
        return [*notes, f"wrote {len(ratings)} ratings to {out}"]
    append_records(out, ratings)
    return [*notes, f"appended {len(ratings)} ratings to {out}"]


def describe_ratings(ratings: Sequence[Rating]) -> str:
    """Return a table of the raters: answers rated, "cannot judge", repeats given the same score, controls right.

    Controls are right where the reference got the top and nothing got the bottom of the scale.
    """
    lines = []
    for panel in build_panels(ratings, [], [], {}):
        for name, scores in panel.raters.items():
            again = panel.repeats.get(name)
            both = [] if again is None else [one == two for one, two in zip(scores, again, strict=True) if two == two]
            right, controls = panel.controls[name]
            rated = sum(score == score for score in scores)  # NaN where there is none
            skipped = panel.cannot_judge[name]
            shown = [f"0 to {panel.top}", str(rated), str(skipped), f"{sum(both)} of {len(both)}"]
            lines.append([panel.task, name, *shown, f"{right} of {controls}"])
    header = ["Task", "Rater", "Scale", "Rated", "Cannot judge", "Repeats the same", "Controls right"]
    systems = sorted({rating.system for rating in ratings if not is_control(rating.system)})
    return f"{markdown_table(header, lines, left=2)}\n\nSystems: {', '.join(systems)}."

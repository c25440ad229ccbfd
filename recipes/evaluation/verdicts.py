# SPDX-License-Identifier: Apache-2.0
"""Verdicts of judges and scores of metrics from files, checked, and what kind of records a file holds."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import PeFoMedError, did_you_mean
from ..records import RUBRICS, Prediction, Verdict
from .panels import Unit
from .predictions import Problems
from .raters import is_control, score_of
from .row_files import json_rows

VERDICT_KEYS = tuple(f.name for f in fields(Verdict))


def read_verdicts(paths: Iterable[str | os.PathLike[str]], predictions: Sequence[Prediction] = ()) -> list[Verdict]:
    """Read and check verdicts.

    Raises:
        PeFoMedError: with all problems at once: a line is no verdict, a score is off its rubric's scale, the same
            sample of the same run occurs twice, or an item or system is unknown.
    """
    verdicts: list[Verdict] = []
    problems = Problems()
    first: dict[tuple[Any, ...], str] = {}
    known = {(item.id, item.system) for item in predictions}
    for path in map(Path, paths):
        for line, row in json_rows(path, problems, []):
            place = f"{path}, line {line}"
            try:
                verdict = _verdict(row)
            except ValueError as error:
                problems.add(path, str(error), line)
                continue
            key = (verdict.item_id, verdict.system, verdict.judge, verdict.rubric, verdict.run, verdict.sample)
            earlier = first.setdefault(key, place)
            if earlier is not place:
                problems.add(path, f"this sample of item {verdict.item_id!r} is there already ({earlier})", line)
            if known and not is_control(verdict.system) and (verdict.item_id, verdict.system) not in known:
                problems.add(path, f"no prediction of {verdict.system!r} for item {verdict.item_id!r}", line)
            verdicts.append(verdict)
    problems.raise_if_any()
    return verdicts


def _verdict(row: Mapping[str, Any]) -> Verdict:
    unknown = [name for name in row if name not in VERDICT_KEYS]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}{did_you_mean(unknown[0], VERDICT_KEYS)}")
    for name in ("item_id", "system", "judge", "task", "rubric"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise ValueError(f"{name}, expected a text")
    if row["rubric"] not in RUBRICS:
        raise ValueError(f"rubric {row['rubric']!r}, expected one of {', '.join(RUBRICS)}")
    if "score" not in row or "rubric_sha256" not in row:
        raise ValueError("no score or rubric_sha256")
    problems: list[str] = []
    score_of(row["score"], row["rubric"], problems)
    if problems:
        raise ValueError(problems[0])
    verdict = Verdict(**row)
    if verdict.trusted is False:  # so that no table shows its scores without saying so
        verdict.judge += " (not trustworthy)"
    return verdict


def read_scores(
    paths: Iterable[str | os.PathLike[str]], predictions: Sequence[Prediction]
) -> dict[str, dict[Unit, float]]:
    """Read metrics that were computed elsewhere: JSON lines with `item_id`, `system` and numbers, null = undefined.

    Raises:
        PeFoMedError: with all problems at once: an id is missing or unknown, or a value is no number.
    """
    known = {(item.id, item.system) for item in predictions}
    found: dict[str, dict[Unit, float]] = defaultdict(dict)
    problems = Problems()
    for path in map(Path, paths):
        for line, row in json_rows(path, problems, []):
            unit = (str(row.pop("item_id", "")), str(row.pop("system", "")))
            if unit not in known:
                problems.add(path, f"no prediction of {unit[1]!r} for item {unit[0]!r}", line)
            for name, value in row.items():
                if isinstance(value, bool) or not isinstance(value, int | float | None):
                    problems.add(path, f"{name} {value!r}, expected a number or null", line)
                elif value is not None:
                    found[name][unit] = float(value)
    problems.raise_if_any()
    return found


def kind_of_file(path: str | os.PathLike[str]) -> str:
    """Return `ratings`, `verdicts` or `predictions`, from the name's end and the first line's keys.

    Raises:
        PeFoMedError: the file is missing, empty, or none of them.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        return "ratings"
    problems = Problems()
    _, row = next(iter(json_rows(path, problems, [])), (0, {}))
    if not row:
        problems.raise_if_any()
    for kind, key in (("ratings", "rater_id"), ("verdicts", "judge"), ("predictions", "prediction")):
        if key in row:
            return kind
    raise PeFoMedError(f"{path}: expected ratings (rater_id), verdicts (judge) or predictions (prediction)")

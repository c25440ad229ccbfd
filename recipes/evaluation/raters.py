# SPDX-License-Identifier: Apache-2.0
"""Human ratings from files and into files: JSON lines or CSV, one rating a line or one rater a column.

Nothing is dropped in silence: what cannot be used is a problem, and all problems of all files come in one error, each
with its file and line. What was left blank is counted in a note.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import PeFoMedError, did_you_mean
from ..records import RUBRICS, TASKS, Prediction, Rating
from .predictions import Problems
from .row_files import guard_cell, json_rows, read_rows, write_rows

COLUMNS = tuple(f.name for f in fields(Rating))
IDENTITY, EMPTY = "control:identity", "control:empty"
CONTROLS = (IDENTITY, EMPTY)
SUGGESTIONS = 20  # looking for the nearest of many ids takes its time
_CANNOT_JUDGE = {"x", "n/a", "na", "cannot judge"}
_TRUE, _FALSE = {"true", "1", "yes", "x"}, {"false", "0", "no", ""}

Key = tuple[str, str, str, str, int]


@dataclass
class RatingsRead:
    """Ratings with the file and line of each, the problems that were found, and notes that are none."""

    ratings: list[Rating] = field(default_factory=list)
    places: list[tuple[Path, int]] = field(default_factory=list)  # line 0: was there before
    problems: Problems = field(default_factory=Problems)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def beside(cls, earlier: Sequence[Rating]) -> RatingsRead:
        """Return a list that begins with ratings that are there already."""
        return cls(list(earlier), [(Path(), 0)] * len(earlier))


@dataclass(frozen=True)
class Defaults:
    """What the rows of a file have in common where it has no column for it, and how its columns are called.

    `rename` maps the file's column names to ours, as `{"study_number": "item_id"}`. Without a rubric, questions take
    `paper-vqa` and everything else `paper-report`.
    """

    task: str = ""
    rubric: str = ""
    system: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)


def default_rubric(task: str) -> str:
    """Return the paper's rubric of a task: right or wrong for questions and boxes, 0..4 for texts."""
    return "paper-vqa" if task in ("vqa", "refer") else "paper-report"


def highest_score(rubric: str) -> int:
    """Return the top of a rubric's scale; the bottom is 0."""
    return len(RUBRICS[rubric]) - 1


def read_ratings(
    paths: Iterable[str | os.PathLike[str]],
    predictions: Sequence[Prediction] = (),
    defaults: Defaults | None = None,
    earlier: Sequence[Rating] = (),
) -> tuple[list[Rating], list[str]]:
    """Read and check ratings, and return them with notes on what is no problem but worth saying.

    Args:
        paths: `.csv` or JSON lines. A CSV file with the columns `rater_id` and `score` is long; else it is wide: every
            column that is not one of a rating's own names a rater, and its cells hold scores; blank is not rated, `x`
            is "cannot judge".
        predictions: with them, ids and systems that they do not have are problems.
        defaults: for what a file does not say.
        earlier: ratings that these are to be added to; the same ones again are a problem.

    Raises:
        PeFoMedError: a file is missing; a line is not UTF-8 or malformed; a score is off its rubric's scale; the same
            rater rated the same answer twice without `repeat`; an item or system is unknown.
    """
    read = RatingsRead.beside(earlier)
    for path in map(Path, paths):
        _read_file(path, defaults or Defaults(), read, {item.id: item.task for item in predictions})
    check_ratings(read, predictions)
    read.problems.raise_if_any()
    found = read.ratings[len(earlier) :]
    if not found:
        raise PeFoMedError("no rating in the files; expected one JSON object or CSV row for each")
    return found, read.notes


def check_ratings(read: RatingsRead, predictions: Sequence[Prediction] = ()) -> None:
    """Add to the problems what only several ratings, or the predictions, can show."""
    first: dict[Key, int] = {}
    known = {(item.id, item.system) for item in predictions}
    tasks = {item.id: item.task for item in predictions}
    systems = {item.system for item in predictions}
    for at, (rating, (path, line)) in enumerate(zip(read.ratings, read.places, strict=True)):
        earlier = first.setdefault(rating_key(rating), at)
        if earlier != at:
            answer = f"item {rating.item_id!r} of {rating.system!r}"
            there, number = read.places[earlier]
            where = f"{there}, line {number}" if number else "in the ratings that are there"
            read.problems.add(path, f"{rating.rater_id!r} rated {answer} already ({where})", line)
        if not known or not line:
            continue
        if rating.item_id not in tasks:
            near = did_you_mean(rating.item_id, tasks) if len(read.problems.found) < SUGGESTIONS else ""
            read.problems.add(path, f"unknown item_id {rating.item_id!r}{near}", line)
        elif not is_control(rating.system) and (rating.item_id, rating.system) not in known:
            what = "no prediction of" if rating.system in systems else "unknown system"
            read.problems.add(path, f"{what} {rating.system!r}{did_you_mean(rating.system, systems)}", line)
        elif rating.task != tasks[rating.item_id]:
            read.problems.add(path, f"task {rating.task!r}, but the prediction's is {tasks[rating.item_id]!r}", line)


def is_control(system: str) -> bool:
    """Whether answers of this name were made to check raters or judges, and are of no system."""
    return system.startswith("control:")


def rating_key(rating: Rating) -> Key:
    """Return what only one rating may have."""
    return rating.item_id, rating.system, rating.rater_id, rating.rubric, rating.repeat


def write_csv(path: str | os.PathLike[str], ratings: Iterable[Rating]) -> None:
    """Write the long form, with a byte order mark so that spreadsheets read it as UTF-8.

    Text that a spreadsheet would run as a formula gets an apostrophe in front; reading takes it off again.
    """
    rows = [
        {name: "" if value is None else guard_cell(value) for name, value in asdict(rating).items()}
        for rating in ratings
    ]
    write_rows(path, COLUMNS, rows)


def _read_file(path: Path, defaults: Defaults, read: RatingsRead, tasks: Mapping[str, str]) -> None:
    if path.suffix.lower() == ".csv":
        rows = read_rows(path, read.problems)
        rows = [(line, {defaults.rename.get(k, k): v for k, v in row.items()}) for line, row in rows]
        if rows and not {"rater_id", "score"} <= set(rows[0][1]):
            rows = _from_wide(path, rows, read)
        for line, row in rows:
            add_row(path, line, dict(row), defaults, read, tasks)
    else:
        for line, row in json_rows(path, read.problems, read.notes):
            add_row(path, line, row, defaults, read, tasks)


def _from_wide(
    path: Path, rows: Sequence[tuple[int, dict[str, str]]], read: RatingsRead
) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of the long form."""
    if "item_id" not in rows[0][1] or "score" in rows[0][1]:
        found = ", ".join(rows[0][1])
        read.problems.add(path, f"columns {found}; expected item_id with rater_id and score, or with raters", 1)
        return []
    raters = [name for name in rows[0][1] if name not in COLUMNS]
    shared = [name for name in rows[0][1] if name in COLUMNS]
    long, blank = [], 0
    for line, row in rows:
        for rater in raters:
            cell = row[rater]
            if not cell:
                blank += 1
                continue
            skipped = cell.casefold() in _CANNOT_JUDGE
            values = {"rater_id": rater, "score": "" if skipped else cell, "cannot_judge": str(skipped)}
            long.append((line, {name: row[name] for name in shared} | values))
    if not raters:
        read.problems.add(path, "no column of a rater", 1)
    if blank:
        read.notes.append(f"{path}: {blank} cells are blank: not rated")
    return long


def add_row(
    path: Path, line: int, row: dict[str, Any], defaults: Defaults, read: RatingsRead, tasks: Mapping[str, str]
) -> None:
    """Add one rating, or the problems of its row."""
    unknown = [name for name in row if name not in COLUMNS]
    if unknown:
        read.problems.add(path, f"unknown column {unknown[0]!r}{did_you_mean(unknown[0], COLUMNS)}", line)
        return
    row = {name: value for name, value in row.items() if value is not None and value != ""}
    task = row.get("task") or defaults.task or tasks.get(str(row.get("item_id")), "")
    filled = {
        "system": defaults.system,
        "task": task,
        "rubric": defaults.rubric or default_rubric(task),
        "rater_id": "",
        "item_id": "",
    } | row
    problems: list[str] = []
    for name in ("item_id", "system", "rater_id", "task", "rubric"):
        if isinstance(filled[name], int) and not isinstance(filled[name], bool):
            filled[name] = str(filled[name])  # raters and studies are often numbered
        if not isinstance(filled[name], str) or not filled[name].strip():
            is_unknown = name == "task" and tasks
            problems.append(f"unknown item_id {filled['item_id']!r}" if is_unknown else f"{name} is missing")
    if not problems and filled["task"] not in TASKS:
        problems.append(f"task {filled['task']!r}, expected one of {', '.join(TASKS)}")
    if not problems and filled["rubric"] not in RUBRICS:
        problems.append(f"rubric {filled['rubric']!r}, expected one of {', '.join(RUBRICS)}")
    if not problems:
        rating = Rating(
            **{name: filled[name] for name in ("item_id", "system", "rater_id", "task", "rubric")},
            score=score_of(filled.get("score"), filled["rubric"], problems),
            cannot_judge=_flag(filled.get("cannot_judge", False), problems),
            comment=str(filled.get("comment", "")),
            seconds=_seconds(filled.get("seconds"), problems),
            rated_at=_time(filled.get("rated_at", ""), problems),
            repeat=_whole_number(filled.get("repeat", 0), "repeat", problems),
        )
        if not problems and (rating.score is None) != rating.cannot_judge:
            problems.append("no score" if rating.score is None else "both a score and cannot_judge")
        # Also where something is wrong, so that its ids are checked: problems raise before anybody sees it.
        read.ratings.append(rating)
        read.places.append((path, line))
    for problem in problems:
        read.problems.add(path, problem, line)


def score_of(value: Any, rubric: str, problems: list[str]) -> int | None:
    """Return a score, `None` where there is none; one that is not on the rubric's scale is a problem."""
    if value is None:
        return None
    top = highest_score(rubric)
    score = _whole(value)
    if score is None or not 0 <= score <= top:
        problems.append(f"score {value!r}, expected a whole number from 0 to {top} ({rubric})")
    return score


def _whole(value: Any) -> int | None:
    """Return an integer from 3, 3.0, "3" or "3.0" (spreadsheets write whole numbers so), else `None`."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
        return int(number) if number == int(number) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _whole_number(value: Any, name: str, problems: list[str]) -> int:
    number = _whole(value)
    if number is None or number < 0:
        problems.append(f"{name} {value!r}, expected a whole number from 0")
        return 0
    return number


def _flag(value: Any, problems: list[str]) -> bool:
    text = str(value).strip().casefold()
    if text not in _TRUE | _FALSE:
        problems.append(f"cannot_judge {value!r}, expected true or false")
    return text in _TRUE


def _seconds(value: Any, problems: list[str]) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        problems.append(f"seconds {value!r}, expected a number from 0")
    return seconds


def _time(value: Any, problems: list[str]) -> str:
    try:
        if value:
            datetime.fromisoformat(value)
        return str(value)
    except (TypeError, ValueError):
        problems.append(f"rated_at {value!r}, expected a time in ISO 8601, as 2026-01-31T14:00:00+00:00")
        return ""

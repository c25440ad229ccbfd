# SPDX-License-Identifier: Apache-2.0
"""Blinded sheets for raters without a browser: written from predictions, and merged back with their key.

A rater sees the question or request, the reference and a candidate, never who wrote it. Some rows come twice and some
hold the reference itself or nothing: they tell how steady and how attentive the rater is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import ConfigError, PeFoMedError
from ..records import RUBRICS, Prediction, Rating
from ..staging import whole_file
from .predictions import Problems, load_predictions
from .raters import (
    CONTROLS,
    IDENTITY,
    Defaults,
    RatingsRead,
    add_row,
    check_ratings,
    default_rubric,
)
from .row_files import guard_cell, read_rows, write_rows

KEY_SCHEMA = "pefomed-rating-key/1"
REPEATS, CONTROL_SHARE = 0.08, 0.03
SHEET_COLUMNS = ("row", "image", "question", "reference", "candidate", "scale", "score", "cannot_judge", "comment")
FILLED_IN = ("score", "cannot_judge", "comment")
# Without vowels no word arises, without digits no spreadsheet takes a code for a number.
_LETTERS = "bcdfghjklmnpqrstvwxz"


@dataclass(frozen=True)
class SheetRow:
    """What the key knows about one row of a sheet."""

    item_id: str
    system: str
    task: str
    rubric: str
    repeat: int = 0


@dataclass(frozen=True)
class BlindRow:
    """One row as a rater sees it, with what it really is; the latter is kept from the rater."""

    row: SheetRow
    image: str
    question: str
    reference: str
    candidate: str


def read_systems(paths: Sequence[str | os.PathLike[str]]) -> list[Prediction]:
    """Read the predictions of one or several systems.

    Raises:
        PeFoMedError: as [`read_predictions`], or two files hold the same item of the same system.
    """
    problems = Problems()
    files = [(Path(path), load_predictions(path, problems)) for path in paths]
    problems.raise_if_any()
    seen: dict[tuple[str, str], Path] = {}
    for path, items in files:
        for item in items:
            earlier = seen.setdefault((item.id, item.system), path)
            if earlier is not path:
                same = f"answers of {item.system!r} to the same items are in {earlier}"
                problems.add(path, f"{same}; systems differ by `adapter`, `model` or `control`")
    problems.raise_if_any()
    return [item for _, items in files for item in items]


def draw_rows(
    predictions: Sequence[Prediction], rater: str, *, rubric: str = "", seed: int = 0, limit: int | None = None
) -> dict[str, BlindRow]:
    """Return what one rater is asked, in the order to ask it, by codes that tell nothing.

    The rows stand in an order that rater and seed decide, not the files. 8 % of them (one at least) are hidden
    repeats: they come in the second half, of answers in the first. 3 % (two at least) are controls: the reference as
    the candidate, and nothing as the candidate, in turn.

    Args:
        rubric: a key of `RUBRICS`; the paper's for the task by default.
        limit: only so many items, the same ones for every rater, each with the answers of all systems.

    Raises:
        ConfigError: the rubric is unknown, or the rater's code is blank.
    """
    if rubric and rubric not in RUBRICS:
        raise ConfigError(f"rubric {rubric!r}, expected one of {', '.join(RUBRICS)}")
    if not rater.strip():
        raise ConfigError("the rater's code is blank")
    by_item = {item.id: item for item in sorted(predictions, key=lambda item: (item.id, item.system))}
    ids = sorted(by_item)
    if limit is not None:
        ids = [str(name) for name in _random(seed, "items").permutation(ids)[:limit]]
    taken = set(ids)
    answers = {(item.id, item.system): item.prediction for item in predictions if item.id in taken}
    draw = _random(seed, rater)
    units = [sorted(answers)[at] for at in draw.permutation(len(answers))]
    for at in range(max(2, round(CONTROL_SHARE * len(units)))):
        name = ids[int(draw.integers(len(ids)))]
        control = (name, CONTROLS[at % 2])
        if control not in answers:
            answers[control] = by_item[name].answers[0] if control[1] == IDENTITY else ""
            units.insert(int(draw.integers(len(units) + 1)), control)
    rows = [(unit, 0) for unit in units]
    half = len(rows) // 2
    again = [at for at in range(half) if rows[at][0][1] not in CONTROLS]
    for at in draw.permutation(again)[: max(1, round(REPEATS * len(units)))]:
        rows.insert(int(draw.integers(half + 1, len(rows) + 1)), (rows[int(at)][0], 1))

    blind: dict[str, BlindRow] = {}
    for (name, system), repeat in rows:
        item = by_item[name]
        used = rubric or default_rubric(item.task)
        code = ""
        while not code or code in blind:
            code = "".join(_LETTERS[at] for at in draw.integers(len(_LETTERS), size=6))
        row = SheetRow(name, system, item.task, used, repeat)
        image = item.image_id or item.study_id
        blind[code] = BlindRow(row, image, item.instruction, " | ".join(item.answers), answers[name, system])
    return blind


def export_sheet(
    predictions: Sequence[Prediction],
    rater: str,
    out: str | os.PathLike[str],
    key: str | os.PathLike[str],
    *,
    rubric: str = "",
    seed: int = 0,
    limit: int | None = None,
) -> int:
    """Write a sheet (`.csv`) for one rater and its key (`.json`), and return the number of rows.

    The rows are those of [`draw_rows`]. The key tells what each row is: keep it from the rater.

    Raises:
        ConfigError: the file names are unfit, or as [`draw_rows`].
    """
    if Path(out).suffix.lower() != ".csv" or Path(key).suffix != ".json":
        raise ConfigError(f"found {out} and {key}, expected a sheet that ends in .csv and a key that ends in .json")
    blind = draw_rows(predictions, rater, rubric=rubric, seed=seed, limit=limit)
    sheet = []
    for code, shown in blind.items():
        levels = enumerate(RUBRICS[shown.row.rubric])
        texts = {
            "row": code,
            "image": shown.image,
            "question": shown.question,
            "reference": shown.reference,
            "candidate": shown.candidate,
            "scale": "; ".join(f"{score} = {meaning}" for score, meaning in levels),
        }
        sheet.append({column: guard_cell(texts.get(column, "")) for column in SHEET_COLUMNS})
    stored = {
        "schema": KEY_SCHEMA,
        "rater_id": rater,
        "rows": {code: asdict(shown.row) for code, shown in blind.items()},
    }
    with whole_file(key) as staged:
        staged.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_rows(out, SHEET_COLUMNS, sheet)
    return len(sheet)


def merge_sheet(
    sheet: str | os.PathLike[str], key: str | os.PathLike[str], earlier: Sequence[Rating] = ()
) -> tuple[list[Rating], list[str]]:
    """Return the ratings of a filled-in sheet, with item, system and rater from its key, and notes.

    Rows without score, mark and comment are not rated; a note counts them. Only the columns `row`, `score`,
    `cannot_judge` and `comment` are read, in any order.

    Args:
        earlier: ratings that the new ones are to be added to; the same ones again are a problem.

    Raises:
        PeFoMedError: all that is wrong with the rows: unknown, doubled or missing codes, scores off the scale.
    """
    path = Path(sheet)
    rater, codes = _read_key(Path(key))
    read = RatingsRead.beside(earlier)
    rows = read_rows(path, read.problems)
    missing = [name for name in ("row", *FILLED_IN) if rows and name not in rows[0][1]]
    if missing:
        raise PeFoMedError(f"{path}, line 1: no column {missing[0]!r}; expected {', '.join(SHEET_COLUMNS)}")
    seen: dict[str, int] = {}
    blank = 0
    for line, row in rows:
        code = row["row"]
        if code not in codes:
            read.problems.add(path, f"row {code!r} is not in the key {key}: another rater's sheet?", line)
        elif code in seen:
            read.problems.add(path, f"row {code!r} stands on line {seen[code]} already", line)
        elif not any(row[name] for name in FILLED_IN):
            blank += 1
        else:
            filled = {name: row[name] for name in FILLED_IN} | asdict(codes[code]) | {"rater_id": rater}
            add_row(path, line, filled, Defaults(), read, {})
        seen.setdefault(code, line)
    lost = [code for code in codes if code not in seen]
    if lost:
        read.problems.add(path, f"{len(lost)} rows of the key are missing, the first is {lost[0]!r}")
    check_ratings(read)
    read.problems.raise_if_any()
    if blank:
        read.notes.append(f"{path}: {blank} of {len(codes)} rows are blank: not rated")
    return read.ratings[len(earlier) :], read.notes


def _read_key(path: Path) -> tuple[str, dict[str, SheetRow]]:
    if not path.is_file():
        raise PeFoMedError(f"{path}: no such file; expected the key that was written with the sheet")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["schema"] != KEY_SCHEMA:
            raise ValueError
        return stored["rater_id"], {code: SheetRow(**row) for code, row in stored["rows"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PeFoMedError(f"{path}: not a key of a rating sheet ({KEY_SCHEMA})") from None


def _random(seed: int, name: str) -> np.random.Generator:
    """Return a generator that seed and name decide, on every machine alike."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))

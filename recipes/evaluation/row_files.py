# SPDX-License-Identifier: Apache-2.0
"""Rows of files with the line on which each begins: JSON lines, and CSV as spreadsheets write and read it.

Problems are noted, so that all of them can be told at once; three separators and a byte order mark are understood, and
no cell that is written runs as a formula.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..staging import whole_file
from .predictions import Problems, holds_half_pair
from .results import HALF_PAIR

_FORMULA_STARTS = "=+-@\t\r'"


def write_rows(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file; it appears only when it is whole."""
    with whole_file(path) as staged, staged.open("w", encoding="utf-8-sig", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)


def guard_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet runs as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] and value[0] in _FORMULA_STARTS else value


def unguard_cell(text: str) -> str:
    """Undo [`guard_cell`]."""
    return text[1:] if len(text) > 1 and text[0] == "'" and text[1] in _FORMULA_STARTS else text


def read_rows(path: Path, problems: Problems) -> list[tuple[int, dict[str, str]]]:
    """Return `(line number, row)` of a CSV file with commas, semicolons or tabs; problems are noted.

    The number is that of the line on which the row begins. A row with more or fewer cells than columns is a problem.
    """
    text = _decode(path, problems)
    if text is None:
        return []
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] = []
    begin = 1
    try:
        for cells in reader:
            here, begin = begin, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                doubled = sorted({name for name in header if header.count(name) > 1})
                if doubled:
                    problems.add(path, f"the column {doubled[0]!r} occurs twice", here)
                    return []
            elif len(cells) != len(header):
                problems.add(path, f"{len(cells)} cells, expected {len(header)}", here)
            else:
                texts = (unguard_cell(cell.strip()) for cell in cells)
                rows.append((here, dict(zip(header, texts, strict=True))))
    except csv.Error as error:
        problems.add(path, f"not CSV ({error})", begin)
    if not header:
        problems.add(path, "empty; expected a line of column names")
    return rows


def json_rows(path: Path, problems: Problems, notes: list[str]) -> Iterable[tuple[int, dict[str, Any]]]:
    """Yield `(line number, object)`; what is no object is a problem, and a half line at the end is a note."""
    if not path.is_file():
        problems.add(path, "no such file")
        return
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                if not raw.endswith(b"\n"):  # the last line, and its writer was killed
                    notes.append(f"{path}, line {number}: a half line at the end, left out")
                else:
                    what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
                    problems.add(path, f"{what}; expected one object a line", number)
                continue
            if holds_half_pair(raw, row):
                problems.add(path, f"a text holds {HALF_PAIR}", number)
            elif isinstance(row, dict):
                yield number, row
            else:
                problems.add(path, f"found {type(row).__name__}, expected a JSON object", number)


def _decode(path: Path, problems: Problems) -> str | None:
    if not path.is_file():
        problems.add(path, "no such file")
        return None
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problems.add(path, "not UTF-8; save the file as UTF-8", line)
        return None

# SPDX-License-Identifier: Apache-2.0
"""Reads people's own tables: a folder of image files beside `train.csv`, `validation.csv`, `test.csv`.

Columns are named like the keys of the JSON lines form (see `jsonl`), in any case: `image`, and `question` + `answer`,
`caption`, `report`, or `phrase` + `box`; `id`, `answer_type`, `question_type`, `organ`, `modality`, `image_id`,
`study_id`, `patient_id`, `linked_id`, `language`, `split` and `instruction` may stand beside them:

    image,question,answer,answer_type
    images/1.png,Is there an effusion?,yes,CLOSED
    "[""images/2a.png"", ""images/2b.png""]",What changed?,nothing,OPEN

An empty cell counts as absent. A cell of `image`, `answer`, `caption` or `report` that holds a JSON list stands for
several; a `box` is four integers with commas or blanks between them. Files end in `.csv` or `.tsv`, `.gz` after it or
not; commas, semicolons and tabs separate cells, whichever the header has most of. Texts stay as they are in the file,
numbers included. A file of another name holds all splits, told apart by its column `split`.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import did_you_mean
from ..records import TASKS, Sample
from .files import read_csv, text_lines
from .jsonl import KNOWN_KEYS, row_samples, split_file
from .reading import DatasetError, Layout, Problems, Source, canonical_split

ENDINGS = ("csv", "tsv", "csv.gz", "tsv.gz")
DELIMITERS = ",;\t"
LIST_COLUMNS = ("image", "answer", "caption", "report")


def stream_csv_samples(root: Path, split: str) -> Iterator[Sample]:
    """Yield the samples of ROOT/{split}.csv one by one.

    Raises:
        MissingSplitError: there is no such split in the folder.
        DatasetError: columns are unknown or missing, or rows have problems: all of them, at the file's end.
    """
    root, split = Path(os.path.abspath(root)), canonical_split(split)
    path, is_shared = split_file(root, split, *ENDINGS)
    problems = Problems(path, "line")
    rows = table_rows(path, problems, KNOWN_KEYS, required="image")
    yield from row_samples(rows, root, split, problems, is_shared=is_shared)


def table_rows(
    path: Path, problems: Problems, known: tuple[str, ...], required: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, filled cells by column) of a table, lists and boxes unpacked.

    Args:
        path: the table.
        problems: takes what is wrong with rows.
        known: the columns there may be; others are refused once, before any row is read.
        required: a column that must be there.

    Raises:
        DatasetError: columns are unknown, twice or missing, or the file cannot be read.
    """
    delimiter, header = _read_header(path)
    unknown = [f"{name[:40]!r}{did_you_mean(name, known)}" for name in header if name not in known]
    if len(unknown) == len(header):  # a row of data, whose texts are nobody's business
        raise DatasetError(
            f"{path}, line 1: none of its {len(header)} cells names a column; expected a first line with some of "
            f"{', '.join(known)}"
        )
    if unknown:
        raise DatasetError(f"{path}: unknown columns {', '.join(unknown)}; expected some of {', '.join(known)}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DatasetError(f"{path}: found the column {twice[0]!r} twice; expected each once")
    for number, cells in read_csv(path, problems, (required,), delimiter=delimiter):
        yield number, {name: _value(name, cell) for name, cell in cells.items() if cell.strip()}


def _read_header(path: Path) -> tuple[str, list[str]]:
    """Return what separates the cells of a table, and its columns in lower case."""
    problems = Problems(path, "line")
    _, line = next(text_lines(path, problems), (0, ""))
    if problems.found:
        raise DatasetError(f"{path}: not UTF-8 text; save the file as UTF-8 (in Excel: CSV UTF-8)")
    delimiter = max(DELIMITERS, key=line.count)  # the comma where there is none
    try:
        header = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
    except csv.Error as error:
        raise DatasetError(f"{path}, line 1: {error}; expected the names of the columns") from None
    if not any(header):
        raise DatasetError(f"{path}: the first line is empty; expected the names of the columns")
    return delimiter, header


def _value(column: str, cell: str) -> Any:
    """Return what a filled cell stands for: its text, or the list that it holds."""
    if column == "box":
        parts = re.split(r"[\s,;]+", cell.strip(" []()"))
        return [int(part) if re.fullmatch(r"-?\d+", part, re.ASCII) else part for part in parts]
    if column in LIST_COLUMNS and cell.lstrip().startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell  # a text that begins with a bracket
        return value if isinstance(value, list) else cell
    return cell


SOURCE = Source(
    "csv",
    "a folder with a table",
    TASKS,
    "",
    (
        Layout(
            "csv",
            lambda root: any(True for ending in ENDINGS for _ in root.glob(f"*.{ending}")),
            stream_csv_samples,
            "train.csv with a column image and those of a task, and the images that it names",
        ),
    ),
    languages=(),
)

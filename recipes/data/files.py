# SPDX-License-Identifier: Apache-2.0
"""How readers open what they are given: tables, JSON and image names, line by line where the format allows it.

Everything is UTF-8, with or without a byte order mark, LF or CRLF, and gzip where the name ends in `.gz`.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .reading import SPLIT_SPELLINGS, DatasetError, MissingSplitError, Problems, as_text

_PEEKED_CHARACTERS = 2**16


def text_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Yield (line number, text without its line end) for each line; one that is not UTF-8 is noted and left out.

    Raises:
        DatasetError: the file is missing, cannot be read or is no whole gzip file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    problems.add(number, "not UTF-8 text; save the file as UTF-8")
                else:
                    yield number, text.rstrip("\r\n")
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (EOFError, zlib.error):
        raise DatasetError(f"{path}: the gzip file is cut short or damaged; download it again") from None
    except OSError as error:
        raise DatasetError(f"{path}: the file cannot be read ({error.strerror or 'not gzip'}); check it") from None


def read_csv(
    path: Path, problems: Problems, columns: Sequence[str], *, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (number of its last line, row) for each row of a comma-separated table; names of columns in lower case.

    Args:
        columns: the columns that must be there, in lower case; others are kept, too.
        delimiter: what stands between cells.

    Raises:
        DatasetError: a column is missing, or a quote is left open.
    """
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for at, text in text_lines(path, problems):  # noqa: B007 - read by the loop below
            yield text + "\n"

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        require_columns(path, header, columns)
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                problems.add(at, f"found {len(cells)} cells, expected {len(header)}")
            else:
                yield at, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DatasetError(f"{path}, line {at}: {error}; expected a comma-separated table, quotes closed") from None


def read_tsv(path: Path, problems: Problems, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) for each line of a TAB-separated table; names of columns in lower case.

    A line is a row, whatever quotes are in it; they are taken off a cell that they enclose.

    Raises:
        DatasetError: a column is missing.
    """
    header: list[str] = []
    for number, line in text_lines(path, problems):
        if not line.strip():
            continue
        cells = [_unquoted(cell) for cell in line.split("\t")]
        if not header:
            header = [name.strip().lower() for name in cells]
            require_columns(path, header, columns)
        elif len(cells) != len(header):
            problems.add(number, f"found {len(cells)} cells between TABs, expected {len(header)}")
        else:
            yield number, dict(zip(header, cells, strict=True))
    if not header:
        require_columns(path, header, columns)


def require_columns(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    """Check that a table has its columns.

    Raises:
        DatasetError: one is missing.
    """
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(name[:40] for name in header[:20]) or "an empty file"
        if header and len(missing) == len(columns):  # perhaps a row of data, whose texts are nobody's business
            found = f"{len(header)} other columns in the first line"
        raise DatasetError(f"{path}: no column {', '.join(missing)}; found {found}")


def read_json(path: Path, *, as_pairs: bool = False) -> Any:
    """Return the content of a JSON file, objects as lists of (key, value) where keys that come twice must show.

    Raises:
        DatasetError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list if as_pairs else None)
    except OSError as error:
        raise DatasetError(f"{path}: the file cannot be read ({error.strerror}); check it") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: not UTF-8 text; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}: not JSON ({error.msg}); is the file whole?") from None
    except (ValueError, RecursionError):
        raise DatasetError(f"{path}: JSON with a number too long or nested too deep to read") from None


def peek_json(path: Path) -> Any:
    """Return the beginning of a JSON file: of each list or object that is long, the first entry; None for no JSON."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            return _peek(stream.read(_PEEKED_CHARACTERS))
    except (OSError, ValueError, RecursionError):
        return None


def read_json_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, object) for each entry of a JSON list; entries that are no objects are noted.

    Raises:
        DatasetError: the file cannot be read, or is no JSON list.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DatasetError(f"{path}: found no JSON list, expected a list of objects")
    yield from numbered_objects(rows, problems)


def numbered_objects(rows: Sequence[Any], problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, object) for each entry of a list; entries that are no objects are noted."""
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield number, row
        else:
            problems.add(number, f"found {type(row).__name__}, expected an object")


def json_of_split(root: Path, split: str, is_form: Callable[[Any], bool]) -> Path:
    """Return the JSON file of a folder that holds a split, which the file's name says: `roco_val.json`.

    A file whose name says no split is the training split. `is_form` tells from what [`peek_json`] returns whether a
    file is of the form that is looked for; other JSON files may lie beside it.

    Raises:
        MissingSplitError: there is none.
        DatasetError: two claim the split.
    """
    files = [path for path in sorted(root.glob("*.json")) if is_form(peek_json(path))]
    named = [path for path in files if split_in_name(path.stem) == split]
    if len(named) > 1:
        raise DatasetError(f"{root}: found {' and '.join(p.name for p in named)}; expected one file for {split}")
    if not named:
        found = ", ".join(path.name for path in files) or "no JSON file of this form"
        raise MissingSplitError(f"{root}: found {found}; expected {split}.json")
    return named[0]


def split_in_name(name: str) -> str:
    """Return the split that a file's name says: `validation` for `roco_val`; `train` where it says none."""
    words = re.split("[^a-z]+", name.lower())
    return next((split for split, spellings in SPLIT_SPELLINGS.items() if set(words) & set(spellings)), "train")


def split_of(value: str) -> str | None:
    """Return the split that a cell names in any spelling, None where it names none."""
    return next((split for split, spellings in SPLIT_SPELLINGS.items() if value.strip().lower() in spellings), None)


def text_of(row: Mapping[str, Any], key: str, number: int, problems: Problems) -> str | None:
    """Return the text of a cell, "" where it is absent, and None where it is no text, which is noted."""
    try:
        text = as_text(row.get(key))
        text.encode("utf-8")
    except TypeError as error:
        problems.add(number, f"{key} is {error}, expected text")
        return None
    except UnicodeEncodeError:
        problems.add(number, f"{key} holds half a character (a lone surrogate); write the text as UTF-8")
        return None
    return text


class ImageFinder:
    """Finds the file that a data set names in one of the places where people keep it.

    Args:
        root: the data set's folder.
        places: patterns below it, the usual one first: `images/{name}`, or `images/{file}` to disregard folders that
            the name begins with.
    """

    def __init__(self, root: Path, places: Sequence[str]) -> None:
        self.root, self.places = root, list(dict.fromkeys(places))

    def find(self, name: str) -> str | None:
        """Return the absolute path of an image: in the usual place where it is in none. None if it leaves the root."""
        inside, file = os.path.normpath(name), os.path.basename(name)
        leaves = os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir
        if file in ("", os.curdir, os.pardir) or "\0" in name:
            return None
        paths = {
            place: os.path.normpath(os.path.join(self.root, place.replace("{name}", inside).replace("{file}", file)))
            for place in self.places
            if not (leaves and "{name}" in place)
        }
        for place, path in paths.items():
            if os.path.isfile(path):
                # images of a kind lie together: the next one is looked for here first
                self.places.remove(place)
                self.places.insert(0, place)
                return path
        return next(iter(paths.values()), None)

    def find_or_note(self, name: str, number: int, problems: Problems) -> str | None:
        """Return what [`find`] does; a name that leaves the root is noted as a problem of row `number`."""
        path = self.find(name)
        if path is None:
            problems.add(number, "image is missing, or lies outside the dataset's folder; copy or link it into it")
        return path

    def relative(self, path: str) -> str:
        """Return a path as it is named below the root, on every machine alike."""
        return Path(path).relative_to(self.root).as_posix()


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    enclosed = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if enclosed else cell


def _peek(text: str) -> Any:
    text = text.lstrip()
    if text.startswith("["):
        rest = text[1:].lstrip()
        return [] if rest.startswith("]") else [_peek(rest)]
    decoder = json.JSONDecoder()
    if text.startswith("{"):
        try:
            return decoder.raw_decode(text)[0]
        except json.JSONDecodeError:  # longer than what was read
            key, end = decoder.raw_decode(text[1:].lstrip())
            return {key: _peek(text[1:].lstrip()[end:].lstrip().removeprefix(":"))}
    return decoder.raw_decode(text)[0]

# SPDX-License-Identifier: Apache-2.0
"""Reads the generic dataset form: a folder of image files beside `train.jsonl`, `validation.jsonl`, `test.jsonl`.

One JSON object a line: `image` (a path, or a list of paths), and one of `question` + `answer`, `caption`, `report`, or
`phrase` + `box` (four integers 0..100, shares of the width and height):

    {"image": "images/1.png", "question": "Is there an effusion?", "answer": "yes", "answer_type": "CLOSED"}
    {"image": "images/2.png", "caption": "Axial CT of the chest."}
    {"image": ["images/3a.png", "images/3b.png"], "report": "The lungs are clear."}
    {"image": "images/4.png", "phrase": "left effusion", "box": [55, 40, 90, 85]}

`answer`, `caption` and `report` may be lists of references; an answer may be a number. Optional: `id`, `answer_type`,
`question_type`, `organ`, `modality`, `image_id`, `study_id`, `patient_id`, `linked_id` (the same for questions that
ask about the same thing in other words), `language`, `split`, and `instruction` (the request, for a caption or
report); for rows of another data set `source`, `licence`, `credentialed` (true: never to be sent away or published)
and `answer_type_derived`. Errors name files, lines and keys, and never repeat what an answer or report says.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PeFoMedError, did_you_mean
from ..records import TASKS, Sample
from .ids import Ids
from .instructions import format_box
from .reading import (
    SPLIT_SPELLINGS,
    DatasetError,
    MissingSplitError,
    Problems,
    canonical_split,
    is_absent,
)

# Which keys a line of each task must have: the text given, then the text wanted.
TASK_KEYS = {"vqa": ("question", "answer"), "caption": ("caption",), "report": ("report",), "refer": ("phrase", "box")}
LABEL_KEYS = ("organ", "modality", "image_id", "study_id", "patient_id", "linked_id")
# Of rows that come from another data set: where from, under which terms, and whether its answer type was derived.
ORIGIN_KEYS = ("source", "licence", "credentialed", "answer_type_derived")
KNOWN_KEYS = (
    *("image", *(key for keys in TASK_KEYS.values() for key in keys)),
    *("id", "instruction", "answer_type", "question_type", "language", "split", *LABEL_KEYS, *ORIGIN_KEYS),
)
_HEAD_BYTES = 4096


def read_jsonl_samples(root: str | os.PathLike[str], split: str, task: str | None = None) -> list[Sample]:
    """Return the samples of ROOT/{split}.jsonl, see [`stream_jsonl_samples`].

    Args:
        root: the dataset's folder.
        split: `train`, `validation` or `test`.
        task: keep the samples of this task only; all without. Every line is checked either way.

    Raises:
        ConfigError: the split or task is unknown.
        MissingSplitError: there is no such split in the folder.
        DatasetError: the folder is missing, or lines have problems: all of them, the first 20 listed.
    """
    return keep_task(list(stream_jsonl_samples(root, split)), task, root, split)


def stream_jsonl_samples(root: str | os.PathLike[str], split: str) -> Iterator[Sample]:
    """Yield the samples of ROOT/{split}.jsonl one by one; whether the images are there is not looked at.

    `validation` may be spelt `val`, `valid` or `validate`. A folder with a single JSONL file of another name is read
    as all splits in one: each line's `split` key says which, `train` where there is none. Image paths are resolved
    against the folder and stay inside it (by name: a link in the folder may lead anywhere); they come back absolute.

    Raises:
        ConfigError, MissingSplitError, DatasetError: as [`read_jsonl_samples`]; problems of lines at the file's end.
    """
    root, split = Path(os.path.abspath(root)), canonical_split(split)
    path, is_shared = split_file(root, split, "jsonl")
    problems = Problems(path, "line")
    yield from row_samples(parse_lines(path, problems), root, split, problems, is_shared=is_shared)


def row_samples(
    rows: Iterable[tuple[int, dict[str, Any]]],
    root: Path,
    split: str,
    problems: Problems,
    *,
    is_shared: bool,
    id_prefix: str = "",
    ids: Ids | None = None,
) -> Iterator[Sample]:
    """Yield the samples of rows with the keys above, whatever kind of file they come from.

    Args:
        rows: (line number, row) of one file.
        root: the folder that images are named from, and may not leave.
        split: `train`, `validation` or `test`.
        problems: of the file; those of rows are added and, at the end, raised.
        is_shared: the file holds other splits too, told apart by the rows' `split`.
        id_prefix: goes before the line number in the id of a row that names none; the split without.
        ids: takes the rows' ids, for who compares them with those of other files.

    Raises:
        MissingSplitError: a shared file has no row of the split.
        DatasetError: rows have problems, or there is none.
    """
    ids, count = Ids() if ids is None else ids, 0
    for number, row in rows:
        if is_shared and _split_of(row) not in (split, None):
            continue
        count += 1
        row_problems: list[str] = []
        sample = _to_sample(row, root, split, f"{id_prefix or split}-{number}", row_problems)
        ids.add(sample.id, number)
        for text in row_problems:
            problems.add(number, text)
        if not row_problems:
            yield sample
    ids.note_repeats(problems)
    problems.raise_if_any()
    if not count and is_shared:
        raise MissingSplitError(
            f'{problems.path}: no line has "split": "{split}"; expected some, or a file of its own for {split}'
        )
    if not count:
        raise DatasetError(f"{problems.path}: the file is empty; expected one sample a line")


def keep_task(samples: list[Sample], task: str | None, root: str | os.PathLike[str], split: str) -> list[Sample]:
    """Return the samples of a task, all of them for None.

    Raises:
        ConfigError: the task is unknown.
        DatasetError: there are none; the text, which names root and split, says which tasks there are.
    """
    return list(stream_task(samples, task, root, split))


def stream_task(
    samples: Iterable[Sample], task: str | None, root: str | os.PathLike[str], split: str
) -> Iterator[Sample]:
    """Yield the samples of a task as [`keep_task`] returns them.

    Raises:
        ConfigError, DatasetError: as [`keep_task`]; at the end, where there are none.
    """
    require_task(task)
    counts: Counter[str] = Counter()
    for sample in samples:
        counts[sample.task] += 1
        if task in (None, sample.task):
            yield sample
    if task is not None and not counts[task]:
        found = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none at all"
        raise DatasetError(
            f"{root}: the {split} split has no [{task}] samples, found {found}; expected lines with "
            + " and ".join(TASK_KEYS[task])
        )


def require_task(task: str | None) -> None:
    """Check that there is such a task; None stands for all.

    Raises:
        ConfigError: there is not; the nearest is suggested.
    """
    if task not in (None, *TASKS):
        raise ConfigError(f"Unknown task {task!r}{did_you_mean(task, TASKS)}; expected one of {', '.join(TASKS)}")


def split_file(root: Path, split: str, *endings: str) -> tuple[Path, bool]:
    """Return the file that holds a split, and whether other splits share it.

    Args:
        root: the dataset's folder.
        split: `train`, `validation` or `test`.
        endings: of the files to consider, such as `jsonl`; the first is named in errors.

    Raises:
        MissingSplitError: there is none.
        DatasetError: the folder is missing, or two files claim the split.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise DatasetError(f"{root}: {found}; expected the dataset's folder, with {split}.{endings[0]} in it")
    names = {path: path.name.removesuffix(f".{ending}") for ending in endings for path in root.glob(f"*.{ending}")}
    files = sorted(names)
    named = [path for path in files if names[path] in SPLIT_SPELLINGS[split]]
    if len(named) > 1:
        raise DatasetError(f"{root}: found {' and '.join(p.name for p in named)}; expected one file for {split}")
    if named:
        return named[0], False
    every_spelling = {spelling for spellings in SPLIT_SPELLINGS.values() for spelling in spellings}
    if len(files) == 1 and names[files[0]] not in every_spelling:
        return files[0], True
    found = ", ".join(path.name for path in files[:5]) or f"no .{endings[0]} file"
    raise MissingSplitError(f"{root}: found {found}; expected {split}.{endings[0]}")


def _split_of(row: dict[str, Any]) -> str | None:
    """Return the split a line names, `train` where it names none, None where what it names is no split."""
    named = "train" if is_absent(row.get("split")) else row["split"]
    return next((split for split, spellings in SPLIT_SPELLINGS.items() if named in spellings), None)


def parse_lines(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of each line that is not blank; what cannot be read is noted in `problems`.

    Where `records.read_jsonl` stops at the first bad line, a file's problems are told at once.

    Raises:
        DatasetError: the file cannot be read, is UTF-16 or holds one JSON list.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf")
            if head.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DatasetError(f"{path}: found UTF-16 text, expected UTF-8; save it again as UTF-8")
            if head.lstrip().startswith(b"["):
                raise DatasetError(
                    f"{path}: found a JSON list, expected JSON lines: one object a line, no commas between them"
                )
            stream.seek(0)
            for number, line in enumerate(stream, start=1):
                row = _parse_line(line, number, problems)
                if row is not None:
                    yield number, row
    except OSError as error:
        raise DatasetError(f"{path}: the file cannot be read ({error.strerror}); check its permissions") from None


def _parse_line(line: bytes, number: int, problems: Problems) -> dict[str, Any] | None:
    """Return the object of a line; None for a blank one, and for one that is noted in `problems`."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        row = json.loads(text) if text.strip() else None
    except UnicodeDecodeError:
        problems.add(number, "not UTF-8 text; save the file as UTF-8")
    except json.JSONDecodeError as error:
        problems.add(number, f"not JSON ({error.msg}, column {error.colno}); expected one object a line")
    except (ValueError, RecursionError):
        problems.add(number, "JSON with a number too long or nested too deep to read")
    else:
        if isinstance(row, dict):
            return row
        if text.strip():
            problems.add(number, f"found a {_kind(row)}, expected a JSON object")
    return None


def _to_sample(row: dict[str, Any], root: Path, split: str, default_id: str, problems: list[str]) -> Sample:
    """Return the sample that a line describes. With anything noted in `problems` it is incomplete."""
    for key in row:
        if key not in KNOWN_KEYS:
            problems.append(f"unknown key {key[:40]!r}{did_you_mean(key, KNOWN_KEYS)}")
    if not is_absent(row.get("split")) and _split_of(row) != split:
        problems.append(f"split is not {split}; expected one of {', '.join(SPLIT_SPELLINGS)}, and the file's own")
    task, instruction, answers = _read_task(row, problems)
    images = _image_paths(row, root, problems)
    answer_type = _text(row, "answer_type", problems).upper()
    if answer_type not in ("", "OPEN", "CLOSED"):
        problems.append("answer_type must be OPEN or CLOSED")
    labels = {key: _text(row, key, problems) for key in LABEL_KEYS}
    if images and not labels["image_id"]:
        labels["image_id"] = Path(images[0]).relative_to(root).as_posix()
    return Sample(
        id=_text(row, "id", problems) or default_id,
        task=task,
        image_paths=images,
        instruction=instruction,
        answers=answers,
        answer_type=answer_type,
        question_types=_question_types(row, problems),
        language=_text(row, "language", problems).lower() or "en",
        organ=labels["organ"],
        modality=labels["modality"],
        image_id=labels["image_id"],
        study_id=labels["study_id"],
        patient_id=labels["patient_id"],
        linked_id=labels["linked_id"],
        split=split,
        source=_text(row, "source", problems),
        licence=_text(row, "licence", problems),
        credentialed=_flag(row, "credentialed", problems),
        answer_type_derived=_flag(row, "answer_type_derived", problems),
    )


def _read_task(row: dict[str, Any], problems: list[str]) -> tuple[str, str, list[str]]:
    """Return (task, instruction, answers) of a line; the keys it fills say which task it is."""
    tasks = [task for task, keys in TASK_KEYS.items() if any(not is_absent(row.get(key)) for key in keys)]
    if len(tasks) != 1:
        found = [key for task in tasks for key in TASK_KEYS[task] if not is_absent(row.get(key))]
        wanted = ", ".join(" + ".join(keys) for keys in TASK_KEYS.values())
        problems.append(f"found {' and '.join(found) or 'no text'}; expected one of: {wanted}")
        return "", "", []
    task = tasks[0]
    instruction = _text(row, "instruction", problems)
    if task in ("caption", "report"):
        return task, instruction, _answers(row, task, problems, numbers=False)
    if instruction:
        problems.append(f"instruction goes with caption or report only; {TASK_KEYS[task][0]} holds what is asked")
    asked = _required(row, TASK_KEYS[task][0], problems)
    if task == "vqa":
        return task, asked, _answers(row, "answer", problems, numbers=True)
    try:
        return task, asked, [format_box(row.get("box", ()))]
    except PeFoMedError as error:
        problems.append(str(error))
        return task, asked, []


def _answers(row: dict[str, Any], key: str, problems: list[str], *, numbers: bool) -> list[str]:
    """Return the references: one, or those of a list."""
    value = row.get(key)
    values = (value or [None]) if isinstance(value, list) else [value]
    return [_required({key: value}, key, problems, numbers=numbers) for value in values]


def _question_types(row: dict[str, Any], problems: list[str]) -> list[str]:
    """Return the codes in upper case, each once: of a text such as "PRES, POS" or a list of texts."""
    value = row.get("question_type")
    texts = [
        _text({"question_type": v}, "question_type", problems) for v in (value if isinstance(value, list) else [value])
    ]
    codes = [code.strip().upper() for text in texts for code in re.split("[,/;]", text)]
    return list(dict.fromkeys(code for code in codes if code))


def _image_paths(row: dict[str, Any], root: Path, problems: list[str]) -> list[str]:
    """Return the absolute paths of a line's images, none where one of them cannot be used."""
    value = row.get("image")
    names = value if isinstance(value, list) and value else [value]
    paths = []
    for name in names:
        if not isinstance(name, str) or not name.strip():
            problems.append("image is missing or no text; expected a path, or a list of paths")
            return []
        path = os.path.normpath(os.path.join(root, name))
        if not Path(path).is_relative_to(root):
            problems.append(f"image {name!r} lies outside the dataset's folder; copy or link it into the folder")
            return []
        paths.append(path)
    return paths


def _required(row: dict[str, Any], key: str, problems: list[str], *, numbers: bool = False) -> str:
    """Return the text of a key that must hold some."""
    noted = len(problems)
    text = _text(row, key, problems, numbers=numbers)
    if not text and len(problems) == noted:
        problems.append(f"{key} is missing, empty or NaN; expected text")
    return text


def _text(row: dict[str, Any], key: str, problems: list[str], *, numbers: bool = True) -> str:
    """Return the text of a key without outer blanks, "" where it is absent or, noted in `problems`, no text.

    Numbers become text; 5.0 becomes "5", since a table with gaps turns integers into floats.
    """
    value = row.get(key)
    if is_absent(value):
        return ""
    if numbers and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) != float("inf"):
        value = str(int(value) if value == int(value) else value)
    if not isinstance(value, str):
        problems.append(f"{key} is a {_kind(value)}; expected text" + (" or a number" if numbers else ""))
        return ""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        problems.append(f"{key} holds half a character (a lone surrogate); write the text as UTF-8")
    return value.strip()


def _flag(row: dict[str, Any], key: str, problems: list[str]) -> bool:
    """Return whether a key is true, or the text `true`; False where it is absent or, noted in `problems`, no flag."""
    value = row.get(key)
    known = {"true": True, "false": False, "": False}
    text = "" if is_absent(value) else str(value).strip().lower()
    if text not in known or not isinstance(value, bool | str | float | None):
        problems.append(f"{key} is neither true nor false")
    return known.get(text, False)


def _kind(value: Any) -> str:
    if isinstance(value, float) and abs(value) == float("inf"):
        return "number that is infinite"
    kinds: dict[type, str] = {dict: "JSON object", list: "list", bool: "boolean", str: "text"}
    return kinds.get(type(value), "number")

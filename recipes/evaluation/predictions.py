# SPDX-License-Identifier: Apache-2.0
"""What scoring reads: predictions, the same items' predictions under a control, training samples, a table of slices.

All problems of all files are collected, with file and line, and told at once. They never repeat what an answer says.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..answers import normalize_answer_type
from ..errors import PeFoMedError, did_you_mean
from ..records import TASKS, Prediction, Sample
from .boxes import parse_box
from .results import HALF_PAIR

SHOWN_LINES = 8  # of one problem that many lines have; the others are counted
SHOWN_IDS = 3
KNOWN_KEYS = tuple(f.name for f in fields(Prediction))
REQUIRED_KEYS = tuple(f.name for f in fields(Prediction) if f.default is MISSING and f.default_factory is MISSING)
TEXT_KEYS = (
    *("prediction", "organ", "modality", "language", "image_id", "study_id", "linked_id"),
    *("split", "source", "control", "model", "adapter", "prompt_sha256"),
)


class Problems:
    """Collects what is wrong with the files of one run, so that all of it is told at once."""

    def __init__(self) -> None:
        self.found: dict[tuple[Path, str], list[int]] = {}

    def add(self, path: Path, text: str, line: int | None = None) -> None:
        """Note a problem of a file, or of one of its lines; lines with the same problem are told together."""
        self.found.setdefault((path, text), []).extend([line] if line else [])

    def raise_if_any(self) -> None:
        """Raise for all problems, one a line.

        Raises:
            PeFoMedError: there are some.
        """
        told = [f"{path}{_line_numbers(lines)}: {text}" for (path, text), lines in self.found.items()]
        if len(told) == 1:
            raise PeFoMedError(told[0])
        if told:
            raise PeFoMedError("\n".join([f"{len(told)} problems", *(f"  {text}" for text in told)]))


def _line_numbers(lines: Sequence[int]) -> str:
    if len(lines) < 2:
        return f", line {lines[0]}" if lines else ""
    shown = ", ".join(map(str, lines[:SHOWN_LINES]))
    return f", lines {shown}" + (f" and {len(lines) - SHOWN_LINES:,} more" if len(lines) > SHOWN_LINES else "")


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """Read one task's predictions.

    Raises:
        PeFoMedError: the file is missing, empty, not UTF-8 or no JSON lines; a key is unknown or missing; an id occurs
            twice; a prediction, reference, question type or answer type has the wrong form; the tasks are mixed.
    """
    problems = Problems()
    items = load_predictions(path, problems)
    problems.raise_if_any()
    return items


def load_predictions(path: str | os.PathLike[str], problems: Problems) -> list[Prediction]:
    """Return one task's predictions as far as they can be read, and note all that is wrong; see [`read_predictions`].

    A list that is not whole is never scored: the caller raises for `problems`.
    """
    path = Path(path)
    items: list[Prediction] = []
    first_line: dict[str, int] = {}
    empty = True
    for number, row in _json_rows(path, problems):
        empty = False
        item = _prediction(path, number, row, problems)
        if item is None:
            continue
        for text in _form_problems(item):
            problems.add(path, text, number)
        if isinstance(item.id, str) and item.id:
            if item.id in first_line:
                problems.add(path, f"id {item.id!r} occurs again, first in line {first_line[item.id]}", number)
            first_line.setdefault(item.id, number)
            items.append(item)
    if empty and not any(place == path for place, _ in problems.found):
        problems.add(path, "no prediction in it; expected one JSON object a line")
    tasks = sorted({item.task for item in items if item.task in TASKS})
    if len(tasks) > 1:
        problems.add(path, f"the tasks {', '.join(tasks)} are mixed; score one task's file at a time")
    for name, what in (("control", "with and without a control"), ("split", "of several splits")):
        if len({str(getattr(item, name)) for item in items}) > 1:
            problems.add(path, f"predictions {what} are mixed; score them as separate files")
    systems = sorted({" on ".join(filter(None, (str(item.adapter), str(item.model)))) or "unnamed" for item in items})
    if len(systems) > 1:
        named = " and ".join(map(repr, systems[:SHOWN_IDS]))
        problems.add(path, f"the answers of {len(systems)} models are mixed, {named}; score each model's file alone")
    return items


def _json_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of each line that is not blank; what cannot be read is noted."""
    if not path.is_file():
        problems.add(path, "no such file")
        return
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(line) if line.strip() else None
            except UnicodeDecodeError:
                problems.add(path, "not UTF-8; save the file as UTF-8", number)
            except json.JSONDecodeError as error:
                problems.add(path, f"not JSON ({error.msg}); expected one object a line", number)
            except (ValueError, RecursionError):
                problems.add(path, "JSON with a number too long or nested too deep to read", number)
            else:
                if holds_half_pair(raw, row):
                    problems.add(path, f"a text holds {HALF_PAIR}", number)
                elif isinstance(row, dict):
                    yield number, row
                elif line.strip():
                    problems.add(path, f"found {type(row).__name__}, expected a JSON object", number)


def holds_half_pair(raw: bytes, row: Any) -> bool:
    """Whether what was read of a line of JSON holds half a surrogate pair, which can be read but not written."""
    if b"\\ud" not in raw.lower():
        return False
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _prediction(path: Path, number: int, row: dict[str, Any], problems: Problems) -> Prediction | None:
    """Return a line's prediction, without the keys that are unknown; `None` where a key is missing."""
    for key in sorted(set(row) - set(KNOWN_KEYS)):
        problems.add(path, f"unknown key {key[:40]!r}{did_you_mean(key, KNOWN_KEYS)}", number)
    missing = [key for key in REQUIRED_KEYS if key not in row]
    if missing:
        problems.add(path, f"without {', '.join(missing)}", number)
        return None
    return Prediction(**{key: value for key, value in row.items() if key in KNOWN_KEYS})


def read_control(path: str | os.PathLike[str], name: str, predictions: Sequence[Prediction]) -> list[Prediction]:
    """Read a control's predictions and return them in the order of `predictions`.

    Raises:
        PeFoMedError: as [`read_predictions`], or the file is that of another control, or it does not hold exactly the
            same ids with the same questions and references.
    """
    problems = Problems()
    items = load_control(path, name, predictions, problems)
    problems.raise_if_any()
    return items


def load_control(
    path: str | os.PathLike[str], name: str, predictions: Sequence[Prediction], problems: Problems
) -> list[Prediction]:
    """Return what [`read_control`] does as far as it can be read, and note all that is wrong."""
    path = Path(path)
    items = load_predictions(path, problems)
    made_as = items[0].control if items else ""
    if items and made_as != name:
        problems.add(path, f"its predictions were made under the control {made_as!r}, not {name!r}")
    asked = {(item.model, item.adapter) for item in predictions}
    others = {(item.model, item.adapter) for item in items} - asked
    if asked and others:
        problems.add(path, "its predictions are of another model or adapter; a control is of the same one")
    note_differing_items(path, items, predictions, problems, "the predictions")
    control = {item.id: item for item in items}
    return [control[item.id] for item in predictions if item.id in control]


def note_differing_items(
    path: Path, items: Sequence[Prediction], expected: Sequence[Prediction], problems: Problems, where: str
) -> None:
    """Note the ids that `items` of `path` lack or have too much against `expected`, and those that ask otherwise."""
    if not items or not expected:
        return  # the file could not be read: that is told already
    found = {item.id: item for item in items}
    known = {item.id for item in expected}
    changed = [item.id for item in expected if item.id in found and not _same_item(item, found[item.id])]
    for ids, what in (
        (sorted(known - set(found)), "are missing"),
        (sorted(set(found) - known), f"are not in {where}"),
        (changed, f"have another task, question or reference than in {where}"),
    ):
        if ids:
            more = f" and {len(ids) - SHOWN_IDS:,} more" if len(ids) > SHOWN_IDS else ""
            problems.add(path, f"{len(ids)} ids {what}: {', '.join(ids[:SHOWN_IDS])}{more}")


def read_train_samples(path: str | os.PathLike[str], task: str) -> list[Sample]:
    """Read the training samples of one task: `Sample` records, or the lines of a `jsonl` data set's `train.jsonl`.

    Only what baselines and slices need is read: question or instruction, answers, answer type and question types.

    Raises:
        PeFoMedError: the file is missing or no JSON lines, a line has no answer, or no sample has this task.
    """
    problems = Problems()
    samples = load_train_samples(path, task, problems)
    problems.raise_if_any()
    return samples


def load_train_samples(
    path: str | os.PathLike[str], task: str, problems: Problems, *, split: str = "train"
) -> list[Sample]:
    """Return what [`read_train_samples`] does as far as it can be read, and note all that is wrong.

    Args:
        split: whose samples are kept where the lines name one.
    """
    path = Path(path)
    samples, tasks, noted = [], set(), len(problems.found)
    for number, row in _json_rows(path, problems):
        if row.get("split") not in (None, "", split):
            continue  # one file may hold all splits, and a baseline must not see the answers of a test split
        try:
            sample = _train_sample(row)
        except ValueError as error:
            problems.add(path, str(error), number)
            continue
        tasks.add(sample.task)
        if sample.task == task:
            samples.append(sample)
    if not samples and len(problems.found) == noted:
        kind = "training" if split == "train" else split
        found = f"{kind} samples of {', '.join(sorted(tasks))}" if tasks else f"no {kind} sample"
        problems.add(path, f"found {found}, expected the predictions' task {task}")
    return samples


def _train_sample(row: dict[str, Any]) -> Sample:
    """Return the sample of one line; the keys that are there decide the task where none is named.

    Raises:
        ValueError: the line holds no question with an answer, caption, report, or phrase with a box.
    """
    instruction = row.get("instruction", "")
    if "answers" in row or "answer" in row:
        task, answers = row.get("task", "vqa"), row.get("answers", row.get("answer"))
        instruction = row.get("question", instruction)
    elif "caption" in row or "report" in row:
        task = "caption" if "caption" in row else "report"
        answers = row[task]
    elif "box" in row:
        task, instruction = "refer", row.get("phrase", instruction)
        answers = "{" + "".join(f"<{corner}>" for corner in row["box"]) + "}" if isinstance(row["box"], list) else ""
        if parse_box(answers) is None:
            raise ValueError("box, expected [x1, y1, x2, y2] with integers 0..100, x1 < x2 and y1 < y2")
    else:
        raise ValueError("no answer; expected question and answer, caption, report, or phrase and box")
    answers = answers if isinstance(answers, list) else [answers]
    answers = [str(answer) if _is_number(answer) else answer for answer in answers]
    types = row.get("question_types", row.get("question_type", []))
    types = [types] if isinstance(types, str) else types
    sample = Sample(str(row.get("id", "")), task, [], instruction, answers, row.get("answer_type", ""), types)
    sample.source = str(row.get("source") or "")
    for problem in _text_problems(sample):
        raise ValueError(problem)
    return sample


def load_slices(
    path: str | os.PathLike[str], predictions: Sequence[Prediction], problems: Problems
) -> dict[str, list[str]]:
    """Return, by column of a CSV table, each prediction's value in the order of `predictions`, "" for an empty cell.

    The table has a column `id` and any others, UTF-8, with commas. It must hold exactly the ids of the predictions,
    each once; whatever is wrong is noted.
    """
    path = Path(path)
    if not path.is_file():
        problems.add(path, "no such file")
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as table:
            reader = csv.DictReader(table, strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        problems.add(path, f"no CSV table in UTF-8 ({type(error).__name__}); save it as CSV UTF-8 with commas")
        return {}
    if "id" not in header or len(header) < 2 or len(set(header)) < len(header) or "" in header:
        problems.add(path, "expected a header with the column id and others, each named once", 1)
        return {}
    by_id: dict[str, dict[str, str]] = {}
    known = {item.id for item in predictions}
    for line, row in rows:
        name = (row["id"] or "").strip()
        if None in row or None in row.values():
            problems.add(path, f"expected {len(header)} cells", line)
        elif name in by_id:
            problems.add(path, f"id {name!r} occurs again", line)
        elif name not in known:
            problems.add(path, "the id is not in the predictions", line)
        else:
            by_id[name] = {column: cell.strip() for column, cell in row.items()}
    missing = [item.id for item in predictions if item.id not in by_id]
    if missing:
        more = f" and {len(missing) - SHOWN_IDS:,} more" if len(missing) > SHOWN_IDS else ""
        problems.add(path, f"{len(missing)} ids are missing: {', '.join(missing[:SHOWN_IDS])}{more}")
        return {}
    return {column: [by_id[item.id][column] for item in predictions] for column in header if column != "id"}


def note_other_dataset(
    path: Path, train: Sequence[Sample], predictions: Sequence[Prediction], problems: Problems
) -> None:
    """Note that training samples and predictions name their data sets and have none in common."""
    trained = {item.source for item in train} - {""}
    scored = {item.source for item in predictions} - {""}
    if trained and scored and not trained & scored:
        text = f"its samples are of {', '.join(sorted(trained))}, the predictions of {', '.join(sorted(scored))}"
        problems.add(path, text)


def note_scored_samples(
    path: Path, samples: Sequence[Sample], predictions: Sequence[Prediction], problems: Problems
) -> None:
    """Note samples that are the scored items: what is chosen on them has seen the answers.

    They are the same where at least half of the items are among them by id, question and references, or, where
    samples have no id, where questions and references of all are equal.
    """
    known = {(item.id, item.instruction, tuple(item.answers)) for item in samples if item.id}
    among = sum((item.id, item.instruction, tuple(item.answers)) in known for item in predictions)
    texts = [sorted((item.instruction, *item.answers) for item in records) for records in (samples, predictions)]
    if predictions and samples and (2 * among >= len(predictions) or (not known and texts[0] == texts[1])):
        problems.add(
            path, "holds the scored items themselves; baselines are chosen on the training and validation split"
        )


def _form_problems(item: Prediction) -> list[str]:
    if not isinstance(item.id, str) or not item.id:
        return [f"id {item.id!r}, expected a text"]
    problems = _text_problems(item)
    problems += [f"{name}, expected a text" for name in TEXT_KEYS if not isinstance(getattr(item, name), str)]
    if item.p_yes is not None and not (_is_number(item.p_yes) and 0 <= item.p_yes <= 1):
        problems.append("p_yes, expected a number 0..1 or null")
    support = item.sentence_support
    if support is not None and not (isinstance(support, list) and all(map(_is_finite, support))):
        problems.append("sentence_support, expected a list of finite numbers or null")
    if item.task == "refer" and not problems and any(parse_box(answer) is None for answer in item.answers):
        problems.append("answers, expected boxes {<x1><y1><x2><y2>} with integers 0..100, x1 < x2 and y1 < y2")
    return problems


def _text_problems(item: Sample | Prediction) -> list[str]:
    """Return what is wrong with the fields that both records have. It never repeats what an answer says."""
    problems = []
    if item.task not in TASKS:
        problems.append(f"task {item.task!r}, expected one of {', '.join(TASKS)}")
    if not isinstance(item.instruction, str):
        problems.append("instruction or question, expected a text")
    if not item.answers or not _is_list_of_texts(item.answers) or not all(text.strip() for text in item.answers):
        problems.append("answers, expected one or more reference texts, none blank")
    if not _is_list_of_texts(item.question_types):
        problems.append("question_types, expected a list of texts")
    if not isinstance(item.answer_type, str) or normalize_answer_type(item.answer_type) not in ("OPEN", "CLOSED", ""):
        problems.append(f"answer_type {item.answer_type!r}, expected OPEN, CLOSED or nothing")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _same_item(item: Prediction, other: Prediction) -> bool:
    return (item.task, item.instruction, item.answers) == (other.task, other.instruction, other.answers)

# SPDX-License-Identifier: Apache-2.0
"""What scoring reads: predictions, the same items' predictions under a control, and training samples.

All problems of one file are collected into one error.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..answers import normalize_answer_type
from ..errors import PeFoMedError
from ..records import TASKS, Prediction, Sample, read_jsonl, read_records
from .boxes import parse_box

SHOWN_PROBLEMS = 5


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """Read one task's predictions.

    Raises:
        PeFoMedError: the file is missing, empty, not UTF-8 or no JSON lines; a key is unknown or missing; an id occurs
            twice; a prediction, reference, question type or answer type has the wrong form; the tasks are mixed.
    """
    path = Path(path)
    try:
        predictions = read_records(path, Prediction)
    except UnicodeDecodeError as error:
        raise PeFoMedError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if not predictions:
        raise PeFoMedError(f"{path}: no prediction in it; expected one JSON object a line")
    problems = [problem for prediction in predictions for problem in _form_problems(prediction)]
    _raise_if(problems, path)
    problems += [f"id {name!r} occurs {n} times" for name, n in Counter(p.id for p in predictions).items() if n > 1]
    tasks = sorted({prediction.task for prediction in predictions})
    if len(tasks) > 1:
        problems.append(f"the tasks {', '.join(tasks)} are mixed; score one task's file at a time")
    if len({p.control for p in predictions}) > 1:
        problems.append("predictions with and without a control are mixed; score them as separate files")
    _raise_if(problems, path)
    return predictions


def read_control(path: str | os.PathLike[str], name: str, predictions: Sequence[Prediction]) -> list[Prediction]:
    """Read a control's predictions and return them in the order of `predictions`.

    Raises:
        PeFoMedError: as [`read_predictions`], or the file is that of another control, or it does not hold exactly the
            same ids with the same questions and references.
    """
    path = Path(path)
    control = {item.id: item for item in read_predictions(path)}
    made_as = next(iter(control.values())).control
    problems = []
    if made_as and made_as != name:
        problems.append(f"its predictions were made under the control {made_as!r}, not {name!r}")
    missing = [item.id for item in predictions if item.id not in control]
    unknown = sorted(set(control) - {item.id for item in predictions})
    problems += _id_problem(missing, "are missing") + _id_problem(unknown, "are not in the predictions")
    changed = [item.id for item in predictions if item.id in control and not _same_item(item, control[item.id])]
    problems += _id_problem(changed, "have another task, question or reference than in the predictions")
    _raise_if(problems, path)
    return [control[item.id] for item in predictions]


def read_train_samples(path: str | os.PathLike[str], task: str) -> list[Sample]:
    """Read the training samples of one task: `Sample` records, or the lines of a `jsonl` data set's `train.jsonl`.

    Only what baselines need is read: question or instruction, answers, answer type and question types.

    Raises:
        PeFoMedError: the file is missing or no JSON lines, a line has no answer, or no sample has this task.
    """
    path = Path(path)
    samples, problems, tasks = [], [], set()
    try:
        for number, row in read_jsonl(path):
            if row.get("split") not in (None, "", "train"):
                continue  # one file may hold all splits, and a baseline must not see the answers of a test split
            try:
                sample = _train_sample(row)
            except ValueError as error:
                problems.append(f"line {number}: {error}")
                continue
            tasks.add(sample.task)
            if sample.task == task:
                samples.append(sample)
    except UnicodeDecodeError as error:
        raise PeFoMedError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    _raise_if(problems, path)
    if not samples:
        found = f"training samples of {', '.join(sorted(tasks))}" if tasks else "no training sample"
        raise PeFoMedError(f"{path}: found {found}, expected the predictions' task {task}")
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
    for problem in _text_problems(sample):
        raise ValueError(problem)
    return sample


def _form_problems(item: Prediction) -> list[str]:
    if not isinstance(item.id, str) or not item.id:
        return [f"id {item.id!r}, expected a text"]
    problems = _text_problems(item)
    for name in ("prediction", "image_id", "study_id", "source", "control", "model", "adapter"):
        if not isinstance(getattr(item, name), str):
            problems.append(f"{name}, expected a text")
    if item.task == "refer" and not problems and any(parse_box(answer) is None for answer in item.answers):
        problems.append("answers, expected boxes {<x1><y1><x2><y2>} with integers 0..100, x1 < x2 and y1 < y2")
    return [f"id {item.id!r}: {problem}" for problem in problems]


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


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _same_item(item: Prediction, other: Prediction) -> bool:
    return (item.task, item.instruction, item.answers) == (other.task, other.instruction, other.answers)


def _id_problem(ids: Sequence[str], what: str) -> list[str]:
    if not ids:
        return []
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return [f"{len(ids)} ids {what}: {', '.join(ids[:3])}{more}"]


def _raise_if(problems: Sequence[str], path: Path) -> None:
    if problems:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise PeFoMedError(f"{path}: {'; '.join(problems[:SHOWN_PROBLEMS])}{more}")

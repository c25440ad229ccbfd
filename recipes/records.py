# SPDX-License-Identifier: Apache-2.0
"""The nouns of the project, each one record type: what a reader yields, a model answers and an evaluation reads.

Records are plain dataclasses, stored as JSON lines. Nothing here imports torch or datasets, so that a prediction file
of any model can be scored on a laptop.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from .errors import PeFoMedError, did_you_mean
from .staging import whole_file

TASKS = ("caption", "vqa", "report", "refer")


@dataclass
class Sample:
    """One instruction about one or more images, with the reference answers.

    `instruction` is the text without the task identifier: the question (`vqa`), the phrase to locate (`refer`), or the
    request for a `caption` or `report` ("" lets the task's default request stand). `answers` holds one or more
    references; training supervises the first. `answer_type` is `OPEN`, `CLOSED` or "" (unknown), and
    `answer_type_derived` says that it was worked out from the answer because the data does not state it.
    `question_types` uses VQA-RAD's codes. The group ids say which samples share an image, study or patient: intervals
    and splits need it.
    """

    id: str
    task: str
    image_paths: list[str]
    instruction: str
    answers: list[str]
    answer_type: str = ""
    question_types: list[str] = field(default_factory=list)
    language: str = "en"
    organ: str = ""
    modality: str = ""
    image_id: str = ""
    study_id: str = ""
    patient_id: str = ""
    split: str = ""
    source: str = ""
    licence: str = ""
    credentialed: bool = False
    answer_type_derived: bool = False


@dataclass
class Prediction:
    """What a model said to one sample, with everything that scoring needs and no path of a machine.

    `control` names an input that was changed on purpose: "" (none) or `blank_image`. `model` and `adapter` say who
    answered, `prompt_sha256` fingerprints the rendered prompt.
    """

    id: str
    task: str
    instruction: str
    answers: list[str]
    prediction: str
    answer_type: str = ""
    question_types: list[str] = field(default_factory=list)
    language: str = "en"
    organ: str = ""
    modality: str = ""
    image_id: str = ""
    study_id: str = ""
    patient_id: str = ""
    source: str = ""
    credentialed: bool = False
    answer_type_derived: bool = False
    control: str = ""
    model: str = ""
    adapter: str = ""
    prompt_sha256: str = ""

    @classmethod
    def of(cls, sample: Sample, prediction: str, **who: Any) -> Prediction:
        """Answer `sample`: copies every field the two records share."""
        shared = {f.name for f in fields(cls)} & {f.name for f in fields(Sample)}
        return cls(prediction=prediction, **{name: getattr(sample, name) for name in shared}, **who)


Record = TypeVar("Record", Sample, Prediction)


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line number, object)` for each non-empty line of a UTF-8 file.

    Raises:
        PeFoMedError: the file is missing or not UTF-8, or a line is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise PeFoMedError(f"{path}: no such file")
    with path.open("rb") as lines:  # decoded line by line: a wrong byte is named with its line
        for number, raw in enumerate(lines, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise PeFoMedError(
                    f"{path}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
                ) from None
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise PeFoMedError(f"{path}, line {number}: not JSON ({error.msg}); one object a line") from None
            if not isinstance(row, dict):
                raise PeFoMedError(f"{path}, line {number}: found {type(row).__name__}, expected a JSON object")
            yield number, row


def read_records(path: str | os.PathLike[str], record_type: type[Record]) -> list[Record]:
    """Read records written by [`write_records`]; unknown and missing keys are refused with the line's number.

    Raises:
        PeFoMedError: as [`read_jsonl`], or a key is unknown or missing.
    """
    known = {f.name for f in fields(record_type)}
    records = []
    for number, row in read_jsonl(path):
        unknown = sorted(set(row) - known)
        if unknown:
            raise PeFoMedError(f"{path}, line {number}: unknown key {unknown[0]!r}{did_you_mean(unknown[0], known)}")
        try:
            records.append(record_type(**row))
        except TypeError as error:
            raise PeFoMedError(f"{path}, line {number}: {str(error).split(') ')[-1]}") from None
    return records


def write_records(path: str | os.PathLike[str], records: Iterable[Sample | Prediction]) -> None:
    """Write records as JSON lines; the file appears only when it is whole."""
    with whole_file(path) as staged, staged.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")

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
# Data sets whose use agreements forbid passing anything on, whether or not a record's own mark says so.
CREDENTIALED_SOURCES = ("mimic_cxr", "ms_cxr", "mimic_diff_vqa")
# Inputs changed on purpose: the short name, for typing, and the one that records keep.
CONTROLS = {"blank": "blank_image", "shuffle": "shuffled_images", "mirror": "mirrored_images"}

# What each score of a rubric means, from 0 up: the scale of a rubric is 0 to `len(levels) - 1`.
# Source: the scales of the first two are the paper's (0/1 for questions, 0..4 for reports), in our own words.
RUBRICS = {
    "paper-vqa": ("wrong", "right, or good enough"),
    "paper-report": (
        "hardly anything agrees",
        "many errors, or key information is missing",
        "the core is recognisable, several key points differ",
        "close, with minor deviations",
        "the same meaning, nothing important is missing",
    ),
    "pefomed-report": (
        "nothing agrees, or the main statement is the opposite",
        "several significant errors",
        "one significant error",
        "no significant error, but details are missing or added",
        "no error",
    ),
}


@dataclass
class Sample:
    """One instruction about one or more images, with the reference answers.

    `instruction` is the text without the task identifier: the question (`vqa`), the phrase to locate (`refer`), or the
    request for a `caption` or `report` ("" lets the task's default request stand). `answers` holds one or more
    references; training supervises the first. `answer_type` is `OPEN`, `CLOSED` or "" (unknown), and
    `answer_type_derived` says that it was worked out from the answer because the data does not state it.
    `question_types` uses VQA-RAD's codes. The group ids say which samples share an image, study or patient: intervals
    and splits need it; `linked_id` says which ask about the same thing in other words, as VQA-RAD's rephrasings do.
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
    linked_id: str = ""


@dataclass
class Prediction:
    """What a model said to one sample, with everything that scoring needs and no path of a machine.

    `control` names an input that was changed on purpose: "" (none), `blank_image`, `shuffled_images` or
    `mirrored_images`. `model` and `adapter` say who answered, `prompt_sha256` fingerprints the rendered prompt.
    `p_yes` is p(yes | yes or no), 0..1, of a closed question, null where it was not asked for. `sentence_support` is,
    of each sentence of a report, log p(sentence | image) - log p(sentence | blank image) in nats: below 0 the image
    made it less likely. `split` is the sample's.
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
    linked_id: str = ""
    split: str = ""
    control: str = ""
    model: str = ""
    adapter: str = ""
    prompt_sha256: str = ""
    p_yes: float | None = None
    sentence_support: list[float] | None = None

    @classmethod
    def of(cls, sample: Sample, prediction: str, **who: Any) -> Prediction:
        """Answer `sample`: copies every field the two records share."""
        shared = {f.name for f in fields(cls)} & {f.name for f in fields(Sample)}
        return cls(prediction=prediction, **{name: getattr(sample, name) for name in shared}, **who)

    @property
    def system(self) -> str:
        """Who answered, as ratings and verdicts name it: the adapter, else the model; `+CONTROL` under a control."""
        return (self.adapter or self.model or "unnamed") + (f"+{self.control}" if self.control else "")


@dataclass
class Rating:
    """What one human rater said about one system's answer to one item.

    `score` is an integer on the scale of `rubric` (a key of `RUBRICS`), or null where the rater could not judge.
    `seconds` is the time spent, `rated_at` a time in ISO 8601. `repeat` counts how often this rater had rated this
    answer before: 1 marks a hidden repeat. The systems `control:identity` (the reference as the answer) and
    `control:empty` (no answer) check the rater, not a model.
    """

    item_id: str
    system: str
    rater_id: str
    task: str
    rubric: str
    score: int | None
    cannot_judge: bool = False
    comment: str = ""
    seconds: float | None = None
    rated_at: str = ""
    repeat: int = 0


@dataclass
class Verdict:
    """What one judge model said about one system's answer to one item, in one of several samples.

    `score` is an integer on the scale of `rubric`, or null where no reply came or it could not be read; `reason` then
    says why, and else is the judge's own. `judge` names the judge as it was asked for, `judge_reported` as the
    endpoint did.
    `run` is the time at which the judging run began, in ISO 8601 UTC: two runs over the same items show drift.
    `trusted` says whether the judge passed the gate in that run, null where that is not known.
    """

    item_id: str
    system: str
    judge: str
    task: str
    rubric: str
    rubric_sha256: str
    score: int | None
    sample: int = 0
    run: str = ""
    reason: str = ""
    reply: str = ""
    judge_reported: str = ""
    trusted: bool | None = None


Record = TypeVar("Record", Sample, Prediction, Rating, Verdict)


def is_credentialed(record: Sample | Prediction) -> bool:
    """Whether a record's texts and images must stay in the house: by its own mark, or by the data set it names."""
    return record.credentialed or record.source.strip().lower().replace("-", "_") in CREDENTIALED_SOURCES


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


def write_records(path: str | os.PathLike[str], records: Iterable[Sample | Prediction | Rating | Verdict]) -> None:
    """Write records as JSON lines; the file appears only when it is whole."""
    with whole_file(path) as staged, staged.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def append_records(path: str | os.PathLike[str], records: Iterable[Any]) -> None:
    """Append records as JSON lines in one write, safe beside other writers and on disk when this returns.

    A half line that a killed writer left at the end is cut off: it was never confirmed to anybody.
    """
    import fcntl  # not on Windows, where reading and scoring should still work

    lines = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records).encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as out:
        fcntl.flock(out, fcntl.LOCK_EX)  # released when the file is closed
        end = out.seek(0, os.SEEK_END)
        if end:
            out.seek(end - 1)
            if out.read(1) != b"\n":
                out.seek(0)
                last = out.read().rpartition(b"\n")[2]
                try:
                    json.loads(last)
                    lines = b"\n" + lines  # whole, as an editor leaves it that writes no last line end
                except ValueError:
                    out.truncate(end - len(last))
        out.write(lines)
        out.flush()
        os.fsync(out.fileno())

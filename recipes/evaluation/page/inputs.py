# SPDX-License-Identifier: Apache-2.0
"""What a report is made of: finds the files of a run by what is in them, reads and checks them.

A prediction file belongs to the results only if it has the bytes that were scored: its SHA-256 says so, not its name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import PeFoMedError
from ...records import Prediction, Rating, Verdict
from ..agreeing import SCHEMA as AGREEMENT
from ..agreeing import AgreementResults
from ..calibration import SCHEMA as CALIBRATION
from ..calibration import FittedCalibration
from ..judges.running import JudgeReport
from ..panels import Panel, build_panels
from ..predictions import read_predictions
from ..raters import read_ratings
from ..results import SCHEMA as RESULTS
from ..results import FileRecord, Results
from ..verdicts import read_verdicts
from .typed import from_stored

JUDGE = "pefomed-judge/1"
DEEPER = ("run.json", "calibration.json")  # of adapters: looked for one folder below the run's


@dataclass(frozen=True)
class Training:
    """What a `run.json` says about how an adapter was trained, without any path. `name` is the adapter's folder,
    `wording` that of the questions at test."""

    name: str
    task: str
    base: str
    dataset: str
    wording: str
    facts: dict[str, str]


@dataclass
class ReportInputs:
    """A run's results and all that was found with them.

    `others` are further results, by file name. `predictions` and `controls` are those that were scored, in one order;
    empty where their files are not there. `verdicts` and `ratings` are those of the scored predictions.
    """

    results: Results
    results_name: str
    others: dict[str, Results] = field(default_factory=dict)
    judges: list[JudgeReport] = field(default_factory=list)
    agreements: list[AgreementResults] = field(default_factory=list)
    calibrations: list[FittedCalibration] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    controls: dict[str, list[Prediction]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    ratings: list[Rating] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    files: list[FileRecord] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def training(self) -> Training | None:
        """How the adapter that answered was trained, where its `run.json` is there."""
        named = {adapter.partition("@")[0] for adapter in self.results.adapters}
        return next((training for training in self.trainings if training.name in named), None)

    @property
    def calibration(self) -> FittedCalibration | None:
        """What was fitted for the adapter that answered."""
        return next((one for one in self.calibrations if one.adapter in self.results.adapters), None)


def read_inputs(paths: Sequence[str | os.PathLike[str]]) -> ReportInputs:
    """Read a run's folder, or single files, or both; the first results are those that the report is about.

    Of a folder, `results.json` comes first, and what is no part of a report is passed over.

    Raises:
        PeFoMedError: a path is missing, there are no results, a named file is of no known kind, or one is malformed.
    """
    found: dict[str, list[tuple[Path, Any]]] = {}
    seen: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise PeFoMedError(f"{path}: no such file or folder")
        named = path.is_file()
        for file in [path] if named else _files_of(path):
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            kind, stored = _kind_of(file)
            if kind:
                found.setdefault(kind, []).append((file, stored))
            elif named:
                raise PeFoMedError(
                    f"{file}: expected results, predictions, verdicts, ratings, or the JSON of a judge, of agreement, "
                    "of a calibration or of a training run"
                )
    if RESULTS not in found:
        raise PeFoMedError(f"{', '.join(map(str, paths))}: no results in it; make them with pefomed score --out")
    results, *others = _typed(Results, found[RESULTS])
    [(first, _), *other_files] = found[RESULTS]
    names = [f"{path.parent.name}/{path.name}" for path, _ in other_files]
    inputs = ReportInputs(results, first.name, dict(zip(names, others, strict=True)))
    inputs.judges = list(_typed(JudgeReport, found.get(JUDGE, ()), without=("schema", "warnings")))
    inputs.agreements = list(_typed(AgreementResults, found.get(AGREEMENT, ())))
    inputs.calibrations = list(_typed(FittedCalibration, found.get(CALIBRATION, ())))
    inputs.trainings = [_training(path, stored) for path, stored in found.get("training", ())]
    _take_predictions(inputs, [path for path, _ in found.get("predictions", ())])
    _take_opinions(inputs, *([path for path, _ in found.get(kind, ())] for kind in ("verdicts", "ratings")))
    used = [path for kind, files in found.items() if kind != "predictions" for path, _ in files]
    inputs.files = sorted(map(_file_record, used), key=lambda record: (record.name, record.sha256))
    return inputs


def _files_of(folder: Path) -> list[Path]:
    """Return a folder's JSON files in the order of their names, results.json first."""
    files = sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")])
    files.sort(key=lambda path: path.name != "results.json")
    return files + sorted(path for name in DEEPER for path in folder.glob(f"*/{name}"))


def _kind_of(path: Path) -> tuple[str, Any]:
    """Return a file's kind (its schema, or what its records are), "" for none, and its content if it is one object."""
    if path.suffix == ".csv":
        return "ratings", None
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            row = _json(next(lines, b""))
        keys = {"verdicts": ("judge", "item_id"), "ratings": ("rater_id", "item_id"), "predictions": ("prediction",)}
        return next((kind for kind, wanted in keys.items() if row.keys() >= set(wanted)), ""), None
    stored = _json(path.read_bytes())
    schema = stored.get("schema")
    if schema in (RESULTS, JUDGE, AGREEMENT, CALIBRATION):
        return schema, stored
    if isinstance(schema, str) and schema.startswith("pefomed-results/"):
        raise PeFoMedError(f"{path}: schema {schema!r}, expected {RESULTS!r}; score the predictions again")
    return ("training", stored) if "settings" in stored and "trainable_parameters" in stored else ("", None)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _typed(kind: Any, files: Iterable[tuple[Path, Any]], without: Sequence[str] = ()) -> Iterator[Any]:
    for path, stored in files:
        try:
            yield from_stored(kind, {name: value for name, value in stored.items() if name not in without})
        except ValueError as error:
            raise PeFoMedError(f"{path}: {error}; make it again with this version") from None


def _take_predictions(inputs: ReportInputs, paths: Sequence[Path]) -> None:
    """Read the scored files among `paths`, and note those that have the name of one but not its bytes."""
    digests = {path: _file_record(path).sha256 for path in paths}
    for role, record in inputs.results.files.items():
        name = role.removeprefix("control ")
        if role != "predictions" and name == role:
            continue
        path = next((path for path in paths if digests[path] == record.sha256), None)
        if path is None:
            inputs.changed += [record.name] if record.name in {path.name for path in paths} else []
        elif role == "predictions":
            inputs.predictions = read_predictions(path)
        else:
            inputs.controls[name] = read_predictions(path)


def _take_opinions(inputs: ReportInputs, verdicts: Sequence[Path], ratings: Sequence[Path]) -> None:
    """Read what was said about the scored predictions, and set it side by side."""
    known = {(item.id, item.system) for item in inputs.predictions}
    inputs.verdicts = [one for one in read_verdicts(verdicts) if (one.item_id, one.system) in known]
    read = read_ratings(ratings)[0] if ratings else []
    inputs.ratings = [one for one in read if (one.item_id, one.system) in known]
    if inputs.verdicts or inputs.ratings:
        from ..item_metrics import item_metrics

        metrics = item_metrics(inputs.predictions)
        inputs.panels = build_panels(inputs.ratings, inputs.verdicts, inputs.predictions, metrics)


def _training(path: Path, stored: Mapping[str, Any]) -> Training:
    settings = stored["settings"]
    facts: dict[str, Any] = {
        "Adapter": path.parent.name,
        "Base": Path(str(settings.get("base", ""))).name,
        "Continued from": Path(str(settings.get("adapter") or "")).name,
        "Data set": settings.get("dataset"),
        "Task": settings.get("task"),
        "Wording of instructions": settings.get("template"),
        "Trainable parameters": stored["trainable_parameters"],
        "Steps": stored.get("steps"),
        "Learning rate": settings.get("learning_rate"),
        "LoRA rank and alpha": f"{settings.get('lora_r')} and {settings.get('lora_alpha')}",
        "Validation loss, before and after": _pair(stored, "validation_loss_before", "validation_loss_after"),
        "Device": stored.get("environment", {}).get("device"),
        "Code": stored.get("code_commit"),
    }
    for split, data in stored.get("data", {}).items():
        facts[f"Data, {split}"] = f"{data.get('samples'):,} samples, SHA-256 {str(data.get('sha256'))[:16]}"
    shown = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in facts.items() if value}
    return Training(
        name=path.parent.name,
        task=str(settings.get("task") or ""),
        base=shown.get("Base", ""),
        dataset=shown.get("Data set", ""),
        wording=str(settings.get("test_template") or ""),
        facts=shown,
    )


def _pair(stored: Mapping[str, Any], first: str, second: str) -> str:
    values = [stored.get(first), stored.get(second)]
    return " and ".join("not measured" if value is None else f"{value:.4f}" for value in values)


def _file_record(path: Path) -> FileRecord:
    raw = path.read_bytes()
    name = f"{path.parent.name}/{path.name}" if path.name in DEEPER else path.name  # there is one for each adapter
    return FileRecord(name, raw.count(b"\n") if path.suffix != ".json" else 1, hashlib.sha256(raw).hexdigest())

# SPDX-License-Identifier: Apache-2.0
"""One entry point from prediction files to results: reads, scores by task, writes `results.json` and `results.md`."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..answers import NORMALIZER_VERSION, normalize_answer_type
from ..errors import ConfigError
from ..records import Prediction, Sample
from . import accuracy, boxes, reports
from .intervals import describe_resampling
from .predictions import read_control, read_predictions, read_train_samples
from .results import FileRecord, Results, Row, write_json, write_text
from .rows import clusters_of
from .tables import markdown_report

PACKAGES = ("pefomed", "numpy", "statsmodels", "sacrebleu")
NO_CONTROL = "no control was given: without a blank-image control nobody knows what the images add"
NO_TRAIN = "no training samples were given: the trivial baseline that is fitted on them is missing"


def score(
    predictions: str | os.PathLike[str],
    *,
    controls: Mapping[str, str | os.PathLike[str]] | None = None,
    train_samples: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Results:
    """Score one prediction file and return its results.

    Args:
        predictions: `Prediction` records of one task (`vqa`, `refer`, `report` or `caption`).
        controls: by name (`blank_image`), prediction files of the same items whose input was changed on purpose.
        train_samples: the training split, for the trivial baseline: `Sample` records or a data set's `train.jsonl`.
        out: where to write the results, ending in `.json`; the table goes beside it as `.md`. `None` writes nothing.

    Raises:
        PeFoMedError: a file is missing, malformed or does not fit the others; nothing is written then.
        ConfigError: `out` does not end in `.json`.
    """
    if out is not None and Path(out).suffix != ".json":
        raise ConfigError(f"out: found {out}, expected a file name that ends in .json")
    items = read_predictions(predictions)
    control_items = {name: read_control(path, name, items) for name, path in (controls or {}).items()}
    train = read_train_samples(train_samples, items[0].task) if train_samples is not None else []
    results = score_items(items, control_items, train)
    results.files = {"predictions": _file_record(predictions, len(items))}
    for name, path in (controls or {}).items():
        results.files[f"control {name}"] = _file_record(path, len(items))
    if train_samples is not None:
        results.files["train"] = _file_record(train_samples, len(train))
    if out is not None:
        write_text(Path(out).with_suffix(".md"), markdown_report(results))
        write_json(out, results)  # last: a results.json always has its table
    return results


def score_items(
    predictions: Sequence[Prediction], controls: Mapping[str, Sequence[Prediction]], train: Sequence[Sample]
) -> Results:
    """Score records of one task that are already read and in the same order; see [`score`]."""
    task = predictions[0].task
    rows: list[Row]
    if task == "vqa":
        protocol, rows = accuracy.PROTOCOL, accuracy.vqa_rows(predictions, controls, train)
    elif task == "refer":
        protocol, rows = boxes.PROTOCOL, boxes.refer_rows(predictions, controls, train)
    else:
        protocol, rows = reports.PROTOCOL, reports.report_rows(predictions, controls, train)
    counts = {
        "items": len(predictions),
        "clusters": len(set(clusters_of(predictions))),
        "train_samples": len(train),
        "empty_predictions": sum(not item.prediction.strip() for item in predictions),
        "unparsed": rows[0].score.unparsed,
    }
    if task == "vqa":
        types = [normalize_answer_type(item.answer_type) for item in predictions]
        counts |= {"open": types.count("OPEN"), "closed": types.count("CLOSED"), "unknown": types.count("")}
    return Results(
        task=task,
        sources=_distinct(item.source for item in predictions),
        models=_distinct(item.model for item in predictions),
        adapters=_distinct(item.adapter for item in predictions),
        protocol=protocol,
        normalizer=NORMALIZER_VERSION,
        counts=counts,
        rows=rows,
        resampling=describe_resampling("image_id, else study_id, else the item itself"),
        packages=_package_versions(),
        warnings=_warnings(predictions, has_controls=bool(controls), has_train=bool(train)),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _warnings(predictions: Sequence[Prediction], *, has_controls: bool, has_train: bool) -> list[str]:
    warnings = []
    if predictions[0].control:
        warnings.append(f"these predictions were made under the control {predictions[0].control}")
    if not has_controls:
        warnings.append(NO_CONTROL)
    if not has_train:
        warnings.append(NO_TRAIN)
    loose = sum(not (item.image_id or item.study_id) for item in predictions)
    if loose:
        warnings.append(f"{loose:,} items name no image and no study: the intervals take them as independent")
    return warnings


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted({value for value in values if value})


def _file_record(path: str | os.PathLike[str], records: int) -> FileRecord:
    return FileRecord(Path(path).name, records, hashlib.sha256(Path(path).read_bytes()).hexdigest())


def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a clone that is not installed
            continue
    return versions

# SPDX-License-Identifier: Apache-2.0
"""One entry point from prediction files to results: reads, scores by task, writes `results.json` and `results.md`."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..answers import NORMALIZER_VERSION, normalize_answer_type
from ..errors import ConfigError, did_you_mean
from ..records import Prediction, Sample
from . import accuracy, boxes, reports
from .calibration import measure_calibration, read_calibration
from .companions import companions_of, control_names, what_is_missing
from .compat import coco, llava_med, lmms_eval, medevalkit, pefomed, r2gen
from .consistency import consistency_rows
from .intervals import describe_resampling
from .predictions import (
    Problems,
    load_control,
    load_predictions,
    load_slices,
    load_train_samples,
    note_other_dataset,
    note_scored_samples,
)
from .results import FileRecord, Fingerprints, HistoricNumber, HistoricProtocol, Results, Row, write_json, write_text
from .rows import clusters_of
from .tables import markdown_report
from .text_rows import TextModels
from .text_slices import text_slice_rows

PACKAGES = ("pefomed", "numpy", "scipy", "statsmodels", "sacrebleu")
COMPAT = {"pefomed": pefomed, "llava-med": llava_med, "lmms-eval": lmms_eval, "medevalkit": medevalkit}
TEXT_COMPAT = {"r2gen": r2gen, "coco": coco}


def named_paths(option: str, given: Sequence[str]) -> dict[str, Path]:
    """Return the paths by name of a command's option that is given as `NAME=PATH`.

    Raises:
        ConfigError: it has another form, or a name occurs twice.
    """
    paths: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not (name and path) or name in paths:
            raise ConfigError(f"{option}: found {text!r}, expected NAME=PATH with each NAME once")
        paths[name] = Path(path)
    return paths


def score(
    predictions: str | os.PathLike[str],
    *,
    controls: Mapping[str, str | os.PathLike[str]] | None = None,
    train_samples: str | os.PathLike[str] | None = None,
    validation_samples: str | os.PathLike[str] | None = None,
    slices: str | os.PathLike[str] | None = None,
    compat: Sequence[str] = (),
    calibration: str | os.PathLike[str] | None = None,
    text_models: TextModels | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Results:
    """Score one prediction file and return its results.

    Args:
        predictions: `Prediction` records of one task (`vqa`, `refer`, `report` or `caption`).
        controls: by name (`blank`, or as records have it `blank_image`), prediction files of the same items whose
            input was changed on purpose.
        train_samples: the training split, for the trivial baseline: `Sample` records or a data set's `train.jsonl`.
        slices: a CSV table with a column `id` and others to slice by.
        validation_samples: the validation split, on which the constant text is chosen; without it, the training split.
            Neither may be the scored items themselves.
        compat: names of `COMPAT`, or of `TEXT_COMPAT` for reports and captions, whose historic numbers are given too.
        calibration: the adapter's `calibration.json`, whose temperature and threshold are applied to `p_yes`.
        text_models: which metrics of reports and captions that need a model of language are wanted.
        out: where to write the results, ending in `.json`; the table goes beside it as `.md`, and the reliability plot
            as `.reliability.png` where there is a `p_yes`. `None` writes nothing.

    Raises:
        PeFoMedError: files are missing, malformed or do not fit each other, all problems at once; nothing is written.
        ConfigError: `out` does not end in `.json`, or a control or protocol is unknown or not for this task.
    """
    names = control_names(controls or {})
    controls = {names[name]: path for name, path in (controls or {}).items()}
    if out is not None and Path(out).suffix != ".json":
        raise ConfigError(f"out: found {out}, expected a file name that ends in .json")
    for name in compat:
        if name not in (known := {**COMPAT, **TEXT_COMPAT}):
            raise ConfigError(f"compat {name!r}{did_you_mean(name, known)}; expected one of {', '.join(known)}")
    problems = Problems()
    items = load_predictions(predictions, problems)
    control_items = {name: load_control(path, name, items, problems) for name, path in controls.items()}
    train: list[Sample] = []
    if train_samples is not None and items:
        train = load_train_samples(train_samples, items[0].task, problems)
        note_other_dataset(Path(train_samples), train, items, problems)
        note_scored_samples(Path(train_samples), train, items, problems)
    validation: list[Sample] = []
    if validation_samples is not None and items:
        validation = load_train_samples(validation_samples, items[0].task, problems, split="validation")
        note_other_dataset(Path(validation_samples), validation, items, problems)
        note_scored_samples(Path(validation_samples), validation, items, problems)
    columns = load_slices(slices, items, problems) if slices is not None else {}
    problems.raise_if_any()
    for name in compat:
        tasks = ("vqa",) if name in COMPAT else ("report", "caption")
        if items[0].task not in tasks:
            raise ConfigError(
                f"compat {name!r} is for {' and '.join(tasks)}, these are predictions of {items[0].task}"
            )
    results = score_items(items, control_items, train, columns, validation, text_models)
    results.historic = [historic_protocol(name, items, control_items, train, validation) for name in compat]
    fitted = read_calibration(calibration, items) if calibration is not None else None
    temperature, threshold = (fitted.temperature, fitted.threshold) if fitted else (1.0, None)
    results.calibration = measure_calibration(items, temperature, threshold)
    results.files = {"predictions": _file_record(predictions, len(items))}
    for name, path in controls.items():
        results.files[f"control {name}"] = _file_record(path, len(items))
    for role, given, records in (
        ("train", train_samples, len(train)),
        ("validation", validation_samples, len(validation)),
        ("slices", slices, len(items)),
    ):
        if given is not None:
            results.files[role] = _file_record(given, records)
    if out is not None:
        if results.calibration:
            from .calibration_plot import write_reliability_plot

            write_reliability_plot(Path(out).with_suffix(".reliability.png"), results.calibration)
        write_text(Path(out).with_suffix(".md"), markdown_report(results))
        write_json(out, results)  # last: a results.json always has its table
    return results


def score_items(
    predictions: Sequence[Prediction],
    controls: Mapping[str, Sequence[Prediction]],
    train: Sequence[Sample],
    columns: Mapping[str, Sequence[str]] | None = None,
    validation: Sequence[Sample] = (),
    text_models: TextModels | None = None,
) -> Results:
    """Score records of one task that are already read and in the same order; see [`score`]."""
    task = predictions[0].task
    rows: list[Row]
    if task == "vqa":
        protocol, rows = accuracy.PROTOCOL, accuracy.vqa_rows(predictions, controls, train, columns)
        rows += consistency_rows(predictions, controls, train)
    elif task == "refer":
        protocol, rows = boxes.PROTOCOL, boxes.refer_rows(predictions, controls, train, columns)
    else:
        protocol, rows = reports.PROTOCOL, reports.report_rows(predictions, controls, train, validation, text_models)
        rows += text_slice_rows(reports.systems_of(predictions, controls, train, validation), columns)
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
        counts["derived_answer_types"] = sum(item.answer_type_derived for item in predictions)
    companions = companions_of(predictions, controls, train, validation)
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
        warnings=_warnings(predictions),
        missing=what_is_missing(predictions, companions),
        companions=companions,
        fingerprints=fingerprints_of(predictions),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def historic_protocol(
    name: str,
    predictions: Sequence[Prediction],
    controls: Mapping[str, Sequence[Prediction]],
    train: Sequence[Sample],
    validation: Sequence[Sample] = (),
) -> HistoricProtocol:
    """Return another project's numbers for the model, the trivial baseline and the controls."""
    if name in TEXT_COMPAT:
        protocol, systems = TEXT_COMPAT[name], reports.systems_of(predictions, controls, train, validation)
        found = {system: protocol.numbers(items, train) for system, items in systems.items()}
    else:
        protocol, systems = COMPAT[name], accuracy.systems_of(predictions, controls, train)
        found = {system: protocol.numbers(items) for system, items in systems.items() if items}
    numbers = [
        HistoricNumber(
            number, {system: of[number][0] if number in of else None for system, of in found.items()}, items
        )
        for number, (_, items) in found[accuracy.MODEL].items()
    ]
    return HistoricProtocol(name, numbers, list(protocol.QUIRKS))


def _warnings(predictions: Sequence[Prediction]) -> list[str]:
    warnings = []
    if predictions[0].split not in ("", "test"):
        warnings.append(f"these are predictions of the {predictions[0].split} split")
    loose = sum(not (item.image_id or item.study_id) for item in predictions)
    if loose:
        warnings.append(f"{loose:,} items name no image and no study: the intervals take them as independent")
    return warnings


def fingerprints_of(predictions: Sequence[Prediction]) -> Fingerprints:
    """Return what tells the data, the answers and the prompts of a file from others; see [`Fingerprints`]."""
    items = sorted(predictions, key=lambda item: item.id)
    prompts = [[item.id, item.prompt_sha256] for item in items]
    return Fingerprints(
        data=_sha256([[item.id, item.task, item.instruction, item.answers] for item in items]),
        predictions=_sha256([[item.id, item.prediction] for item in items]),
        prompts=_sha256(prompts) if any(sha256 for _, sha256 in prompts) else "",
        distinct_prompts=len({sha256 for _, sha256 in prompts} - {""}),
    )


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


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

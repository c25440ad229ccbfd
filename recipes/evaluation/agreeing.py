# SPDX-License-Identifier: Apache-2.0
"""One entry point from files of ratings, verdicts and predictions to the agreement of all of them.

`agreement.json` is versioned and holds every number with its interval or the reason why it is null; the order is that
of the questions: the ceiling, judges, metrics, whether a judge can stand in for raters, whether it is steady, WASM.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PeFoMedError
from .agreement import Comparison, RaterSummary, compare_all, summarize_raters
from .coefficients import Draws
from .intervals import CONFIDENCE, RESAMPLES, SEED
from .item_metrics import item_metrics
from .panels import Panel, build_panels
from .ppi import PredictionPowered, prediction_powered
from .raters import read_ratings
from .rating_sheets import read_systems
from .replacement import EPSILON, MARGIN, AlternativeAnnotator, NonInferiority, alternative_annotator, non_inferiority
from .results import FLOAT_DIGITS, FileRecord, Resampling, write_text
from .stability import Drift, Paraphrase, Retest, drifts, paraphrase_changes, retests
from .verdicts import kind_of_file, read_scores, read_verdicts
from .wasm import Wasm, wasm_table

SCHEMA = "pefomed-agreement/1"
PACKAGES = ("pefomed", "numpy", "scipy", "sacrebleu")
FEW_ANSWERS = 30


@dataclass
class PanelResults:
    """Everything about one task's answers on one scale, 0..`top`.

    `unread` counts each judge's verdicts without a score, `tied` the answers whose samples tie between two levels.
    Neither is a score, and neither is in a number.
    """

    task: str
    top: int
    rubrics: list[str]
    counts: dict[str, int]
    comparisons: list[Comparison]
    raters: list[RaterSummary]
    non_inferiority: list[NonInferiority]
    alternative_annotator: list[AlternativeAnnotator]
    retests: list[Retest]
    paraphrases: list[Paraphrase]
    drifts: list[Drift]
    wasm: list[Wasm]
    prediction_powered: list[PredictionPowered]
    unread: dict[str, int] = field(default_factory=dict)
    tied: dict[str, int] = field(default_factory=dict)


@dataclass
class AgreementResults:
    """What `agreement.json` holds."""

    panels: list[PanelResults]
    resampling: Resampling
    files: list[FileRecord]
    packages: dict[str, str]
    notes: list[str] = field(default_factory=list)
    date: str = ""
    schema: str = SCHEMA


def agree(
    files: Sequence[str | os.PathLike[str]],
    *,
    scores: Sequence[str | os.PathLike[str]] = (),
    margin: float = MARGIN,
    epsilon: float = EPSILON,
    resamples: int = RESAMPLES,
) -> AgreementResults:
    """Read ratings, verdicts and predictions, in any order, and return how they agree.

    Args:
        files: their kinds are told by what is in them. Predictions give slices, images and metrics; without them there
            are none, and each item is a cluster of its own.
        scores: metrics that were computed elsewhere, JSON lines of `item_id`, `system` and numbers.
        margin: how much quadratic kappa a judge may lose against the human-human ceiling.
        epsilon: of the alternative-annotator test.

    Raises:
        PeFoMedError: there are neither ratings nor verdicts, or a file is malformed or does not fit the others.
        ConfigError: `margin` or `epsilon` is no share, or `scores` have no predictions to belong to.
    """
    if not 0 < margin < 1 or not 0 <= epsilon < 1:
        raise ConfigError(f"found margin {margin} and epsilon {epsilon}, expected shares between 0 and 1")
    kinds: dict[str, list[str | os.PathLike[str]]] = {"ratings": [], "verdicts": [], "predictions": []}
    for path in files:
        kinds[kind_of_file(path)].append(path)
    if not kinds["ratings"] and not kinds["verdicts"]:
        raise PeFoMedError("found no ratings and no verdicts, expected at least one file of them")
    if scores and not kinds["predictions"]:
        raise ConfigError("--scores needs the predictions that the scores are of")
    predictions = read_systems(kinds["predictions"])
    ratings, notes = read_ratings(kinds["ratings"], predictions) if kinds["ratings"] else ([], [])
    verdicts = read_verdicts(kinds["verdicts"], predictions)
    metrics = item_metrics(predictions) | read_scores(scores, predictions)
    if not predictions:
        notes.append("no predictions were given: no slices, no metrics, and intervals that take items as independent")
    panels = build_panels(ratings, verdicts, predictions, metrics)
    return AgreementResults(
        panels=[_results(panel, margin, epsilon, resamples) for panel in panels],
        resampling=Resampling(SEED, resamples, CONFIDENCE, "image_id, else study_id, else the item itself"),
        files=[_file_record(path) for path in (*files, *scores)],
        packages=_package_versions(),
        notes=notes,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _results(panel: Panel, margin: float, epsilon: float, resamples: int) -> PanelResults:
    draws = Draws(panel.clusters, resamples=resamples)
    counts = {
        "answers": len(panel.units),
        "images": draws.clusters,
        "raters": len(panel.raters),
        "judges": len(panel.judges),
        "metrics": len(panel.metrics),
    }
    return PanelResults(
        task=panel.task,
        top=panel.top,
        rubrics=panel.rubrics,
        counts=counts,
        comparisons=compare_all(panel, draws),
        raters=summarize_raters(panel, draws),
        non_inferiority=non_inferiority(panel, draws, margin),
        alternative_annotator=alternative_annotator(panel, epsilon),
        retests=retests(panel, draws),
        paraphrases=paraphrase_changes(panel, draws),
        drifts=drifts(panel, draws),
        wasm=wasm_table(panel, draws),
        prediction_powered=prediction_powered(panel, draws),
        unread=panel.unread,
        tied=panel.tied,
    )


def write_agreement(path: str | os.PathLike[str], results: AgreementResults, page: str) -> None:
    """Write `path`, ending in `.json`, and the Markdown `page` beside it; equal results give equal bytes.

    Raises:
        ConfigError: `path` does not end in `.json`.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ConfigError(f"out: found {path}, expected a file name that ends in .json")
    stored = {"schema": results.schema} | _rounded(asdict(results))
    write_text(path.with_suffix(".md"), page)
    write_text(path, json.dumps(stored, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _file_record(path: str | os.PathLike[str]) -> FileRecord:
    raw = Path(path).read_bytes()
    return FileRecord(Path(path).name, raw.count(b"\n"), hashlib.sha256(raw).hexdigest())


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # a clone that is not installed
            versions[name] = version(name)
    return versions


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, FLOAT_DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value

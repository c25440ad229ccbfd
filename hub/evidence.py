# SPDX-License-Identifier: Apache-2.0
"""What was measured of a model: finds the result files that are about it, and reads them.

A result file is about a model if it names the digest of its weights; the names of files and folders do not count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.evaluation.agreeing import SCHEMA as AGREEMENT
from pefomed_recipes.evaluation.agreeing import AgreementResults
from pefomed_recipes.evaluation.calibration import SCHEMA as CALIBRATION
from pefomed_recipes.evaluation.calibration import FittedCalibration
from pefomed_recipes.evaluation.judges.running import JudgeReport
from pefomed_recipes.evaluation.page.inputs import JUDGE
from pefomed_recipes.evaluation.page.typed import from_stored
from pefomed_recipes.evaluation.results import SCHEMA as RESULTS
from pefomed_recipes.evaluation.results import Results
from pefomed_recipes.evaluation.tables import markdown_report

KINDS: dict[str, Any] = {
    RESULTS: Results,
    CALIBRATION: FittedCalibration,
    JUDGE: JudgeReport,
    AGREEMENT: AgreementResults,
}


@dataclass
class Evidence:
    """All that was measured of one model, by the names of the files. The first of `results` is the headline's."""

    results: dict[str, Results] = field(default_factory=dict)
    calibrations: dict[str, FittedCalibration] = field(default_factory=dict)
    judges: dict[str, JudgeReport] = field(default_factory=dict)
    agreements: dict[str, AgreementResults] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Copy the files into a folder, and write the table of each `results.json` beside it."""
        for name, source in self.sources.items():
            (folder / name).write_bytes(source.read_bytes())
        for name, results in self.results.items():
            (folder / name).with_suffix(".md").write_text(markdown_report(results), encoding="utf-8")


def find_evidence(paths: Sequence[str | os.PathLike[str]], digest: str) -> Evidence:
    """Read the result files that are about the adapter of a digest, `results.json` first.

    Args:
        paths: files, or folders whose JSON files are looked at; what is about other adapters is passed over there.
        digest: the first digits of the SHA-256 of the adapter's weights, as predictions name it.

    Raises:
        PeFoMedError: a path is missing; a named file is of no known kind, malformed, or about another adapter; two
            files have one name.
    """
    evidence = Evidence()
    groups: dict[str, dict[str, Any]] = {
        RESULTS: evidence.results,
        CALIBRATION: evidence.calibrations,
        JUDGE: evidence.judges,
    }
    pending: list[tuple[Path, bool, AgreementResults]] = []
    for path, is_named, schema, stored in _known_files(paths):
        ignored = ("schema", "warnings") if schema == JUDGE else ()
        try:
            read: Any = from_stored(KINDS[schema], {name: v for name, v in stored.items() if name not in ignored})
        except ValueError as error:
            raise PeFoMedError(f"{path}: {error}; make it again with this version") from None
        if schema == AGREEMENT:
            pending.append((path, is_named, read))  # it is about predictions, which the results name
        elif any(system.rpartition("@")[2].partition("+")[0] == digest for system in _systems(read)):
            _take(evidence, groups[schema], path, read)
        elif is_named:
            raise PeFoMedError(
                f"{path}: it is about {', '.join(_systems(read)) or 'a model without an adapter'}, expected the "
                f"adapter @{digest}; predict and score with the adapter that is exported"
            )
    scored = {record.sha256 for results in evidence.results.values() for record in results.files.values()}
    for path, is_named, agreement in pending:
        if any(record.sha256 in scored for record in agreement.files):
            _take(evidence, evidence.agreements, path, agreement)
        elif is_named:
            raise PeFoMedError(f"{path}: it is about other predictions than those that were scored; agree on these")
    return evidence


def _known_files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[Path, bool, str, dict[str, Any]]]:
    for path in map(Path, paths):
        if not path.exists():
            raise PeFoMedError(f"{path}: no such file or folder")
        files = [path] if path.is_file() else sorted(path.glob("*.json"), key=lambda file: file.name != "results.json")
        for file in files:
            try:
                stored = json.loads(file.read_bytes())
            except ValueError:
                stored = None
            schema = stored.get("schema") if isinstance(stored, dict) else None
            if schema in KINDS:
                yield file, path.is_file(), schema, stored
            elif path.is_file():
                raise PeFoMedError(
                    f"{file}: found no result file of this version, expected what pefomed score, calibrate, judge or "
                    "agree writes"
                )


def _systems(read: Results | FittedCalibration | JudgeReport) -> list[str]:
    """Return the adapters that a result file names."""
    if isinstance(read, Results):
        return read.adapters
    return [read.adapter] if isinstance(read, FittedCalibration) else sorted({row.system for row in read.wasm})


def _take(evidence: Evidence, group: dict[str, Any], path: Path, read: Any) -> None:
    if evidence.sources.get(path.name, path).resolve() != path.resolve():
        raise PeFoMedError(f"{path}: there is another {path.name} among the results; rename one of them")
    evidence.sources[path.name] = path
    group[path.name] = read

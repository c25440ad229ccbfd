# SPDX-License-Identifier: Apache-2.0
"""The results of one scored prediction file: typed, versioned, written to and read from `results.json`.

Every number is a share in 0..1 with its numerator and denominator. A number that is not defined is null and says why.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PeFoMedError
from ..staging import whole_file

SCHEMA = "pefomed-results/1"
SMALL_SLICE = 30  # fewer items than this say little: tables mark them, pages grey them
HALF_PAIR = "half a surrogate pair, which is no character; write the file again as UTF-8"
FLOAT_DIGITS = 10  # differences beyond are those of a machine's summation order


@dataclass
class Interval:
    """A 95 % interval `low`..`high` (shares in 0..1, differences in -1..1) and the method it comes from."""

    low: float
    high: float
    method: str


@dataclass
class Score:
    """One number of one system: `numerator / denominator`.

    `value` is null where it is not defined, and `reason` says why; it also says why a defined value has no
    `cluster_interval`. `unparsed` counts the replies that no rule could read. `interval` is Wilson's, for proportions
    of items only; it takes the items as independent. `cluster_interval` resamples whole images: quote this one.
    """

    value: float | None
    numerator: float | None = None
    denominator: float | None = None
    interval: Interval | None = None
    cluster_interval: Interval | None = None
    unparsed: int = 0
    reason: str = ""


@dataclass
class Difference:
    """The model's value minus another system's on the same items, -1..1, with an interval from paired resamples."""

    value: float | None
    interval: Interval | None = None
    reason: str = ""


@dataclass
class Row:
    """One metric on one slice of the items, for the model and for everything it must be compared with.

    `slice` names what the items have in common (`overall`, `answer_type`, `laterality`, `question_type`, `organ`, a
    column of a user's table), `value` is the slice's value (`PLANE`). `answer_type` is `open`, `closed`, `unknown` or
    "" (all). `differences` has the same keys as `baselines` and `controls` together, on rows that carry a headline.
    """

    metric: str
    slice: str
    value: str
    answer_type: str
    items: int
    clusters: int
    score: Score
    baselines: dict[str, Score] = field(default_factory=dict)
    controls: dict[str, Score] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    signature: str = ""

    @property
    def is_small(self) -> bool:
        """Whether so few items are in the slice that its number says little."""
        return self.items < SMALL_SLICE


@dataclass
class HistoricNumber:
    """A number as another project's evaluator computes it, for the model and everything beside it.

    `values` are by system (`model`, `majority_answer`, the controls); null where the protocol has no item to score.
    `items` is the protocol's own denominator for the model.
    """

    name: str
    values: dict[str, float | None]
    items: int


@dataclass
class HistoricProtocol:
    """The numbers of one `--compat` protocol and what is odd about them. They are not comparable with ours."""

    name: str
    numbers: list[HistoricNumber]
    quirks: list[str]


@dataclass
class CalibrationBin:
    """Closed questions of similar confidence: their number, mean confidence and the share of right answers."""

    items: int
    confidence: float
    accuracy: float


@dataclass
class Calibration:
    """How far p(yes) can be trusted on the closed questions that have one; see `calibration.py` for each number.

    `temperature` is 1 where none was fitted. `coverage` and `risk` are the risk-coverage curve, most confident first.
    `threshold` and the two numbers after it are null where no abstention threshold was fitted.
    """

    items: int
    temperature: float
    ece: Score
    brier: Score
    aurc: float
    bins: list[CalibrationBin]
    coverage: list[float]
    risk: list[float]
    threshold: float | None = None
    answered: float | None = None
    answered_accuracy: float | None = None


@dataclass
class Resampling:
    """How the cluster intervals were made: the seed, the number of resamples and what one cluster is."""

    seed: int
    resamples: int
    confidence: float
    cluster: str


@dataclass
class FileRecord:
    """A scored file: its name without folders, its number of records and the SHA-256 of its bytes."""

    name: str
    records: int
    sha256: str


@dataclass
class Companion:
    """A trivial baseline or a control: whether it is there, and what needs it (`headline`, `laterality` or "").

    `purpose` says what it shows, of a baseline by which rule and on which split it was chosen. `command` says how one
    that is missing is made, else it is "".
    """

    name: str
    is_there: bool
    needed: str
    purpose: str
    command: str = ""


@dataclass
class Fingerprints:
    """SHA-256 of what went into the results, each independent of the order of lines, of file names and of keys.

    `data`: ids, tasks, questions and references of the scored items, the same for every model. `predictions`: ids and
    answers. `prompts`: ids and the fingerprints of the rendered prompts, which hold template and question; "" where
    the predictions name none. `distinct_prompts` counts those that differ.
    """

    data: str = ""
    predictions: str = ""
    prompts: str = ""
    distinct_prompts: int = 0


@dataclass
class Results:
    """Everything `results.json` holds. The first of `rows` is the headline.

    `companions` are the baselines and controls, there or not. `missing` says what the headline cannot be shown
    without; while it says anything, no number may be shown.
    """

    task: str
    sources: list[str]
    models: list[str]
    adapters: list[str]
    protocol: str
    normalizer: str
    counts: dict[str, int]
    rows: list[Row]
    resampling: Resampling
    files: dict[str, FileRecord] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    companions: list[Companion] = field(default_factory=list)
    fingerprints: Fingerprints = field(default_factory=Fingerprints)
    historic: list[HistoricProtocol] = field(default_factory=list)
    calibration: Calibration | None = None
    date: str = ""
    schema: str = SCHEMA

    @property
    def headline(self) -> Row:
        """The row of the primary metric over all items."""
        return self.rows[0]

    def lacks(self, part: str) -> list[Companion]:
        """Return the baselines and controls that `part` (`headline` or `laterality`) needs and that are not there."""
        return [one for one in self.companions if one.needed == part and not one.is_there]


def write_json(path: str | os.PathLike[str], results: Results) -> None:
    """Write `results.json`; the file appears only when it is whole, and equal results give equal bytes."""
    stored = {"schema": results.schema} | _rounded(asdict(results))  # the schema first, for readers
    text = json.dumps(stored, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in one step, with the folders it needs.

    Raises:
        PeFoMedError: the file cannot be written.
    """
    with told_if_unwritable(path), whole_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def told_if_unwritable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what hinders writing a file into one sentence."""
    try:
        yield
    except OSError as error:
        raise PeFoMedError(f"{path}: cannot be written ({error.strerror}); name another place") from None
    except UnicodeEncodeError:
        raise PeFoMedError(f"{path}: not written, a text holds {HALF_PAIR}") from None


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read what [`write_json`] wrote.

    Raises:
        PeFoMedError: the file is missing, is no JSON object or has another schema.
    """
    path = Path(path)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PeFoMedError(f"{path}: no such file") from None
    except ValueError as error:
        raise PeFoMedError(f"{path}: not JSON ({error})") from None
    found = stored.get("schema") if isinstance(stored, dict) else None
    if found != SCHEMA:
        raise PeFoMedError(f"{path}: schema {found!r}, expected {SCHEMA!r}; score the predictions again")
    stored["rows"] = [_read_row(row) for row in stored["rows"]]
    stored["resampling"] = Resampling(**stored["resampling"])
    stored["files"] = {role: FileRecord(**record) for role, record in stored["files"].items()}
    stored["historic"] = [
        HistoricProtocol(**{**protocol, "numbers": [HistoricNumber(**number) for number in protocol["numbers"]]})
        for protocol in stored.get("historic", [])
    ]
    stored["companions"] = [Companion(**one) for one in stored.get("companions", [])]
    stored["fingerprints"] = Fingerprints(**stored.get("fingerprints", {}))
    if stored.get("calibration"):
        stored["calibration"] = _read_calibration(stored["calibration"])
    return Results(**stored)


def _read_calibration(stored: dict[str, Any]) -> Calibration:
    scores = {name: _read_score(stored[name]) for name in ("ece", "brier")}
    return Calibration(**{**stored, **scores, "bins": [CalibrationBin(**one) for one in stored["bins"]]})


def _read_row(row: dict[str, Any]) -> Row:
    row = dict(row)
    row["score"] = _read_score(row["score"])
    for group in ("baselines", "controls"):
        row[group] = {name: _read_score(score) for name, score in row[group].items()}
    row["differences"] = {
        name: Difference(**{**difference, "interval": _read_interval(difference["interval"])})
        for name, difference in row["differences"].items()
    }
    return Row(**row)


def _read_score(score: dict[str, Any]) -> Score:
    intervals = {name: _read_interval(score[name]) for name in ("interval", "cluster_interval")}
    return Score(**{**score, **intervals})


def _read_interval(interval: dict[str, Any] | None) -> Interval | None:
    return Interval(**interval) if interval else None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, FLOAT_DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return value

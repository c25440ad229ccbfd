# SPDX-License-Identifier: Apache-2.0
"""Ratings, verdicts and metrics of the same answers side by side: one panel for each task and scale.

A unit is one system's answer to one item. Every party's scores are an array over the units, NaN where it gave none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..answers import normalize_answer_type, normalize_question_types
from ..records import Prediction, Rating, Verdict
from .coefficients import Floats, Ints
from .raters import IDENTITY, highest_score, is_control
from .rows import clusters_of

RATERS = "raters"
Unit = tuple[str, str]
Opinion = TypeVar("Opinion", Rating, Verdict)


@dataclass
class Panel:
    """All that was said about one task's answers on one scale 0..`top`.

    `raters` hold first ratings and `repeats` hidden second ones, (units,). `judges` hold the middle score of each
    unit's samples in the newest run that judged it, `samples` all of them, (units, samples), and `runs` the middle
    scores of each run, in the order of time. `metrics` hold what metrics gave, `slices` the positions of each
    `(slice, value)`.

    `controls` counts for each rater the hidden controls that were rated as they should be, and all; `cannot_judge` and
    `unread` what gave no score, `tied` the units whose samples have their median between two levels. `asked` marks,
    for `RATERS` and each judge, the units of which they were asked, whether a score came of it or not.
    """

    task: str
    top: int
    rubrics: list[str]
    units: list[Unit]
    clusters: list[str]
    raters: dict[str, Floats] = field(default_factory=dict)
    repeats: dict[str, Floats] = field(default_factory=dict)
    controls: dict[str, tuple[int, int]] = field(default_factory=dict)
    cannot_judge: dict[str, int] = field(default_factory=dict)
    judges: dict[str, Floats] = field(default_factory=dict)
    samples: dict[str, Floats] = field(default_factory=dict)
    runs: dict[str, dict[str, Floats]] = field(default_factory=dict)
    judged_by: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    tied: dict[str, int] = field(default_factory=dict)
    asked: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    metrics: dict[str, Floats] = field(default_factory=dict)
    slices: dict[tuple[str, str], Ints] = field(default_factory=dict)

    @property
    def levels(self) -> int:
        """The number of levels of the scale."""
        return self.top + 1

    @property
    def ratings(self) -> Floats:
        """(units, raters)."""
        return np.stack(list(self.raters.values()), axis=1) if self.raters else np.empty((len(self.units), 0))

    @property
    def human_mean(self) -> Floats:
        """The mean over the raters of each unit, NaN where nobody rated it: (units,)."""
        return mean_of_rows(self.ratings)


def mean_of_rows(values: Floats) -> Floats:
    """Return the mean of each row without its NaNs; NaN for a row of them."""
    count = np.isfinite(values).sum(1)
    return np.where(count, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)


def build_panels(
    ratings: Sequence[Rating],
    verdicts: Sequence[Verdict],
    predictions: Sequence[Prediction],
    metrics: Mapping[str, Mapping[Unit, float]],
) -> list[Panel]:
    """Return a panel for each task and scale that ratings or verdicts have."""
    records: list[Rating | Verdict] = [*ratings, *verdicts]
    scales = sorted({(record.task, highest_score(record.rubric)) for record in records})
    return [
        _build_panel(
            task,
            top,
            [r for r in ratings if (r.task, highest_score(r.rubric)) == (task, top)],
            [v for v in verdicts if (v.task, highest_score(v.rubric)) == (task, top)],
            [item for item in predictions if item.task == task],
            metrics,
        )
        for task, top in scales
    ]


def _build_panel(
    task: str,
    top: int,
    ratings: Sequence[Rating],
    verdicts: Sequence[Verdict],
    predictions: Sequence[Prediction],
    metrics: Mapping[str, Mapping[Unit, float]],
) -> Panel:
    items = {(item.id, item.system): item for item in predictions}
    records: list[Rating | Verdict] = [*ratings, *verdicts]
    scored = {(record.item_id, record.system) for record in records if not is_control(record.system)}
    units = sorted(set(items) | scored)
    at = {unit: position for position, unit in enumerate(units)}
    named = dict(zip(items, clusters_of(items.values()), strict=True))
    panel = Panel(
        task=task,
        top=top,
        rubrics=sorted({record.rubric for record in records}),
        units=units,
        clusters=[named.get(unit, f"item {unit[0]}") for unit in units],
    )
    nothing = np.full(len(units), np.nan)
    if ratings:
        panel.asked[RATERS] = _is_among(units, ratings)
    by_rater = _by_party(ratings, [rating.rater_id for rating in ratings])
    for name, given in by_rater.items():
        panel.raters[name] = nothing.copy()
        for rating in given:
            if not is_control(rating.system) and rating.score is not None:
                party = panel.repeats.setdefault(name, nothing.copy()) if rating.repeat else panel.raters[name]
                party[at[rating.item_id, rating.system]] = rating.score
        checks = [rating for rating in given if is_control(rating.system)]
        right = sum(r.score == (top if r.system == IDENTITY else 0) for r in checks)
        panel.controls[name] = (right, len(checks))
        panel.cannot_judge[name] = sum(rating.cannot_judge for rating in given)
    said_of_systems = [verdict for verdict in verdicts if not is_control(verdict.system)]
    for name, said in _by_party(said_of_systems, [verdict.judge for verdict in said_of_systems]).items():
        _add_judge(panel, name, said, at)
    for name, values in metrics.items():
        column = np.array([values.get(unit, np.nan) for unit in units])
        if np.isfinite(column).any():
            panel.metrics[name] = column
    panel.slices = _slices(units, items)
    return panel


def _by_party(records: Sequence[Opinion], names: Sequence[str]) -> dict[str, list[Opinion]]:
    """Return the records of each party in the order of names; one that used several rubrics is one party for each."""
    several = len({record.rubric for record in records}) > 1
    parties: dict[str, list[Opinion]] = defaultdict(list)
    for record, name in zip(records, names, strict=True):
        parties[f"{name} ({record.rubric})" if several else name].append(record)
    return dict(sorted(parties.items()))


def _add_judge(panel: Panel, name: str, verdicts: Sequence[Verdict], at: Mapping[Unit, int]) -> None:
    panel.asked[name] = _is_among(panel.units, verdicts)
    by_run: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for verdict in verdicts:
        if verdict.score is not None:
            by_run[verdict.run][at[verdict.item_id, verdict.system]][verdict.sample] = verdict.score
    runs = {}
    newest: dict[int, dict[int, float]] = {}
    for run in sorted(by_run):
        runs[run] = np.full(len(panel.units), np.nan)
        for position, scores in by_run[run].items():
            runs[run][position] = middle_score(list(scores.values()))
            newest[position] = scores
    width = 1 + max((sample for scores in newest.values() for sample in scores), default=0)
    samples = np.full((len(panel.units), width), np.nan)
    panel.judges[name] = np.full(len(panel.units), np.nan)
    for position, scores in newest.items():
        panel.judges[name][position] = middle_score(list(scores.values()))
        for sample, score in scores.items():
            samples[position, sample] = score
    panel.samples[name], panel.runs[name] = samples, runs
    panel.judged_by[name] = {
        run: sorted({_said_by(verdict) for verdict in verdicts if verdict.run == run and verdict.reply})
        for run in sorted({v.run for v in verdicts})
    }
    panel.unread[name] = sum(verdict.score is None for verdict in verdicts)
    panel.tied[name] = sum(bool(np.isnan(panel.judges[name][position])) for position in newest)


def _said_by(verdict: Verdict) -> str:
    return f"{verdict.judge_reported or verdict.judge}, rubric {verdict.rubric_sha256[:8]}"


def _is_among(units: Sequence[Unit], records: Sequence[Rating] | Sequence[Verdict]) -> npt.NDArray[np.bool_]:
    found = {(record.item_id, record.system) for record in records}
    return np.array([unit in found for unit in units])


def middle_score(scores: Sequence[float]) -> float:
    """Return the median of one unit's samples, which for 0/1 is the majority; NaN where it lies between two levels."""
    middle = float(np.median(scores))
    return middle if middle == int(middle) else float("nan")


def _slices(units: Sequence[Unit], items: Mapping[Unit, Prediction]) -> dict[tuple[str, str], Ints]:
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for position, unit in enumerate(units):
        found["system", unit[1]].append(position)
        item = items.get(unit)
        if item is None:
            continue
        values = {
            "answer_type": [normalize_answer_type(item.answer_type).lower()],
            "question_type": list(normalize_question_types(item.question_types)),
            "organ": [item.organ],
            "modality": [item.modality],
        }
        for name, chosen in values.items():
            for value in filter(None, chosen):
                found[name, value].append(position)
    order = ("system", "organ", "modality", "answer_type", "question_type")
    kept = sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    return {key: np.array(found[key], dtype=np.intp) for key in kept}

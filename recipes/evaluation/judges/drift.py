# SPDX-License-Identifier: Apache-2.0
"""A watch on a judge's drift: the same few answers of known quality, judged anew in every run, on a control chart.

Replies to these sentinels are never taken from an earlier run's ledger: a model behind an endpoint can change without
another name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ...ledger import fingerprint, read_appended
from ...records import append_records
from .judging import Ask, Judge
from .rubrics import Answer, Rubric

MIN_EARLIER = 4  # runs, before limits are taken from them
SIGMA_PER_MOVING_RANGE = 1 / 1.128
LEAST_SIGMA = 0.02  # share of the scale: a judge that never moved may move a little
FIRST_LIMIT = 0.25 / 4  # share of the scale, as long as there are fewer runs


@dataclass(frozen=True)
class SentinelRun:
    """The scores of one run in the sentinels' order, null where none could be read, and their `mean`."""

    run: str
    judge: str
    judge_reported: str
    rubric_sha256: str
    sentinels_sha256: str
    scores: list[int | None]
    mean: float | None


@dataclass(frozen=True)
class Drift:
    """Whether the newest run lies within limits drawn from the earlier ones: `centre` - or + `limit`, in points.

    `changed` counts sentinels whose score differs from the first run's. Null limits: this is the first run.
    """

    runs: list[SentinelRun]
    centre: float | None
    limit: float | None
    changed: int
    warning: str = ""


def sentinels(task: str) -> tuple[list[Answer], list[int]]:
    """Return the packaged sentinels for questions (`vqa`) or texts (all else), and the levels their authors gave."""
    kind = "vqa" if task == "vqa" else "report"
    lines = (resources.files(__package__) / "sentinels.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["task"] == kind]
    answers = [
        Answer(row["item_id"], "sentinel", kind, row["question"], (row["reference"],), row["candidate"])
        for row in rows
    ]
    return answers, [row["expected"] for row in rows]


def watch(judge: Judge, rubric: Rubric, task: str, run: str, history: str | os.PathLike[str]) -> Drift:
    """Judge the sentinels anew, add the scores to `history` (JSON lines), and compare with the runs that it holds.

    Raises:
        PeFoMedError: `history` holds something else; nothing is asked then.
    """
    history = Path(history)
    rows = read_appended(history, SentinelRun, "run of the sentinels; name another --out, or move this file away")
    answers, _ = sentinels(task)
    fresh = judge.afresh(history.with_name(f"{history.stem}-{run.replace(':', '')}.ledger.jsonl"))
    outcomes = fresh.outcomes([Ask(answer) for answer in answers], rubric)
    scores = [outcome.score for outcome in outcomes]
    known = [score for score in scores if score is not None]
    newest = SentinelRun(
        run=run,
        judge=judge.name,
        judge_reported=next((outcome.reported for outcome in outcomes if outcome.reported), ""),
        rubric_sha256=rubric.sha256,
        sentinels_sha256=fingerprint({"sentinels": [answer.__dict__ for answer in answers]}),
        scores=scores,
        mean=sum(known) / len(known) if known else None,
    )
    same = ("judge", "rubric_sha256", "sentinels_sha256")
    earlier = [row for row in rows if all(getattr(row, name) == getattr(newest, name) for name in same)]
    append_records(history, [newest])
    return compare([*earlier, newest], rubric.top)


def compare(runs: Sequence[SentinelRun], top: int) -> Drift:
    """Return whether the last of `runs` lies within the limits of the others.

    From four earlier runs on, the limits are those of a chart of individual values: their mean, and three sigma, where
    sigma is their mean moving range / 1.128, at least 0.02 of the scale. Before, they are a quarter of a point of 0..4
    around the first run.

    Source: Shewhart's control chart of individuals and moving ranges.
    """
    newest, earlier = runs[-1], [run.mean for run in runs[:-1] if run.mean is not None]
    if newest.mean is None:
        return Drift(list(runs), None, None, 0, "no sentinel could be judged in this run")
    if not earlier:
        return Drift(list(runs), None, None, 0)
    if len(earlier) < MIN_EARLIER:
        centre, limit = earlier[0], FIRST_LIMIT * top
    else:
        ranges = [abs(later - before) for before, later in zip(earlier, earlier[1:], strict=False)]
        sigma = max(SIGMA_PER_MOVING_RANGE * sum(ranges) / len(ranges), LEAST_SIGMA * top)
        centre, limit = sum(earlier) / len(earlier), 3 * sigma
    changed = sum(now != then for now, then in zip(newest.scores, runs[0].scores, strict=True))
    warning = ""
    if abs(newest.mean - centre) > limit + 1e-9:
        warning = (
            f"the judge has drifted: its sentinels' mean is {newest.mean:.2f}, outside of {centre - limit:.2f} to "
            f"{centre + limit:.2f}; {changed} of {len(newest.scores)} scores differ from the first run's"
        )
    return Drift(list(runs), centre, limit, changed, warning)

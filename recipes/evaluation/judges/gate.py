# SPDX-License-Identifier: Apache-2.0
"""The gate: a judge's score is shown as one only after the judge has told good answers from bad ones.

Right answers, wrong ones and harmless changes are made of the references themselves, and are judged like all others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .corruptions import empty, identity, negated, other_side, padded, shuffled
from .judging import UNREAD_LIMIT, Ask, Judge, Outcome
from .rubrics import Answer, Rubric

GATE_ITEMS = 40
MIN_ITEMS = 5  # of a change, to say anything about it
MIN_AUC = 0.95
MAX_SHIFT = 0.25 / 4  # share of the scale: a quarter of a point of 0..4
RESAMPLES, SEED = 2000, 0
REQUIRED = ("identity over shuffled", "empty")  # measured, or the judge is not believed
MUST_LOWER = ("empty", "negated", "other_side")
MUST_NOT_MOVE = ("padded", "candidate_first", "levels_reversed")

Scores = dict[str, dict[str, int]]  # by change and item


@dataclass(frozen=True)
class GateCheck:
    """One thing that a judge must do.

    `value` is the area under the curve (0..1, 0.5 is chance), a mean drop or shift in points of the scale, or the
    share of unread replies; `low`..`high` its 95 % interval over items where it has one. `passed` is null where there
    were too few items to say.
    """

    name: str
    kind: Literal["separates", "lowers", "does not move", "readable"]
    items: int
    value: float | None
    limit: float
    passed: bool | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Gate:
    """Whether a judge is believed. It is, when it separates right from wrong and no check fails."""

    passed: bool
    items: int
    checks: list[GateCheck]

    @property
    def failures(self) -> list[str]:
        """What stands against the judge, in words."""
        return [f"{check.name} ({check.kind})" for check in self.checks if check.passed is False] + [
            f"{check.name} (too few items)" for check in self.checks if check.passed is None and check.name in REQUIRED
        ]


def gate_asks(answers: Sequence[Answer], *, items: int = GATE_ITEMS, seed: int = SEED) -> list[Ask]:
    """Return what a judge is asked at the gate, about `items` answers that the seed draws.

    Source: the controls are those that judges of radiology reports and of chats were shown to fail.
    """
    usable = sorted((a for a in answers if a.references[0].strip()), key=lambda a: (a.item_id, a.system))
    first = {answer.item_id: answer for answer in usable}  # one of each item, whichever system
    drawn = random.Random(seed).sample(list(first.values()), min(items, len(first)))
    changed = [change(answer) for answer in drawn for change in (identity, empty, padded, negated, other_side)]
    asks = [Ask(answer) for answer in [*changed, *shuffled(drawn, seed)] if answer is not None]
    real = [answer for answer in drawn if answer.candidate.strip()]
    return asks + [Ask(answer, form) for answer in real for form in ("plain", "candidate_first", "levels_reversed")]


def pass_gate(judge: Judge, rubric: Rubric, answers: Sequence[Answer], *, items: int = GATE_ITEMS) -> Gate:
    """Put a judge through the gate."""
    asks = gate_asks(answers, items=items)
    return evaluate_gate(asks, judge.outcomes(asks, rubric), rubric.top)


def evaluate_gate(asks: Sequence[Ask], outcomes: Sequence[Outcome], top: int) -> Gate:
    """Return what the outcomes of [`gate_asks`] say about a judge."""
    scores: Scores = {}
    for ask, outcome in zip(asks, outcomes, strict=True):
        if outcome.score is not None:
            scores.setdefault(ask.answer.control or ask.form, {})[ask.answer.item_id] = outcome.score
    unread = sum(outcome.score is None for outcome in outcomes) / max(len(outcomes), 1)
    checks = [
        GateCheck("replies", "readable", len(outcomes), unread, UNREAD_LIMIT, unread <= UNREAD_LIMIT),
        _separation(scores),
        *(_drop(scores, name) for name in MUST_LOWER),
        *(_shift(scores, name, MAX_SHIFT * top) for name in MUST_NOT_MOVE),
    ]
    measured = {check.name for check in checks if check.passed is not None}
    passed = all(check.passed is not False for check in checks) and measured.issuperset(REQUIRED)
    return Gate(passed, len({ask.answer.item_id for ask in asks}), checks)


def area_under_curve(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Return how often a right answer's score is above a wrong one's, over all pairs, ties half: 0..1."""
    pairs = np.subtract.outer(np.asarray(right, float), np.asarray(wrong, float))
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def _separation(scores: Scores) -> GateCheck:
    right, wrong = list(scores.get("identity", {}).values()), list(scores.get("shuffled", {}).values())
    items = min(len(right), len(wrong))
    if items < MIN_ITEMS:
        return GateCheck(REQUIRED[0], "separates", items, None, MIN_AUC, None)
    value = area_under_curve(right, wrong)
    return GateCheck(REQUIRED[0], "separates", items, value, MIN_AUC, value >= MIN_AUC)


def _drop(scores: Scores, name: str) -> GateCheck:
    """The mean of what the reference loses by a change that makes it wrong: its interval must lie above 0."""
    drops = _differences(scores.get("identity", {}), scores.get(name, {}))
    if len(drops) < MIN_ITEMS:
        return GateCheck(name, "lowers", len(drops), None, 0.0, None)
    draws = np.random.default_rng(SEED).choice(drops, (RESAMPLES, len(drops))).mean(1)
    low, high = (float(bound) for bound in np.quantile(draws, [0.025, 0.975]))
    return GateCheck(name, "lowers", len(drops), float(drops.mean()), 0.0, low > 0, low, high)


def _shift(scores: Scores, name: str, limit: float) -> GateCheck:
    """The mean distance by which a harmless change moves an answer's score: moves up and down do not cancel."""
    before = scores.get("identity" if name == "padded" else "plain", {})
    shifts = _differences(scores.get(name, {}), before)
    if len(shifts) < MIN_ITEMS:
        return GateCheck(name, "does not move", len(shifts), None, limit, None)
    value = float(np.abs(shifts).mean())
    return GateCheck(name, "does not move", len(shifts), value, limit, value <= limit)


def _differences(first: Mapping[str, int], second: Mapping[str, int]) -> np.ndarray:
    return np.array([score - second[item] for item, score in first.items() if item in second], dtype=float)

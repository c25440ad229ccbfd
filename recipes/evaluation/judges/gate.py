# SPDX-License-Identifier: Apache-2.0
"""The gate: a judge's score is shown as one only after the judge has told good answers from bad ones.

Right answers, wrong ones and harmless changes are made of the references themselves, and are judged like all others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .corruptions import empty, identity, negated, other_side, padded, shuffled, spare_answers
from .judging import UNREAD_LIMIT, Ask, Judge, Outcome
from .rubrics import Answer, Rubric

GATE_ITEMS = 40
MIN_ITEMS = 20  # of every check: with fewer it says nothing, and the judge is not believed
MIN_AUC = 0.95
MAX_SHIFT = 0.25 / 4  # share of the scale: a quarter of a point of 0..4
RESAMPLES, SEED = 2000, 0
MUST_LOWER = ("empty", "negated", "other_side")
MUST_NOT_MOVE = ("padded", "candidate_first", "levels_reversed")

Scores = dict[str, dict[str, int]]  # by change and item


@dataclass(frozen=True)
class GateCheck:
    """One thing that a judge must do.

    `value` is the area under the curve (0..1, 0.5 is chance), a mean drop or shift in points of the scale, or the
    share of unread replies; `low`..`high` its 95 % interval over items where it has one. `passed` is null where fewer
    than 20 items (`MIN_ITEMS`) have the scores it needs: it was not measured.
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
    """Whether a judge is believed. It is, when every check was measured and passed."""

    passed: bool
    items: int
    checks: list[GateCheck]

    @property
    def failures(self) -> list[str]:
        """What stands against the judge, in words."""
        return [f"{check.name} ({check.kind})" for check in self.checks if check.passed is False] + self.not_measured

    @property
    def not_measured(self) -> list[str]:
        """The checks that had too few items, in words."""
        return [
            f"{check.name} (not measured: {check.items} of {MIN_ITEMS} items)"
            for check in self.checks
            if check.passed is None
        ]

    @property
    def verdict(self) -> str:
        """Why the judge is not believed, "" where it is."""
        failed = [failure for failure in self.failures if failure not in self.not_measured]
        parts = [f"gate failed: {', '.join(failed)}"] if failed else []
        missing = [
            f"{check.name} ({check.items} of {MIN_ITEMS} items)" for check in self.checks if check.passed is None
        ]
        return "; ".join(parts + ([f"gate not measured: {', '.join(missing)}"] if missing else []))


def gate_asks(answers: Sequence[Answer], *, items: int = GATE_ITEMS, seed: int = SEED) -> list[Ask]:
    """Return what a judge is asked at the gate, about `items` answers that the seed draws.

    Where too few of their references can be negated or name a side, further ones stand in, and then texts of our own.

    Source: the controls are those that judges of radiology reports and of chats were shown to fail.
    """
    usable = sorted((a for a in answers if a.references[0].strip()), key=lambda a: (a.item_id, a.system))
    first = {answer.item_id: answer for answer in usable}  # one of each item, whichever system
    order = random.Random(seed).sample(list(first.values()), len(first))
    drawn, more = order[:items], order[items:] + (spare_answers(usable[0].task) if usable else [])
    changed = [change(answer) for answer in drawn for change in (identity, empty, padded)] + shuffled(drawn, seed)
    for turn in (negated, other_side):
        changed += _turned(turn, drawn, more)
    asks = [Ask(answer) for answer in dict.fromkeys(changed)]
    real = [answer for answer in drawn if answer.candidate.strip()]
    return asks + [Ask(answer, form) for answer in real for form in ("plain", "candidate_first", "levels_reversed")]


def _turned(turn: Callable[[Answer], Answer | None], drawn: Sequence[Answer], more: Sequence[Answer]) -> list[Answer]:
    """Return the turned answers of `drawn`, and of as many of `more` as are needed, with the references of those."""
    found = [turned for answer in drawn if (turned := turn(answer)) is not None]
    added: list[Answer] = []
    for answer in more:
        if len(found) + len(added) // 2 >= MIN_ITEMS:
            break
        turned = turn(answer)
        if turned is not None:
            added += [identity(answer), turned]
    return found + added


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
        GateCheck(
            "replies",
            "readable",
            len(outcomes),
            unread,
            UNREAD_LIMIT,
            unread <= UNREAD_LIMIT if len(outcomes) >= MIN_ITEMS else None,
        ),
        _separation(scores),
        *(_drop(scores, name) for name in MUST_LOWER),
        *(_shift(scores, name, MAX_SHIFT * top) for name in MUST_NOT_MOVE),
    ]
    passed = all(check.passed is True for check in checks)
    return Gate(passed, len({ask.answer.item_id for ask in asks}), checks)


def area_under_curve(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Return how often a right answer's score is above a wrong one's, over all pairs, ties half: 0..1."""
    pairs = np.subtract.outer(np.asarray(right, float), np.asarray(wrong, float))
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def _separation(scores: Scores) -> GateCheck:
    name, of_identity, of_shuffled = "identity over shuffled", scores.get("identity", {}), scores.get("shuffled", {})
    both = [item for item in of_shuffled if item in of_identity]
    if len(both) < MIN_ITEMS:
        return GateCheck(name, "separates", len(both), None, MIN_AUC, None)
    value = area_under_curve([of_identity[item] for item in both], [of_shuffled[item] for item in both])
    return GateCheck(name, "separates", len(both), value, MIN_AUC, value >= MIN_AUC)


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

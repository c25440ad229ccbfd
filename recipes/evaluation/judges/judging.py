# SPDX-License-Identifier: Apache-2.0
"""Puts answers before a judge and gathers its verdicts, whatever kind of judge it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ...chat_api import ChatRequest, Endpoint, Estimate, ask_all, cost_of, estimate
from ...errors import PeFoMedError
from ...ledger import Ledger
from ...records import Prediction, Verdict, is_credentialed
from ..coefficients import cohen_kappa
from .replies import read_score
from .rubrics import Answer, Rubric, messages, middle

MAX_REPLY_TOKENS = 200
UNREAD_LIMIT = 0.02  # of the replies, above which a result is flagged


@dataclass(frozen=True)
class Ask:
    """One question to a judge: an answer, the form it is put in, and which of several samples this is."""

    answer: Answer
    form: str = "plain"
    sample: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of it. Without a score, `reason` says why; `failed` where no reply came at all, so that asking again
    may help."""

    score: int | None
    reason: str = ""
    reply: str = ""
    reported: str = ""
    failed: bool = False


class Judge(Protocol):
    """Anything that scores answers by a rubric."""

    @property
    def name(self) -> str:
        """How its verdicts call it."""

    def outcomes(self, asks: Sequence[Ask], rubric: Rubric) -> list[Outcome]:
        """Return one outcome for each ask, in their order."""

    def afresh(self, ledger: Path) -> Judge:
        """Return the same judge without memory of earlier replies; new ones are kept in `ledger`."""


@dataclass
class ChatJudge:
    """A chat model behind an OpenAI-compatible endpoint. Its replies are kept in a ledger and asked for once."""

    endpoint: Endpoint
    ledger: Ledger
    max_cost: float | None = None
    temperature: float = 0.0
    spent: list[float] = field(default_factory=list)  # shared with the judge that [`afresh`] returns

    @property
    def name(self) -> str:
        """The model as it was asked for."""
        return self.endpoint.model

    def request(self, ask: Ask, rubric: Rubric) -> ChatRequest:
        """Return what is sent for an ask."""
        return ChatRequest(
            messages(rubric, ask.answer, ask.form),
            MAX_REPLY_TOKENS,
            self.temperature,
            ask.sample,
            rubric.reply_format(),
        )

    def estimate(self, asks: Sequence[Ask], rubric: Rubric) -> Estimate:
        """Return what the asks would cost; nothing is sent."""
        return estimate([self.request(ask, rubric) for ask in asks], self.endpoint, self.ledger)

    def afresh(self, ledger: Path) -> ChatJudge:
        """Return the same judge with another ledger."""
        return replace(self, ledger=Ledger(ledger))

    def outcomes(self, asks: Sequence[Ask], rubric: Rubric) -> list[Outcome]:
        """Ask what the ledger has no reply to, and read all replies strictly."""
        requests = [self.request(ask, rubric) for ask in asks]
        new = {request.key(self.endpoint): request for request in requests}
        new = {key: request for key, request in new.items() if key not in self.ledger}
        left = None if self.max_cost is None else max(self.max_cost - sum(self.spent), 0.0)
        failures = ask_all(requests, self.endpoint, self.ledger, max_cost=left)
        self.spent += [cost_of(self.endpoint, new[key], self.ledger[key]) for key in new if key not in failures]
        found = []
        for request in requests:
            key = request.key(self.endpoint)
            if key in failures:
                found.append(Outcome(None, failures[key], failed=True))
                continue
            reply = self.ledger[key]
            score, reason = read_score(reply.text, rubric.top)
            if score is None and reply.finish_reason == "length":
                reason = f"cut off at {MAX_REPLY_TOKENS} tokens"
            found.append(Outcome(score, reason, reply.text, reply.model))
        return found


class LocalModel(Protocol):
    """A model on this machine: `recipes/inference/judge.py`."""

    name: str

    def replies(self, chats: Sequence[list[dict[str, str]]], max_new_tokens: int) -> list[str]:
        """Return the greedy reply to each chat."""

    def probabilities(
        self, instructions: Sequence[str], texts: Sequence[str], levels: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the probability of each level, lowest first."""


@dataclass
class LocalJudge:
    """A judge on this machine. It is deterministic: an ask is judged once, however many samples are asked for.

    Args:
        decides: take the most probable level of one forward pass (`reply` then holds all probabilities), instead of
            reading what the model writes.
    """

    model: LocalModel
    decides: bool = False

    @property
    def name(self) -> str:
        """The model, and how it is asked."""
        return f"{self.model.name} ({'decision' if self.decides else 'chat'})"

    def afresh(self, ledger: Path) -> LocalJudge:
        """Return itself: it remembers nothing."""
        return self

    def outcomes(self, asks: Sequence[Ask], rubric: Rubric) -> list[Outcome]:
        """Judge each distinct answer and form once."""
        distinct = list(dict.fromkeys((ask.answer, ask.form) for ask in asks))
        chats = [messages(rubric, answer, form) for answer, form in distinct]
        judge = self._decided if self.decides else self._written
        found = dict(zip(distinct, judge(chats, rubric, [form for _, form in distinct]), strict=True))
        return [found[ask.answer, ask.form] for ask in asks]

    def _written(self, chats: list[list[dict[str, str]]], rubric: Rubric, forms: list[str]) -> list[Outcome]:
        replies = self.model.replies(chats, MAX_REPLY_TOKENS)
        return [Outcome(*read_score(reply, rubric.top), reply=reply) for reply in replies]

    def _decided(self, chats: list[list[dict[str, str]]], rubric: Rubric, forms: list[str]) -> list[Outcome]:
        """The pipeline lists the levels itself: the reversed form hands them over, and takes them back, reversed."""
        told, texts = ([chat[part]["content"] for chat in chats] for part in (0, 1))
        turned = [form == "levels_reversed" for form in forms]
        levels = [rubric.levels[::-1] if turn else rubric.levels for turn in turned]
        found = self.model.probabilities(told, texts, levels)
        ordered = [shares[::-1] if turn else shares for shares, turn in zip(found, turned, strict=True)]
        return [
            Outcome(shares.index(max(shares)), reply=json.dumps([round(share, 4) for share in shares]))
            for shares in ordered
        ]


def answers_of(predictions: Sequence[Prediction]) -> list[Answer]:
    """Return predictions as a judge sees them."""
    return [Answer(p.id, p.system, p.task, p.instruction, tuple(p.answers), p.prediction) for p in predictions]


def refuse_credentialed(predictions: Sequence[Prediction], where: str) -> None:
    """Refuse to send credentialed data to somebody else's server.

    Raises:
        PeFoMedError: some predictions are credentialed.
    """
    bound = [p for p in predictions if is_credentialed(p)]
    if bound:
        raise PeFoMedError(
            f"{len(bound)} of {len(predictions)} items come from credentialed data ({bound[0].source}), whose use "
            f"agreement forbids sending texts to others; {where} is outside of this house. Use a judge on this "
            "machine (--local) or in your own network"
        )


@dataclass
class Judgement:
    """The verdicts of one run of a judge, and what is to be known about them.

    `scored`, `unread` and `failed` count replies; together they are all asks. `mean` is that over answers of the
    median of each one's samples, `lowest` and `highest` what it would be if all answers without one had 0, or the top;
    null where no answer has one. `spread` is the mean over answers of the standard deviation of their samples, and
    `unanimous` the share of answers whose samples all agree, both over answers with two samples or more.
    `retest_kappa` is the quadratically weighted kappa between the first two samples; null where it is not defined.
    """

    judge: str
    rubric: str
    rubric_sha256: str
    top: int
    answers: int
    samples: int
    scored: int
    unread: int
    failed: int
    mean: float | None
    lowest: float | None
    highest: float | None
    spread: float | None
    unanimous: float | None
    retest_kappa: float | None
    reasons: dict[str, int]
    warnings: list[str]


def answer_asks(answers: Sequence[Answer], samples: int) -> list[Ask]:
    """Return the asks of a run: the samples of an answer stand together."""
    return [Ask(answer, sample=sample) for answer in answers for sample in range(samples)]


def judge_answers(
    judge: Judge, rubric: Rubric, answers: Sequence[Answer], *, samples: int, run: str
) -> tuple[list[Verdict], Judgement]:
    """Ask for `samples` verdicts on each answer. Requests without a reply have verdicts without a score, so that
    whoever reads the file counts them.

    Args:
        run: the time at which this run began, in ISO 8601 UTC.
    """
    asks = answer_asks(answers, samples)
    outcomes = judge.outcomes(asks, rubric)
    verdicts = [
        Verdict(
            item_id=ask.answer.item_id,
            system=ask.answer.system,
            judge=judge.name,
            task=ask.answer.task,
            rubric=rubric.name,
            rubric_sha256=rubric.sha256,
            score=outcome.score,
            sample=ask.sample,
            run=run,
            reason=f"no reply: {outcome.reason}" if outcome.failed else outcome.reason,
            reply=outcome.reply,
            judge_reported=outcome.reported,
        )
        for ask, outcome in zip(asks, outcomes, strict=True)
    ]
    return verdicts, summarize(judge.name, rubric, len(answers), samples, outcomes)


def summarize(judge: str, rubric: Rubric, answers: int, samples: int, outcomes: Sequence[Outcome]) -> Judgement:
    """Return the numbers of a run whose `outcomes` hold `samples` in a row for each answer."""
    scores = [[outcome.score for outcome in outcomes[at * samples : (at + 1) * samples]] for at in range(answers)]
    middles = [middle(of_answer) for of_answer in scores]
    known = [value for value in middles if value is not None]
    missing = answers - len(known)
    unread = sum(outcome.score is None and not outcome.failed for outcome in outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    several = [[s for s in of_answer if s is not None] for of_answer in scores]
    several = [of_answer for of_answer in several if len(of_answer) > 1]
    warnings = []
    if outcomes and unread > UNREAD_LIMIT * len(outcomes):
        warnings.append(f"{unread:,} of {len(outcomes):,} replies could not be read: see lowest and highest")
    if failed:
        warnings.append(f"{failed:,} requests got no reply; run again to ask only those")
    return Judgement(
        judge=judge,
        rubric=rubric.name,
        rubric_sha256=rubric.sha256,
        top=rubric.top,
        answers=answers,
        samples=samples,
        scored=len(outcomes) - unread - failed,
        unread=unread,
        failed=failed,
        mean=sum(known) / len(known) if known else None,
        lowest=sum(known) / answers if known else None,
        highest=(sum(known) + missing * rubric.top) / answers if known else None,
        spread=float(np.mean([np.std(of_answer) for of_answer in several])) if several else None,
        unanimous=sum(len(set(of_answer)) == 1 for of_answer in several) / len(several) if several else None,
        retest_kappa=_retest_kappa(scores, rubric.top),
        reasons=dict(Counter(outcome.reason for outcome in outcomes if outcome.score is None)),
        warnings=warnings,
    )


def _retest_kappa(scores: Sequence[Sequence[int | None]], top: int) -> float | None:
    table = np.zeros((1, top + 1, top + 1))
    for first, second, *_ in (of_answer for of_answer in scores if len(of_answer) > 1):
        if first is not None and second is not None:
            table[0, first, second] += 1
    value = float(cohen_kappa(table, "quadratic")[0]) if table.any() else float("nan")
    return value if np.isfinite(value) else None

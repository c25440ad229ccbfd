# SPDX-License-Identifier: Apache-2.0
"""Judges on this machine: the embedded language model is too small to judge, and the gate says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.evaluation.judges import judging
from pefomed_recipes.evaluation.judges.gate import evaluate_gate, gate_asks
from pefomed_recipes.evaluation.judges.judging import Ask, LocalJudge, answers_of
from pefomed_recipes.evaluation.judges.replies import read_score
from pefomed_recipes.evaluation.judges.rubrics import load_rubric
from pefomed_recipes.inference.judge import LocalJudgeModel
from pefomed_recipes.records import Prediction
from pefomed_recipes.training.embedded import embedded_llm

pytestmark = pytest.mark.integration

FINDINGS = ("mass", "cyst", "effusion", "fracture", "nodule")
RUBRIC = load_rubric("paper-vqa")


@pytest.fixture(scope="module")
def model() -> LocalJudgeModel:
    return LocalJudgeModel(embedded_llm())


@pytest.fixture(scope="module")
def answers():
    return answers_of(
        [
            Prediction(
                f"i{n}", "vqa", f"What is seen in region {n}?", [FINDINGS[n % 5]], FINDINGS[n % 4], model="tiny"
            )
            for n in range(20)
        ]
    )


def test_a_language_model_of_135_million_parameters_fails_the_gate(model, answers) -> None:
    asks = [ask for ask in gate_asks(answers) if ask.answer.control in ("identity", "shuffled")]
    asks = [ask for ask in asks if not ask.answer.item_id.startswith("gate:")]
    gate = evaluate_gate(asks, LocalJudge(model, decides=True).outcomes(asks, RUBRIC), RUBRIC.top)
    [separation] = [check for check in gate.checks if check.kind == "separates"]
    assert separation.items == 20 and separation.passed is False and not gate.passed


def test_a_chat_model_replies_in_words_that_are_read_strictly(model, answers, monkeypatch) -> None:
    monkeypatch.setattr(judging, "MAX_REPLY_TOKENS", 12)  # enough for the JSON that is asked for
    outcomes = LocalJudge(model).outcomes([Ask(answers[0]), Ask(answers[1])], RUBRIC)
    assert all(outcome.reply for outcome in outcomes)
    assert [(outcome.score, outcome.reason) for outcome in outcomes] == [read_score(o.reply, 1) for o in outcomes]


def test_a_decision_is_the_most_probable_level_and_repeats(model, answers) -> None:
    judge = LocalJudge(model, decides=True)
    first, again = (judge.outcomes([Ask(answers[0])], RUBRIC)[0] for _ in range(2))
    assert first == again and first.score in (0, 1)
    shares = model.probabilities(["Compare."], ["a text"], [["wrong", "half", "right"]])[0]
    assert len(shares) == 3 and sum(shares) == pytest.approx(1, abs=1e-3)


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeFoMedError, match="cannot load a language model"):
        LocalJudgeModel(tmp_path)

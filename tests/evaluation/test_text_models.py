# SPDX-License-Identifier: Apache-2.0
"""The exchange with a Python that has RadEval or bert-score, by stubs of both that load no model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pefomed_recipes.errors import ConfigError
from pefomed_recipes.evaluation.intervals import ClusterBootstrap
from pefomed_recipes.evaluation.text_models import bert_score_numbers, clinical_numbers
from pefomed_recipes.evaluation.text_rows import CONSTANT, MODEL, TextModels, model_rows
from pefomed_recipes.records import Prediction

pytestmark = pytest.mark.integration  # every test starts a process

# Scores 1 for equal texts, as RadEval hands them over: a list of one report each, or one value for all.
RADEVAL = """
print("a library that prints to stdout")
class RadEval:
    def __init__(self, metrics, per_sample, show_progress):
        (self.metric,), self.per_sample = metrics, per_sample
        if self.metric == "green":
            raise OSError("no weights")
        if self.metric == "ratescore":
            raise ValueError("a secret report")
    def __call__(self, refs, hyps):
        open("scores of patients.csv", "w").close()
        equal = [float(ref == hyp) for ref, hyp in zip(refs, hyps, strict=True)]
        if self.metric == "radcliq":
            equal[0] = float("nan")
        return {self.metric + "_score": equal if self.per_sample else sum(equal)}
"""
BERT_SCORE = """
class _Values(list):
    def tolist(self):
        return self
class BERTScorer:
    def __init__(self, model_type, num_layers, idf, rescale_with_baseline):
        assert (model_type.split("/")[-1], num_layers) in {("known", 5), ("encoder", 12)}
    def score(self, said, references):
        assert all(said)
        return None, None, _Values(float(text in each) for text, each in zip(said, references, strict=True))
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stubs of the libraries, with versions, where the interpreter that is started finds them."""
    site = tmp_path / "site"
    packages = {"radeval": RADEVAL, "bert_score": BERT_SCORE, "bert_score/utils": "model2layers = {'known': 5}\n"}
    for name, code in packages.items():
        path = site / name / "__init__.py" if "/" not in name else site / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    for name in ("radeval", "bert_score", "transformers"):
        info = site / f"{name}-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 9.9\n")
    monkeypatch.setenv("PYTHONPATH", str(site))


def _systems(said: list[str]) -> dict[str, list[Prediction]]:
    items = [Prediction(str(at), "report", "", ["a é b", "other"], text) for at, text in enumerate(said)]
    return {MODEL: items, CONSTANT: [replace(item, prediction="other") for item in items]}


def _bootstrap(items: int = 3) -> ClusterBootstrap:
    return ClusterBootstrap([str(at) for at in range(items)])


@pytest.mark.usefixtures("libraries")
def test_clinical_numbers_come_back_by_system_with_intervals_where_reports_have_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, reasons = clinical_numbers(sys.executable, ["rouge", "bleu"], _systems(["a é b", "", "x"]), _bootstrap())
    assert reasons == {}
    assert set(found) == {"radeval_rouge_score", "radeval_bleu_score"}
    signature, numbers = found["radeval_rouge_score"]
    assert signature == "refs:first|agg:mean|lib:radeval 9.9"
    assert numbers[MODEL].value == pytest.approx(1 / 3) and numbers[MODEL].draws is not None
    assert numbers[CONSTANT].value == 0
    signature, numbers = found["radeval_bleu_score"]
    assert "agg:corpus" in signature
    assert (numbers[MODEL].value, numbers[MODEL].draws) == (1, None)
    assert numbers[MODEL].reason.startswith("no interval")
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.usefixtures("libraries")
def test_a_metric_that_fails_leaves_the_others_and_says_why_without_the_texts() -> None:
    text_models = TextModels(None, sys.executable, ("green", "ratescore", "radcliq", "rouge"))
    rows = {row.metric: row for row in model_rows(_systems(["a é b", "", "x"]), text_models, _bootstrap())}
    assert (rows["green"].score.value, rows["green"].score.reason) == (None, "OSError: no weights")
    assert rows["ratescore"].score.reason == "ValueError"
    assert rows["radeval_radcliq_score"].score.value is None
    assert rows["radeval_radcliq_score"].score.reason == "RadEval gave no finite value"
    assert rows["radeval_rouge_score"].score.value == pytest.approx(1 / 3)
    assert rows["radeval_rouge_score"].differences[CONSTANT].interval is not None


def test_a_python_without_radeval_is_a_reason() -> None:
    found, reasons = clinical_numbers(sys.executable, [], _systems(["x"]), _bootstrap(1))
    assert found == {}
    assert set(reasons) == {"radgraph", "f1chexbert", "radcliq"}
    assert set(reasons.values()) == {"ModuleNotFoundError: No module named 'radeval'"}


@pytest.mark.parametrize(
    ("python", "metric", "message"),
    [
        ("/nowhere/python", "bleu", "expected a Python's program file"),
        (sys.executable, "radgraf", r"'radgraf' \(did you mean radgraph\?\)"),
        (sys.executable, "crimson", "sends the reports to an API"),
    ],
)
def test_a_wrong_setting_is_refused(python: str, metric: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clinical_numbers(python, [metric], _systems(["x"]), _bootstrap(1))


def test_clinical_metrics_without_their_python_are_refused() -> None:
    with pytest.raises(ConfigError, match="'radgraph' found without a Python"):
        TextModels(clinical_metrics=("radgraph",))


def test_a_process_that_dies_is_a_reason(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncat > /dev/null\nprintf \'{"system": "mod\'\nkill -9 $$\n')
    python.chmod(0o755)
    found, reasons = clinical_numbers(python, ["bleu"], _systems(["x"]), _bootstrap(1))
    assert (found, reasons) == ({}, {"the process": "ended with -9 before it was done"})


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(("model", "layers"), [("known", 5), ("encoder", 12)])
def test_bert_score_takes_the_best_reference_and_gives_0_to_an_empty_text(
    tmp_path: Path, model: str, layers: int
) -> None:
    if model == "encoder":
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_text('{"num_hidden_layers": 12}')
        model = str(tmp_path / model)
    found, reasons = bert_score_numbers(model, _systems(["other", " ", "x"]), _bootstrap())
    assert reasons == {}
    signature, numbers = found["bertscore_f1"]
    assert signature.startswith(f"encoder:{Path(model).name}|layer:{layers}|")
    assert signature.endswith("lib:bert-score 9.9, transformers 9.9")
    assert numbers[MODEL].value == pytest.approx(1 / 3)
    assert numbers[CONSTANT].value == 1


@pytest.mark.usefixtures("libraries")
def test_an_encoder_that_is_not_there_is_a_reason() -> None:
    found, reasons = bert_score_numbers("unknown", _systems(["x"]), _bootstrap(1))
    assert found == {}
    assert "No such file or directory: 'unknown/config.json'" in reasons["bertscore_f1"]

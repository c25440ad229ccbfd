# SPDX-License-Identifier: Apache-2.0
"""Calibration: the numbers by hand, what a fit recovers, and that test predictions never reach it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.evaluation.calibration import (
    calibrate,
    fit_temperature,
    fit_threshold,
    measure_calibration,
    read_calibration,
    risk_coverage,
    tempered,
)
from pefomed_recipes.evaluation.calibration_plot import write_reliability_plot
from pefomed_recipes.evaluation.results import Calibration, read_results
from pefomed_recipes.evaluation.scoring import score
from pefomed_recipes.records import Prediction, read_records, write_records

WEIGHTS = b"weights"
ADAPTER = f"mine@{hashlib.sha256(WEIGHTS).hexdigest()[:16]}"


def _item(at: int, p_yes: float | None, answer: str, **changes: object) -> Prediction:
    item = Prediction(
        str(at), "vqa", "Is it?", [answer], "yes", "CLOSED", image_id=str(at // 2), p_yes=p_yes,
        split="validation", adapter=ADAPTER,
    )  # fmt: skip
    return replace(item, **changes)


def _overconfident(count: int, seed: int = 1) -> list[Prediction]:
    """Questions whose logits are twice as large as they should be: the right temperature is 2."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, count)
    answers = rng.random(count) < 1 / (1 + np.exp(-logits / 2))
    chances = 1 / (1 + np.exp(-logits))
    return [_item(at, float(p), "yes" if y else "no") for at, (p, y) in enumerate(zip(chances, answers, strict=True))]


def _measured(items: list[Prediction], *settings: float) -> Calibration:
    found = measure_calibration(items, *settings)
    assert found is not None
    return found


HAND = [_item(0, 0.9, "yes"), _item(1, 0.9, "no"), _item(2, 0.9, "yes"), _item(3, 0.2, "no"), _item(4, 0.5, "yes")]


def test_ece_and_brier_by_hand() -> None:
    """Confidences .9 .9 .9 .8 .5: bins of 2/3 right at .9, of 1/1 at .8 and of 1/1 at .5 (0.5 means yes)."""
    found = _measured(HAND)
    assert found.ece.value == pytest.approx((3 * (0.9 - 2 / 3) + 1 * 0.2 + 1 * 0.5) / 5)
    assert found.brier.value == pytest.approx((0.01 + 0.81 + 0.01 + 0.04 + 0.25) / 5)
    assert [(one.items, one.accuracy) for one in found.bins] == [(1, 1), (1, 1), (3, pytest.approx(2 / 3))]
    assert found.brier.cluster_interval is not None and found.ece.cluster_interval is not None


def test_brier_equals_scikit_learns() -> None:
    items = _overconfident(200)
    wanted = brier_score_loss([item.answers[0] == "yes" for item in items], [item.p_yes for item in items])
    assert _measured(items).brier.value == pytest.approx(wanted)


def test_risk_coverage_takes_equal_confidences_together() -> None:
    counts, risk = risk_coverage(np.array([0.9, 0.9, 0.9, 0.8, 0.5]), np.array([1.0, 0, 1, 1, 0]))
    assert counts.tolist() == [3, 4, 5]
    assert risk.tolist() == pytest.approx([1 / 3, 1 / 4, 2 / 5])
    found = _measured(HAND)
    assert found.coverage == pytest.approx([0.6, 0.8, 1.0])
    assert found.aurc == pytest.approx((3 * 1 / 3 + 1 / 4 + 1 / 5) / 5)


def test_only_closed_yes_no_questions_with_a_probability_count() -> None:
    others = [
        _item(9, None, "yes"),
        _item(9, 0.9, "left"),
        _item(9, 0.9, "yes", answer_type="OPEN"),
    ]
    assert measure_calibration(others) is None
    assert _measured([*others, *HAND]).items == 5


def test_certain_probabilities_stay_finite() -> None:
    assert tempered(np.array([0.0, 1.0]), 0.05).tolist() == pytest.approx([0, 1])
    assert _measured([_item(0, 1.0, "no"), _item(2, 0.0, "yes")]).ece.value == pytest.approx(1, abs=1e-5)


def test_fit_recovers_the_temperature_and_mends_the_ece() -> None:
    items = _overconfident(4000)
    temperature = fit_temperature(items)
    assert temperature == pytest.approx(2, rel=0.1)
    assert (_measured(items, temperature).ece.value or 1) < 0.5 * (_measured(items).ece.value or 0)


def test_threshold_is_the_lowest_that_reaches_the_accuracy() -> None:
    items = [
        _item(0, 0.99, "yes"),
        _item(1, 0.9, "yes"),
        _item(2, 0.8, "no"),
        _item(3, 0.7, "yes"),
        _item(4, 0.6, "no"),
    ]
    assert fit_threshold(items, 1.0, 0.75) == pytest.approx(0.7)  # 3 of 4 right; 2 of 3 on the way do not matter
    assert fit_threshold(items, 1.0, 1.0) == pytest.approx(0.9)
    assert fit_threshold([_item(0, 0.9, "no")], 1.0, 0.9) is None
    found = _measured(items, 1.0, 0.7)
    assert (found.answered, found.answered_accuracy) == (pytest.approx(0.8), pytest.approx(0.75))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with validation predictions and the adapter that made them."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(WEIGHTS)
    write_records(tmp_path / "validation.jsonl", _overconfident(300))
    return tmp_path


@pytest.mark.integration
def test_calibration_is_stored_with_the_adapter_and_applied_by_scoring(run: Path) -> None:
    fitted = calibrate(run / "validation.jsonl", run / "adapter", 0.9)
    stored = run / "adapter" / "calibration.json"
    assert json.loads(stored.read_text(encoding="utf-8"))["temperature"] == fitted.temperature
    assert fitted.ece[1] < fitted.ece[0]
    test_items = [replace(item, split="test") for item in _overconfident(100, seed=2)]
    write_records(run / "test.jsonl", test_items)
    results = score(run / "test.jsonl", calibration=stored, out=run / "results.json")
    assert results.calibration is not None
    assert (results.calibration.temperature, results.calibration.threshold) == (fitted.temperature, fitted.threshold)
    assert read_results(run / "results.json").calibration.aurc == pytest.approx(results.calibration.aurc)
    assert (run / "results.reliability.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "found predictions of the test split, expected validation"),
        ({"split": "train"}, "found predictions of the train split, expected validation"),
        ({"split": ""}, "found predictions that name no split, expected validation"),
        ({"control": "blank_image"}, "made under the control blank_image"),
        ({"adapter": "other@0123456789abcdef"}, "made by other@0123456789abcdef, expected the adapter in"),
        ({"adapter": ""}, "made by no adapter, expected the adapter in"),
        ({"p_yes": None}, "found 0 yes/no questions with p_yes, expected at least 30"),
    ],
)
def test_only_an_adapters_own_validation_predictions_are_fitted(
    run: Path, changes: dict[str, object], message: str
) -> None:
    items = read_records(run / "validation.jsonl", Prediction)
    write_records(run / "validation.jsonl", [replace(item, **changes) for item in items])  # type: ignore[arg-type]
    with pytest.raises(PeFoMedError, match=message):
        calibrate(run / "validation.jsonl", run / "adapter")
    assert not (run / "adapter" / "calibration.json").exists()


def test_a_folder_without_an_adapter_and_an_impossible_target_are_refused(run: Path) -> None:
    with pytest.raises(PeFoMedError, match="no adapter in it"):
        calibrate(run / "validation.jsonl", run)
    with pytest.raises(ConfigError, match="target accuracy 95"):
        calibrate(run / "validation.jsonl", run / "adapter", 95)


def test_a_calibration_of_another_adapter_or_form_is_refused(run: Path) -> None:
    calibrate(run / "validation.jsonl", run / "adapter")
    stored = run / "adapter" / "calibration.json"
    with pytest.raises(PeFoMedError, match="the predictions are of another"):
        read_calibration(stored, [_item(0, 0.5, "yes", adapter="other@00")])
    stored.write_text('{"temperature": 1}', encoding="utf-8")
    with pytest.raises(PeFoMedError, match="no calibration.json"):
        read_calibration(stored, HAND)
    with pytest.raises(PeFoMedError, match="no such file"):
        read_calibration(run / "missing.json", HAND)


@pytest.mark.integration
def test_the_plot_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        write_reliability_plot(tmp_path / name, _measured(_overconfident(100), 2.0, 0.8))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.integration
def test_command_says_what_it_fitted(run: Path, repo: Path, run_python: Callable[..., CompletedProcess[str]]) -> None:
    process = run_python(repo / "recipes" / "calibrate.py", run / "validation.jsonl", "--adapter", run / "adapter")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("temperature ")
    assert "calibration.json" in process.stderr

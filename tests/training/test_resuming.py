# SPDX-License-Identifier: Apache-2.0
"""A run that was interrupted or killed ends with the same bits as one that was not."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.training import stages
from pefomed_recipes.training.callbacks import COMPLETE, LossCurveCallback

pytestmark = pytest.mark.integration

Log = Callable[[Path], list[dict[str, float]]]
Weights = Callable[[Path], dict[str, torch.Tensor]]
RunPython = Callable[..., CompletedProcess[str]]

SIX_STEPS = ("--task=caption", "--max_steps=6", "--save_steps=2", "--eval_steps=2")


def interrupting(step: int) -> type[LossCurveCallback]:
    """A callback of the run that is interrupted, as by Ctrl-C, when a step begins."""

    class Interrupting(LossCurveCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    return Interrupting


@pytest.fixture(scope="module")
def uninterrupted(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, left alone."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run(folder, *SIX_STEPS)
    return folder


@pytest.fixture
def interrupted(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run interrupted in its sixth step: checkpoints 2 and 4 are there, and one step behind them is lost."""
    with monkeypatch.context() as patch:
        patch.setattr(stages, "LossCurveCallback", interrupting(5))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", *SIX_STEPS)
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not (folder / "run.json").exists()
    return folder


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    assert set(first) == set(second)
    return [name for name in first if not torch.equal(first[name], second[name])]


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    run: Any, interrupted: Path, uninterrupted: Path, weights_of: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        record = run(interrupted, *SIX_STEPS)
    assert f"continuing from {interrupted / 'checkpoint-4'}" in caplog.messages
    assert (record["resumed"], record["steps"]) == (True, 6)
    assert differing(weights_of(interrupted), weights_of(uninterrupted)) == []
    assert list(interrupted.glob("checkpoint-*")) == []


def test_the_curve_of_a_continued_run_is_that_of_an_uninterrupted_one(
    run: Any, interrupted: Path, uninterrupted: Path, log_of: Log
) -> None:
    run(interrupted, *SIX_STEPS)
    for key in ("loss", "eval_loss"):
        continued, whole = (
            [(row["step"], row[key]) for row in log_of(folder) if key in row]
            for folder in (interrupted, uninterrupted)
        )
        assert continued == whole


@pytest.mark.parametrize("damage", ["no marker", "cut file"])
def test_a_checkpoint_that_is_not_complete_is_passed_over(
    run: Any,
    interrupted: Path,
    uninterrupted: Path,
    weights_of: Weights,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    newest = interrupted / "checkpoint-4"
    if damage == "no marker":
        (newest / COMPLETE).unlink()
        (newest / "adapter_model.safetensors").write_bytes(b"")
    else:
        (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:1000])
    with caplog.at_level(logging.INFO):
        record = run(interrupted, *SIX_STEPS)
    assert f"{newest} is incomplete and is passed over" in caplog.messages
    assert f"continuing from {interrupted / 'checkpoint-2'}" in caplog.messages
    assert record["steps"] == 6
    assert differing(weights_of(interrupted), weights_of(uninterrupted)) == []


def test_resume_never_starts_afresh(run: Any, interrupted: Path, uninterrupted: Path, log_of: Log) -> None:
    record = run(interrupted, *SIX_STEPS, "--resume=never")
    assert record["resumed"] is False
    assert [row["step"] for row in log_of(interrupted) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert list(interrupted.glob("checkpoint-*")) == []


def test_a_fresh_start_leaves_no_older_checkpoint_to_continue_from(
    run: Any, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_of: Weights
) -> None:
    options = (*SIX_STEPS, "--learning_rate=0.02")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "LossCurveCallback", interrupting(3))
        with pytest.raises(KeyboardInterrupt):
            run(interrupted, *options, "--resume=never")
    run(interrupted, *options)
    run(tmp_path / "whole", *options)
    assert differing(weights_of(interrupted), weights_of(tmp_path / "whole")) == []


def test_a_checkpoint_can_be_named(run: Any, interrupted: Path, uninterrupted: Path, weights_of: Weights) -> None:
    record = run(interrupted, *SIX_STEPS, f"--resume={interrupted / 'checkpoint-2'}")
    assert record["resumed"] is True
    assert differing(weights_of(interrupted), weights_of(uninterrupted)) == []


def test_a_named_checkpoint_that_is_cut_is_refused(run: Any, interrupted: Path) -> None:
    file = interrupted / "checkpoint-4" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(PeFoMedError, match="checkpoint-4: no complete checkpoint there"):
        run(interrupted, *SIX_STEPS, f"--resume={interrupted / 'checkpoint-4'}")


@pytest.mark.parametrize("option", ["--learning_rate=0.02", "--lora_r=8"])
def test_a_run_is_not_continued_under_other_settings(run: Any, interrupted: Path, option: str) -> None:
    # the optimiser's state would keep the old rate, and the record would tell the new one
    key = option[2:].partition("=")[0]
    with pytest.raises(ConfigError, match=key):
        run(interrupted, *SIX_STEPS, option)
    assert (interrupted / "checkpoint-4" / COMPLETE).is_file()


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_run_killed_before_its_record_is_written_is_not_trained_any_further(
    run: Any, tmp_path: Path, uninterrupted: Path, weights_of: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stages, "final_validation_loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", *SIX_STEPS)
    assert (tmp_path / "out" / "checkpoint-6" / COMPLETE).is_file()
    record = run(tmp_path / "out", *SIX_STEPS)
    assert (record["resumed"], record["steps"]) == (True, 6)
    assert differing(weights_of(tmp_path / "out"), weights_of(uninterrupted)) == []


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_killed_process_loses_nothing_but_the_steps_since_its_checkpoint(
    run: Any, repo: Path, run_python: RunPython, tmp_path: Path, weights_of: Weights
) -> None:
    options = ("--task=caption", "--max_steps=60", "--save_steps=10", "--eval_steps=10")
    launcher, killed, whole = repo / "recipes" / "stage1.py", tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, str(launcher), *run.options(killed, *options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(killed / "checkpoint-20" / COMPLETE, process)
    finally:
        process.kill()
        process.communicate()
    assert not (killed / "run.json").exists()

    # from a clone under accelerate, and from an installed package
    again = run_python("-m", "accelerate.commands.launch", launcher, *run.options(killed, *options))
    assert again.returncode == 0, again.stderr
    assert "stage 1: 60 steps" in again.stderr
    assert json.loads((killed / "run.json").read_text(encoding="utf-8"))["resumed"] is True
    other = run_python("-m", "pefomed_recipes.stage1", *run.options(whole, *options))
    assert other.returncode == 0, other.stderr
    assert differing(weights_of(killed), weights_of(whole)) == []

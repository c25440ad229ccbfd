# SPDX-License-Identifier: Apache-2.0
"""What the training tests share: a tiny base model, a few phantoms, and short runs on them in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pefomed_recipes.data.phantoms import write_phantoms
from pefomed_recipes.records import TASKS

from ..modeling.tiny import save_tiny_base

CASES = {"train": 8, "validation": 3, "test": 2}
LORA_R = 4
# A few steps that move the weights far; rows of four questions keep them short.
SHORT_RUN = (
    f"--lora_r={LORA_R}",
    "--lora_alpha=8",
    "--lora_dropout=0.1",
    "--max_steps=4",
    "--per_device_train_batch_size=2",
    "--per_device_eval_batch_size=4",
    "--max_questions_per_image=4",
    "--learning_rate=0.01",
    '--lr_scheduler_kwargs={"min_lr": 0.001}',
    "--warmup_steps=1",
    "--logging_steps=1",
    "--eval_steps=2",
    "--save_steps=2",
    "--bf16=false",
)


@dataclass
class Runner:
    """Trains the tiny base on the phantoms: `run(output, *options)` returns the run record."""

    base: Path
    data: Path

    def options(self, output: Path, *options: str) -> list[str]:
        """The command line of a short run; later options win."""
        return [f"--base={self.base}", f"--data_root={self.data}", f"--output_dir={output}", *SHORT_RUN, *options]

    def settings(self, output: Path, *options: str) -> tuple[Any, Any]:
        """The two dataclasses of a short run."""
        from pefomed_recipes.training.arguments import parse_arguments

        return parse_arguments(self.options(output, *options), {}, "a short run")

    def __call__(self, output: Path, *options: str) -> dict[str, Any]:
        from pefomed_recipes.training.stages import run_stage

        return run_stage(*self.settings(output, *options))


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's loss.jsonl."""
    return [json.loads(line) for line in (folder / "loss.jsonl").read_text(encoding="utf-8").splitlines()]


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter, by name."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="session")
def log_of() -> Callable[[Path], list[dict[str, float]]]:
    """`log_of(folder)`: the lines of a run's loss.jsonl."""
    return read_log


@pytest.fixture(scope="session")
def weights_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    """`weights_of(folder)`: the tensors of a saved adapter, by name."""
    return adapter_weights


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model folder with random weights."""
    return save_tiny_base(tmp_path_factory.mktemp("training") / "base")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few phantoms of all tasks, 32 px."""
    return write_phantoms(tmp_path_factory.mktemp("training") / "data", tasks=TASKS, cases_per_split=CASES, size_px=32)


@pytest.fixture(scope="session")
def float32() -> Any:
    """Whatever the machine computes fastest in, these tests compare in float32."""
    from pefomed_recipes.training import arguments, stages

    with pytest.MonkeyPatch.context() as patch:
        for module in (arguments, stages):
            patch.setattr(module, "default_dtype", lambda: torch.float32)
        yield


@pytest.fixture(scope="session")
def run(tiny_base: Path, tiny_data: Path, float32: None) -> Runner:
    """`run(output, *options)` trains the tiny base for a few steps; `run.settings(...)` only parses."""
    return Runner(tiny_base, tiny_data)


@pytest.fixture(scope="session")
def stage1(run: Runner, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished stage 1: its folder and its record. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "stage1"
    return folder, run(folder, "--task=caption")


@pytest.fixture(scope="session")
def stage2(
    run: Runner, stage1: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A finished stage 2 on top of stage 1. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "stage2"
    return folder, run(folder, "--task=vqa", f"--adapter={stage1[0]}")

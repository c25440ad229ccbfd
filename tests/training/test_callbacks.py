# SPDX-License-Identifier: Apache-2.0
"""What is watched while training: every frozen bit, whole checkpoints, the loss curve."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.training.callbacks import (
    COMPLETE,
    CompleteCheckpointCallback,
    FrozenWeightsCallback,
    LossCurveCallback,
    draw_loss_curve,
    frozen_fingerprint,
    last_complete_checkpoint,
)

HISTORY: list[dict[str, float]] = [
    {"step": 1, "loss": 3.0, "learning_rate": 1e-3},
    {"step": 2, "loss": 2.0, "learning_rate": 5e-4},
    {"step": 2, "eval_loss": 2.5},
    {"step": 4, "loss": 1.0, "learning_rate": 1e-4},
    {"step": 4, "eval_loss": 1.5},
]


def state(output_dir: Path, step: int, **changes: Any) -> tuple[Any, Any]:
    """The trainer's arguments and state at a step, as far as callbacks look at them."""
    values = {"global_step": step, "is_world_process_zero": True, "log_history": HISTORY, **changes}
    return SimpleNamespace(output_dir=str(output_dir)), SimpleNamespace(**values)


def write_checkpoint(output_dir: Path, step: int) -> Path:
    """A checkpoint as the trainer leaves it, marked by the callback."""
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json"):
        (folder / name).write_bytes(b"x" * (100 + step))
    args, at = state(output_dir, step)
    CompleteCheckpointCallback().on_save(args, at, None)
    return folder


@pytest.fixture
def network() -> torch.nn.Module:
    """Two frozen layers in two number formats, and one layer that trains."""
    torch.manual_seed(0)
    layers = torch.nn.Module()
    layers.add_module("full", torch.nn.Linear(3, 2))
    layers.add_module("half_precision", torch.nn.Linear(2, 2).bfloat16())
    layers.add_module("trained", torch.nn.Linear(2, 2))
    for name, parameter in layers.named_parameters():
        parameter.requires_grad_(name.startswith("trained"))
    return layers


def flip_lowest_bit(parameter: torch.nn.Parameter) -> None:
    """Change one number as little as its format allows."""
    bits = parameter.data.view(torch.int16 if parameter.dtype == torch.bfloat16 else torch.int32)
    bits.view(-1)[-1] ^= 1


def test_the_fingerprint_covers_exactly_the_frozen_weights(network: torch.nn.Module) -> None:
    frozen = {"full.weight", "full.bias", "half_precision.weight", "half_precision.bias"}
    assert set(frozen_fingerprint(network)) == frozen


@pytest.mark.parametrize("name", ["full.weight", "half_precision.bias"])
def test_one_flipped_bit_of_a_frozen_weight_is_found_and_named(network: torch.nn.Module, name: str) -> None:
    callback, (args, at) = FrozenWeightsCallback(), state(Path(), 0)
    before = frozen_fingerprint(network)
    callback.on_train_begin(args, at, None, model=network)
    flip_lowest_bit(network.get_parameter(name))
    after = frozen_fingerprint(network)
    assert [key for key in before if before[key] != after[key]] == [name]
    with pytest.raises(PeFoMedError, match=rf"1 frozen weights? .*{name}"):
        callback.on_train_end(args, at, None, model=network)


def test_a_frozen_scalar_is_covered(network: torch.nn.Module) -> None:
    # towers of CLIP's kind have such: their temperature
    network.register_parameter("scale", torch.nn.Parameter(torch.tensor(2.0), requires_grad=False))
    before = frozen_fingerprint(network)["scale"]
    flip_lowest_bit(network.get_parameter("scale"))
    assert frozen_fingerprint(network)["scale"] != before


def test_frozen_weights_that_stayed_pass_while_others_train(network: torch.nn.Module) -> None:
    callback, (args, at) = FrozenWeightsCallback(), state(Path(), 0)
    callback.on_train_begin(args, at, None, model=network)
    flip_lowest_bit(network.get_parameter("trained.weight"))
    callback.on_train_end(args, at, None, model=network)


def test_a_frozen_weight_that_vanished_is_found(network: torch.nn.Module) -> None:
    callback, (args, at) = FrozenWeightsCallback(), state(Path(), 0)
    callback.on_train_begin(args, at, None, model=network)
    network.get_parameter("full.bias").requires_grad_(True)
    with pytest.raises(PeFoMedError, match="full.bias"):
        callback.on_train_end(args, at, None, model=network)


def test_the_newest_complete_checkpoint_wins_by_number(tmp_path: Path) -> None:
    for step in (80, 100, 9):
        write_checkpoint(tmp_path, step)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_the_marker_lists_every_other_file_with_its_size(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 4)
    marker = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    assert marker["step"] == 4
    assert marker["files"] == {p.name: p.stat().st_size for p in folder.iterdir() if p.name != COMPLETE}
    assert len(marker["files"]) == 3


@pytest.mark.parametrize("damage", ["no marker", "cut file", "missing file"])
def test_an_incomplete_checkpoint_is_passed_over_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    older, newer = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 4)
    file = newer / ("optimizer.pt" if damage != "no marker" else COMPLETE)
    if damage == "cut file":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(tmp_path) == older
    assert [record.getMessage() for record in caplog.records] == [f"{newer} is incomplete and is passed over"]


def test_without_a_complete_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path) is None
    (write_checkpoint(tmp_path, 2) / COMPLETE).unlink()
    assert last_complete_checkpoint(tmp_path) is None


def test_a_folder_of_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    kept = write_checkpoint(tmp_path, 2)
    (tmp_path / "checkpoint-2-before-lunch").mkdir()
    assert last_complete_checkpoint(tmp_path) == kept


def test_only_the_main_process_marks_and_logs(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    args, at = state(tmp_path, 2, is_world_process_zero=False)
    CompleteCheckpointCallback().on_save(args, at, None)
    LossCurveCallback().on_log(args, at, None, logs={"loss": 1.0})
    LossCurveCallback().on_train_end(args, at, None)
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint-2"]


def test_every_logged_value_is_appended_with_its_step(tmp_path: Path) -> None:
    for step, logs in ((1, {"loss": 2.0}), (2, {"eval_loss": 1.5})):
        args, at = state(tmp_path, step)
        LossCurveCallback().on_log(args, at, None, logs=logs)
    lines = (tmp_path / "loss.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.5}]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_loss_curve_shows_training_validation_and_rate(tmp_path: Path) -> None:
    draw_loss_curve(HISTORY, tmp_path / "all.png", "stage2")
    everything = pixels(tmp_path / "all.png")
    assert everything.shape[0] >= 300
    assert everything.shape[1] >= 500
    for key in ("loss", "eval_loss", "learning_rate"):
        without = [{name: value for name, value in row.items() if name != key} for row in HISTORY]
        draw_loss_curve(without, tmp_path / "without.png", "stage2")
        changed = np.abs(everything - pixels(tmp_path / "without.png")).max(axis=-1) > 30
        assert changed.sum() > 100, key


@pytest.mark.filterwarnings("error")
def test_a_run_without_logged_losses_still_gets_its_picture(tmp_path: Path) -> None:
    draw_loss_curve([], tmp_path / "empty.png", "stage2")
    assert pixels(tmp_path / "empty.png").std() > 0

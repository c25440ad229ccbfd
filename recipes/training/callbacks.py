# SPDX-License-Identifier: Apache-2.0
"""What is watched while training: frozen weights, complete checkpoints, the loss curve."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..errors import PeFoMedError
from ..staging import whole_file

logger = logging.getLogger(__name__)

COMPLETE = "COMPLETE.json"
SHOWN = ("loss", "eval_loss", "learning_rate", "mean_token_accuracy", "eval_mean_token_accuracy")


def frozen_fingerprint(model: torch.nn.Module) -> dict[str, str]:
    """Return a digest of the bytes of every frozen parameter, by name; for one in 4 bits also of its scales."""
    digests = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest = hashlib.blake2b(digest_size=16)
            for tensor in (parameter, *_scales(getattr(parameter, "quant_state", None))):
                data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                digest.update(data.numpy().data)
            digests[name] = digest.hexdigest()
    return digests


def _scales(state: Any) -> list[torch.Tensor]:
    """Return the scales of bitsandbytes' 4-bit weights, which with double quantization have scales themselves."""
    return [] if state is None else [state.absmax, *_scales(getattr(state, "state2", None))]


class FrozenWeightsCallback(TrainerCallback):
    """Proves that every frozen weight is bit-identical after training.

    Raises:
        PeFoMedError: a frozen weight changed; its name is given.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        self.before = frozen_fingerprint(model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        after = frozen_fingerprint(model)
        changed = [name for name in self.before if after.get(name) != self.before[name]]
        if changed:
            raise PeFoMedError(f"{len(changed)} frozen weights changed during training, first {changed[0]}")


class AdaLoraCallback(TrainerCallback):
    """AdaLoRA's schedule: all ranks for a tenth of the steps, then fewer and fewer, and the final rank for the last
    third.

    After each step the importance of the ranks is updated and the least important ones are set to zero. They stay in
    the tensors, so that every checkpoint has the same sizes. The penalty that keeps AdaLoRA's matrices orthogonal is
    part of the training loss, not of the validation loss. A run that is continued from a checkpoint estimates the
    importance anew.

    Source: AdaLoRA (arXiv 2303.10512), algorithm 1; the penalty's weight of 0.5 is PEFT's.
    """

    PENALTY = 0.5
    ranks: dict[str, list[bool]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.config = model.peft_config[model.active_adapter]
        self.config.total_step = state.max_steps
        self.config.tinit, self.config.tfinal = state.max_steps // 10, state.max_steps // 3

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # It is added to the loss of every accumulated batch and of every process.
        self.config.orth_reg_weight = self.PENALTY / (args.gradient_accumulation_steps * args.world_size)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        step, inner = state.global_step + 1, model.get_base_model()  # the step is counted up after this event
        steps_left = self.config.total_step - self.config.tfinal - step
        allocator = model.base_model.rankallocator
        if steps_left == 0 and not allocator.exp_avg_ipt:  # continued just before the last pruning
            allocator.update_ipt(inner)
        if steps_left < 0 and self.ranks is None:  # continued after it
            ranks = {name: value for name, value in inner.named_parameters() if ".lora_E." in name}
            self.ranks = {name: (value != 0).flatten().tolist() for name, value in ranks.items()}
        self.config.rank_pattern = self.ranks
        model.base_model.update_and_allocate(step)
        # PEFT cuts tensors by a pattern that it finds when it saves, and then cannot load them into the model.
        self.ranks, self.config.rank_pattern = self.config.rank_pattern, None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.config.orth_reg_weight = 0.0


class CompleteCheckpointCallback(TrainerCallback):
    """Marks a checkpoint as complete by a file written last: its other files and their sizes in bytes."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        sizes = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file() and p.name != COMPLETE}
        with whole_file(folder / COMPLETE) as staged:
            staged.write_text(json.dumps({"step": state.global_step, "files": sizes}), encoding="utf-8")


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint's marker was written and all its files have the marked sizes."""
    marker = checkpoint / COMPLETE
    if not marker.is_file():
        return False
    sizes = json.loads(marker.read_text(encoding="utf-8"))["files"]
    files = {checkpoint / name: size for name, size in sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


def keep_curve_until(path: Path, step: int) -> None:
    """Drop what `loss.jsonl` says of steps after `step`: a continued run says it again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


def first_validation_loss(path: Path) -> float | None:
    """Return the validation loss before training that `loss.jsonl` holds, or `None`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return next((row["eval_loss"] for row in rows if "eval_loss" in row and row["step"] == 0), None)


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest checkpoint whose marker was written and whose files have the marked sizes, or `None`.

    A checkpoint of a killed run is passed over with one line.
    """
    steps = {int(path.name[11:]): path for path in output_dir.glob("checkpoint-*") if path.name[11:].isdigit()}
    for _, folder in sorted(steps.items(), reverse=True):
        if is_complete(folder):
            return folder
        logger.warning("%s is incomplete and is passed over", folder)
    return None


class LossCurveCallback(TrainerCallback):
    """Appends every logged value to `loss.jsonl`; draws `loss.png` at the end of training."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            if not sys.stderr.isatty():  # a terminal has the progress bar
                shown = ", ".join(f"{key} {value:.4g}" for key, value in logs.items() if key in SHOWN)
                print(f"step {state.global_step}: {shown}", file=sys.stderr)
            with (Path(args.output_dir) / "loss.jsonl").open("a", encoding="utf-8") as out:
                out.write(json.dumps({"step": state.global_step, **logs}) + "\n")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            draw_loss_curve(state.log_history, Path(args.output_dir) / "loss.png", Path(args.output_dir).name)


def draw_loss_curve(history: list[dict[str, float]], path: Path, title: str) -> None:
    """Draw training and validation loss (left axis) and the learning rate (right axis) over the steps as a PNG."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(row["step"], row[key]) for row in history if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per answer token)", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    rates = [(row["step"], row["learning_rate"]) for row in history if "learning_rate" in row]
    if rates:
        right = axes.twinx()
        right.plot(*zip(*rates, strict=True), color="grey", alpha=0.5, linestyle=":")
        right.set_ylabel("learning rate", color="grey")
    if axes.get_lines():
        axes.legend()
    figure.savefig(path, dpi=120)

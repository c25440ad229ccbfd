# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer with the model's own loss, which applies the head at labelled positions only."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer
from trl import SFTTrainer

from ..models.adapter_models import train_in_float32
from ..models.bases import quantization_of, write_fingerprint
from .schedule import build_schedule


def question_numbers(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return for each labelled token of packed rows, in their order, the number of the question that it answers."""
    segments = batch["segment_ids"][:, 1:]
    rows = torch.arange(len(segments), device=segments.device)[:, None]
    return (rows * (segments.max() + 1) + segments)[batch["labels"][:, 1:] != -100]


def row_sums(logits: torch.Tensor, batch: dict[str, torch.Tensor], reduction: str) -> torch.Tensor:
    """Return for each packed row the sum of its items' losses, in nats, and the number of its items: (rows, 2).

    Args:
        logits: of the labelled tokens, of shape (labelled tokens, vocabulary).
        reduction: `token`: the items are answer tokens. `example`: they are questions, and the loss of each is the
            mean over its answer's tokens.

    Source of `example`: the released code, whose batch size of 1 makes its mean over tokens that of one question.
    """
    is_labelled = batch["labels"][:, 1:] != -100
    losses = cross_entropy(logits.float(), batch["labels"][:, 1:][is_labelled], reduction="none")
    shares = torch.ones_like(losses)
    if reduction == "example":
        _, question, tokens = question_numbers(batch).unique(return_inverse=True, return_counts=True)
        shares = 1 / tokens[question]
    rows = is_labelled.nonzero()[:, 0]
    sums = losses.new_zeros(len(is_labelled), 2).index_add(0, rows, torch.stack([losses * shares, shares], dim=1))
    return torch.stack([sums[:, 0], sums[:, 1].round()], dim=1)


class PackedSFTTrainer(SFTTrainer):
    """SFTTrainer for packed rows.

    Differs: TRL's own loss projects every position onto the vocabulary, on a CPU some hundred times the needed work.
    By default the loss is the same token mean over the accumulated global batch.

    Args beside SFTTrainer's:
        loss_reduction: `token` for the mean over all answer tokens of the accumulated global batch; `example` for the
            mean over its questions of each one's own mean.
    """

    _eval_loss_sum = 0.0
    _eval_items = 0

    def __init__(self, *args: Any, loss_reduction: str = "token", **kwargs: Any):
        self.loss_reduction = loss_reduction
        super().__init__(*args, **kwargs)
        if quantization_of(self.model) != "none":
            train_in_float32(self.model)  # TRL has put all that is trained into bfloat16

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As in Trainer, and the fingerprint of the adapter's base stands beside it."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_fingerprint(output_dir or self.args.output_dir, self.model.base_fingerprint)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device) -> Any:
        """As in Trainer, over all processes; the items are answer tokens, or questions."""
        if self.loss_reduction == "example":
            # Trainer counts labels: one stands for each question.
            questions = [question_numbers(batch).unique() for batch in batch_samples]
            batch_samples = [{"labels": numbers, "shift_labels": numbers} for numbers in questions]
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        mode = "train" if self.model.training else "eval"
        loss, outputs = Trainer.compute_loss(
            self, model, {**inputs, "use_cache": False}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        targets = inputs["labels"][:, 1:]
        targets = targets[targets != -100]
        # Trainer multiplies by the processes, so that the mean over them is that over the global batch.
        averages = self.args.average_tokens_across_devices and num_items_in_batch is not None
        processes = self.accelerator.num_processes if averages else 1
        if self.loss_reduction == "example":
            summed, items = row_sums(outputs.logits, inputs, "example").sum(0)
            loss = summed / (items if num_items_in_batch is None else num_items_in_batch) * processes
        hits = (outputs.logits.detach().argmax(-1) == targets).sum()
        hits, labelled, tokens = self.accelerator.gather_for_metrics(
            torch.stack([hits, torch.tensor(targets.numel(), device=hits.device), inputs["attention_mask"].sum()])[
                None
            ]
        ).sum(0)
        if mode == "eval" and self.loss_reduction == "token" and self.accelerator.num_processes == 1:
            self._eval_loss_sum += (loss.detach() * targets.numel()).item()
            self._eval_items += targets.numel()
        elif mode == "eval":  # row by row: the last batch is filled up with rows that came before, which are dropped
            sums = row_sums(outputs.logits.detach(), inputs, self.loss_reduction)
            summed, items = self.accelerator.gather_for_metrics(sums).sum(0)
            self._eval_loss_sum += summed.item()
            self._eval_items += int(items)
        self._metrics[mode]["mean_token_accuracy"].append((hits / labelled).item())
        if mode == "train":
            self._total_train_tokens += int(tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, but the loss is the mean over all answer tokens (or questions), whatever a batch's size."""
        self._eval_loss_sum, self._eval_items = 0.0, 0
        output = super().evaluation_loop(*args, **kwargs)
        if not self.is_in_train and self.accelerator.num_processes > 1:
            # What was prepared for evaluation counts as prepared: training would then not join the gradients of the
            # processes, and each of them would train a model of its own.
            self.model._is_accelerate_prepared = False
            self.accelerator._models.clear()
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics[f"{prefix}_loss"] = self._eval_loss_sum / max(self._eval_items, 1)
        return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in Trainer, but a run that continues from its last step takes no further one: Trainer looks at its limit
        only after a step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """As in Trainer, and the released code's schedule where the settings ask for it."""
        if self.lr_scheduler is None:
            self.lr_scheduler: Any = build_schedule(self.args, optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card: TRL's describes a text generator under a made-up licence. `pefomed_hub` writes ours."""

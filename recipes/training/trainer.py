# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer with the model's own loss, which applies the head at labelled positions only."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer
from trl import SFTTrainer


class PackedSFTTrainer(SFTTrainer):
    """SFTTrainer for packed rows.

    Differs: TRL's own loss projects every position onto the vocabulary, on a CPU some hundred times the needed work.
    The loss is the same token mean over the accumulated global batch.
    """

    _eval_loss_sum = 0.0
    _eval_labelled = 0

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
        hits = (outputs.logits.detach().argmax(-1) == targets).sum()
        hits, labelled, tokens = self.accelerator.gather_for_metrics(
            torch.stack([hits, torch.tensor(targets.numel(), device=hits.device), inputs["attention_mask"].sum()])[
                None
            ]
        ).sum(0)
        if mode == "eval":
            self._eval_loss_sum += (self.accelerator.gather_for_metrics(loss.detach() * targets.numel())).sum().item()
            self._eval_labelled += int(labelled)
        self._metrics[mode]["mean_token_accuracy"].append((hits / labelled).item())
        if mode == "train":
            self._total_train_tokens += int(tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, but the loss is the mean over all answer tokens, whatever the size of a batch."""
        self._eval_loss_sum, self._eval_labelled = 0.0, 0
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics[f"{prefix}_loss"] = self._eval_loss_sum / max(self._eval_labelled, 1)
        return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in Trainer, but a run that continues from its last step takes no further one: Trainer looks at its limit
        only after a step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card: TRL's describes a text generator under a made-up licence. `pefomed_hub` writes ours."""

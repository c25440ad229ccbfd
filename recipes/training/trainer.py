# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer with the model's own loss, which applies the head at labelled positions only."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import SFTTrainer

from ..errors import PeFoMedError
from ..models.adapter_models import train_in_float32
from ..models.bases import quantization_of, write_fingerprint
from .arguments import PUBLISH
from .packing import IGNORED, PackedRows
from .row_order import StepSampler
from .schedule import build_schedule

SEEN = ("num_tokens", "questions", "images")


def question_numbers(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return for each labelled token of packed rows, in their order, the number of the question that it answers."""
    segments = batch["segment_ids"][:, 1:]
    rows = torch.arange(len(segments), device=segments.device)[:, None]
    return (rows * (segments.max() + 1) + segments)[batch["labels"][:, 1:] != IGNORED]


def count_questions(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the number of questions in packed rows: of runs of labelled tokens, for each has a prompt before it."""
    is_labelled = batch["labels"] != IGNORED
    return (is_labelled[:, 1:] & ~is_labelled[:, :-1]).sum()


def count_seen(batch: dict[str, Any]) -> torch.Tensor:
    """Return what a batch holds: tokens without padding, questions and images; int64 of shape (3,)."""
    features = batch.get("mm_encoder_outputs", {}).get("image", {}).get("last_hidden_state")
    images = len(batch["pixel_values"] if features is None else features)
    tokens = batch["attention_mask"].sum()
    return torch.stack([tokens, count_questions(batch), tokens.new_tensor(images)])


def image_sums(logits: torch.Tensor, batch: dict[str, torch.Tensor], reduction: str) -> torch.Tensor:
    """Return sums for each image (or image set) of a batch, in the order of the collator's rows: the losses of its
    items, in nats, their number, the rightly predicted tokens and the labelled ones; (images, 4).

    Args:
        logits: of the labelled tokens, of shape (labelled tokens, vocabulary).
        reduction: `token`: the items are answer tokens. `example`: they are questions, and the loss of each is the
            mean over its answer's tokens.

    Source of `example`: the released code, whose batch size of 1 makes its mean over tokens that of one question.
    """
    is_labelled = batch["labels"][:, 1:] != IGNORED
    targets = batch["labels"][:, 1:][is_labelled]
    losses = cross_entropy(logits.float(), targets, reduction="none")
    ones = torch.ones_like(losses)
    shares = ones
    if reduction == "example":
        _, question, tokens = question_numbers(batch).unique(return_inverse=True, return_counts=True)
        shares = 1 / tokens[question]
    if "image_group_ids" in batch:
        image, count = batch["image_group_ids"][:, 1:][is_labelled], int(batch["image_group_ids"].max()) + 1
    else:
        image, count = is_labelled.nonzero()[:, 0], len(is_labelled)
    hits = (logits.argmax(-1) == targets).to(losses)
    values = torch.stack([losses * shares, shares, hits, ones], dim=1)
    sums = losses.new_zeros(count, 4).index_add(0, image, values)
    return torch.cat([sums[:, :1], sums[:, 1:].round()], dim=1)


class SeenCallback(TrainerCallback, ExportableState):
    """What a run has been trained on, over all processes: tokens without padding, questions and images, each as often
    as it was seen. Trainer keeps it in checkpoints, so that a run that is continued counts on."""

    def __init__(self) -> None:
        self.counts = torch.zeros(len(SEEN), dtype=torch.long)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__)  # of the checkpoint, or zeros
        self.counts = torch.tensor(saved["args"]["counts"]) if saved else torch.zeros_like(self.counts)

    def add(self, counts: torch.Tensor) -> None:
        """Add those of one step."""
        self.counts = self.counts.to(counts.device) + counts

    def state(self) -> dict[str, Any]:
        """Return what stands in a checkpoint."""
        return {"args": {"counts": self.counts.tolist()}, "attributes": {}}


class PackedSFTTrainer(SFTTrainer):
    """SFTTrainer for packed rows.

    Differs: TRL's own loss projects every position onto the vocabulary, on a CPU some hundred times the needed work.
    By default the loss is the same token mean over the accumulated global batch.

    Args beside SFTTrainer's:
        train_dataset, eval_dataset: packed rows.
        loss_reduction: `token` for the mean over all answer tokens of the accumulated global batch; `example` for the
            mean over its questions of each one's own mean.
    """

    def __init__(
        self,
        *args: Any,
        train_dataset: PackedRows,
        eval_dataset: PackedRows | None = None,
        loss_reduction: str = "token",
        **kwargs: Any,
    ):
        self.loss_reduction = loss_reduction
        self._hits: list[torch.Tensor] = []
        self._eval_sums: list[torch.Tensor] = []
        self._step_sampler: StepSampler | None = None
        self.seen = SeenCallback()
        # TRL takes nothing but a datasets.Dataset, and looks at its first row.
        first = {
            name: rows and Dataset.from_list([rows[0]])
            for name, rows in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset))
        }
        super().__init__(*args, **first, **kwargs)
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.add_callback(self.seen)
        if quantization_of(self.model) != "none":
            train_in_float32(self.model)  # TRL has put all that is trained into bfloat16

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As in Trainer, and the fingerprint of the adapter's base stands beside it."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_fingerprint(output_dir or self.args.output_dir, self.model.base_fingerprint)

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        """The rows step by step: see [`StepSampler`]."""
        self._step_sampler = StepSampler(
            self.train_dataset,
            self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            by_length=self.args.train_sampling_strategy == "group_by_length",
        )
        return self._step_sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As in Trainer; images that came as bytes are normalised where they are now."""
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs.get("pixel_values")
        if pixels is not None and pixels.dtype == torch.uint8:
            inputs = {**inputs, "pixel_values": self.processing_class.image_processor.normalize_bytes(pixels)}
        return inputs

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """As in Trainer, over all processes; the items are answer tokens, or questions. What the step trains on is
        counted on the way."""
        if batch_samples:
            seen = torch.stack([count_seen(batch) for batch in batch_samples]).sum(0)
            self.seen.add(self.accelerator.gather(seen[None].to(device)).sum(0))
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
        loss, outputs = Trainer.compute_loss(
            self, model, {**inputs, "use_cache": False}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        # Trainer multiplies by the processes, so that the mean over them is that over the global batch.
        averages = self.args.average_tokens_across_devices and num_items_in_batch is not None
        processes = self.accelerator.num_processes if averages else 1
        if self.loss_reduction == "example":
            summed, items = image_sums(outputs.logits, inputs, "example")[:, :2].sum(0)
            loss = summed / (items if num_items_in_batch is None else num_items_in_batch) * processes
        if self.model.training:
            targets = inputs["labels"][:, 1:]
            targets = targets[targets != IGNORED]
            hits = (outputs.logits.detach().argmax(-1) == targets).sum()
            self._hits.append(torch.stack([hits, hits.new_tensor(targets.numel())]))
        else:  # image by image: the last batch is filled up with rows that came before, which are dropped
            sums = image_sums(outputs.logits.detach(), inputs, self.loss_reduction)
            self._eval_sums.append(self.accelerator.gather_for_metrics(sums).sum(0))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL; in training with the accuracy since the last log and with what has been seen, on all processes.

        Only here do these numbers leave the device, which otherwise need not be waited for.
        """
        if self.model.training:
            metrics = dict(zip(SEEN, self.seen.counts.tolist(), strict=True))
            if self._hits:
                hits, labelled = self.accelerator.gather(torch.stack(self._hits).sum(0)[None]).sum(0).tolist()
                metrics["mean_token_accuracy"] = hits / labelled
            self._hits.clear()
            self._metrics["train"].update({name: [value] for name, value in metrics.items()})
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, but the loss is the mean over all answer tokens (or questions), whatever a batch's size."""
        self._eval_sums.clear()
        output = super().evaluation_loop(*args, **kwargs)
        if not self.is_in_train and self.accelerator.num_processes > 1:
            # What was prepared for evaluation counts as prepared: training would then not join the gradients of the
            # processes, and each of them would train a model of its own.
            self.model._is_accelerate_prepared = False
            self.accelerator._models.clear()
        summed, items, hits, labelled = torch.stack(self._eval_sums).cpu().double().sum(0).tolist()
        output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = summed / items
        self._metrics["eval"]["mean_token_accuracy"] = [hits / labelled]
        return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in Trainer, but a run that continues from its last step takes no further one: Trainer looks at its limit
        only after a step."""
        if self._step_sampler is not None:
            # accelerate does not reach it in a run of several processes that is continued
            self._step_sampler.set_epoch(kwargs["epoch"])
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

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:
        """Refuse: Trainer's way uploads a pickle with the folders of this machine.

        Raises:
            PeFoMedError: always.
        """
        raise PeFoMedError(f"Trainer's upload holds a pickle and another card; {PUBLISH}")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card: TRL's describes a text generator under a made-up licence. `pefomed_hub` writes ours."""

# SPDX-License-Identifier: Apache-2.0
"""`loss_reduction: example` is the released code's batch of one, whatever the packing, the accumulation and the number
of processes; `token` is what it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from pefomed_recipes.data.datasets_index import load_samples
from pefomed_recipes.data.images import load_image
from pefomed_recipes.training.collator import PackedRowCollator
from pefomed_recipes.training.run_data import pack_split
from pefomed_recipes.training.stages import adapted, load_base
from pefomed_recipes.training.trainer import PackedSFTTrainer, image_sums

TOLERANCE = 5e-6  # of a tensor's norm, in float32
RENDEZVOUS = ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")  # at any free port of this machine
Gradients = dict[str, torch.Tensor]
Trainers = dict[str, PackedSFTTrainer]


@pytest.fixture(scope="module")
def trainers(run: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, PackedSFTTrainer]:
    """A trainer for each reduction, with one packed row an image and the same adapter, away from its start."""

    def build(reduction: str) -> PackedSFTTrainer:
        settings = ("--lora_dropout=0", "--max_questions_per_image=16")
        recipe, config = run.settings(tmp_path_factory.mktemp("reductions"), *settings)
        torch.manual_seed(0)  # LoRA's start
        model, processor = load_base(recipe.base)
        samples = load_samples("phantoms", recipe.data_root, "train", "vqa")
        rows = pack_split(samples, processor, recipe, config, training=True)
        trainer = PackedSFTTrainer(
            model=adapted(model, recipe),
            args=config,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=processor,
            data_collator=PackedRowCollator(processor, load_image, 64),
            loss_reduction=reduction,
        )
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return trainer

    return {reduction: build(reduction) for reduction in ("token", "example")}


def batches(trainer: PackedSFTTrainer, rows: int, rows_per_batch: int) -> list[dict[str, torch.Tensor]]:
    numbers = range(0, rows, rows_per_batch)
    return [
        trainer.data_collator([trainer.train_dataset[start + i] for i in range(rows_per_batch)]) for start in numbers
    ]


def accumulate(trainer: PackedSFTTrainer, parts: list[dict[str, torch.Tensor]]) -> tuple[float, Gradients]:
    """Loss and gradients of one step over these batches, as Trainer makes them."""
    trainer.model.train()
    trainer.model.zero_grad()
    items = trainer._get_num_items_in_batch(parts, torch.device("cpu"))
    total = 0.0
    for part in parts:
        loss = trainer.compute_loss(trainer.model, part, num_items_in_batch=items)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def assert_close(got: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    assert got[0] == pytest.approx(expected[0], rel=TOLERANCE)
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.norm() > 0, name
        assert (got[1][name] - gradient).norm() <= TOLERANCE * gradient.norm(), name


def questions_alone(trainer: PackedSFTTrainer, rows: int) -> list[dict[str, torch.Tensor]]:
    """The questions of the first packed rows as batches of one: no segments, no positions, no padding."""
    alone = []
    for number in range(rows):
        row = trainer.train_dataset[number]
        segments = torch.tensor(row["segment_ids"])
        pixels = trainer.data_collator([row])["pixel_values"]
        for question in range(1, int(segments.max()) + 1):
            keep = (segments == 0) | (segments == question)
            tokens = {name: torch.tensor([row[name]])[:, keep] for name in ("input_ids", "labels")}
            alone.append({**tokens, "pixel_values": pixels})
    return alone


def test_example_is_the_mean_of_separate_steps_with_batch_1(trainers: Trainers) -> None:
    trainer = trainers["example"]
    got = accumulate(trainer, batches(trainer, 3, 3))
    singles = questions_alone(trainer, 3)
    assert len(singles) > 3
    model = trainer.model
    model.zero_grad()
    total = 0.0
    for single in singles:
        loss = model(**single).loss / len(singles)  # the model's own: the mean over the answer's tokens
        loss.backward()
        total += loss.item()
    expected = total, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert_close(got, expected)


@pytest.mark.parametrize("reduction", ["token", "example"])
def test_accumulated_batches_train_as_one(trainers: Trainers, reduction: str) -> None:
    trainer = trainers[reduction]
    whole = accumulate(trainer, batches(trainer, 4, 4))
    for rows_per_batch in (2, 1):
        assert_close(accumulate(trainer, batches(trainer, 4, rows_per_batch)), whole)


def test_the_two_reductions_differ_where_answers_have_different_lengths(trainers: Trainers) -> None:
    token, example = (accumulate(trainer, batches(trainer, 4, 4)) for trainer in trainers.values())
    assert token[0] != pytest.approx(example[0], rel=1e-3)


def test_the_items_are_questions_or_answer_tokens(trainers: Trainers) -> None:
    parts = batches(trainers["token"], 4, 2)
    counts = {name: trainer._get_num_items_in_batch(parts, torch.device("cpu")) for name, trainer in trainers.items()}
    questions = sum(len(trainers["token"].train_dataset[number]["sample_ids"]) for number in range(4))
    tokens = sum(int((part["labels"] != -100).sum()) for part in parts)
    assert counts == {"token": tokens, "example": questions}
    assert tokens > questions


@pytest.mark.parametrize("reduction", ["token", "example"])
def test_the_validation_loss_is_the_mean_over_all_items_however_they_are_batched(
    trainers: Trainers, reduction: str
) -> None:
    losses, trainer = [], trainers[reduction]
    for rows in (3, 8):
        trainer.args.per_device_eval_batch_size = rows
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    [whole] = batches(trainer, len(trainer.train_dataset), len(trainer.train_dataset))
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(**whole).logits
    targets = whole["labels"][:, 1:][whole["labels"][:, 1:] != -100]
    expected = cross_entropy(logits, targets)
    if reduction == "example":
        questions = [trainer.model(**single).loss.item() for single in questions_alone(trainer, len(whole["labels"]))]
        expected = torch.tensor(questions).mean()
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.integration
def test_two_processes_train_as_one_with_twice_the_rows(
    run: Any, run_python: Callable[..., Any], weights_of: Any, log_of: Any, tmp_path: Path
) -> None:
    # plain SGD: AdamW would blow rounding of near-zero gradients up to whole steps
    # 16 rows in steps of 6: the third step is filled up, and the fourth begins the second epoch
    options = ("--lora_dropout=0", "--optim=sgd", "--learning_rate=0.3", "--max_steps=4", "--warmup_steps=0",
               "--load_best_model_at_end=false", "--loss_reduction=example",
               "--max_questions_per_image=8")  # fmt: skip
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch\n"
        "from pefomed_recipes.training import arguments, stages\n"
        "arguments.default_dtype = stages.default_dtype = lambda: torch.float32\n"
        "stages.run_stage(*arguments.parse_arguments(sys.argv[1:], {}, 'two processes'))\n",
        encoding="utf-8",
    )
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", *RENDEZVOUS)
    process = run_python(*launch, script, *run.options(tmp_path / "two", *options, "--per_device_train_batch_size=3"))
    assert process.returncode == 0, process.stderr
    one = run(tmp_path / "one", *options, "--per_device_train_batch_size=6")
    assert one["rows"]["train"] == 16
    assert json.loads((tmp_path / "two" / "run.json").read_text(encoding="utf-8"))["seen"] == one["seen"]
    one, two = (weights_of(tmp_path / name) for name in ("one", "two"))
    assert max((two[name] - weight).abs().max() for name, weight in one.items()) <= 1e-5
    assert max(weight.abs().max() for name, weight in one.items() if "lora_B" in name) > 1e-3
    losses = [[row["eval_loss"] for row in log_of(tmp_path / n) if "eval_loss" in row] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_example_counts_by_the_mean_over_its_own_tokens_and_a_token_by_itself() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([[-100, 3, 4, -100, 1], [-100, -100, 2, 0, 2]])
    segments = torch.tensor([[0, 1, 1, 2, 2], [0, 1, 1, 1, 1]])
    logits = torch.randn(6, 5)
    losses = cross_entropy(logits, labels[:, 1:][labels[:, 1:] != -100], reduction="none")
    batch = {"labels": labels, "segment_ids": segments}
    tokens, examples = (image_sums(logits, batch, reduction)[:, :2] for reduction in ("token", "example"))
    sums = torch.stack([losses[:3].sum(), losses[3:].sum()])
    assert torch.allclose(tokens, torch.stack([sums, torch.tensor([3.0, 3.0])], dim=1))
    means = torch.stack([losses[:2].mean() + losses[2], losses[3:].mean()])
    assert torch.allclose(examples, torch.stack([means, torch.tensor([2.0, 1.0])], dim=1))

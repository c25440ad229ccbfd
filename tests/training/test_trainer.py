# SPDX-License-Identifier: Apache-2.0
"""The trainer's loss is TRL's, however the batch is cut; the adapter that is kept is the best one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTTrainer

from pefomed_recipes.data.datasets_index import load_samples
from pefomed_recipes.data.images import load_image
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.models.feature_building import build_features
from pefomed_recipes.training import stages
from pefomed_recipes.training.collator import PackedRowCollator
from pefomed_recipes.training.row_order import order_rows
from pefomed_recipes.training.run_data import pack_split
from pefomed_recipes.training.stages import adapted, load_base
from pefomed_recipes.training.trainer import PackedSFTTrainer, count_seen

pytestmark = pytest.mark.integration

Run = Callable[..., dict[str, Any]]
Log = Callable[[Path], list[dict[str, float]]]
Weights = Callable[[Path], dict[str, torch.Tensor]]

WITHOUT_BEST = ("--load_best_model_at_end=false", "--eval_strategy=no")
# The rate starts at 0 and rises until what was learnt is spoilt: the first step is the best.
SPOILING = ("--task=caption", "--learning_rate=1", "--warmup_steps=5", "--max_steps=6")


@pytest.fixture
def trainer(run: Any, tmp_path: Path) -> PackedSFTTrainer:
    """A trainer that has trained a little: LoRA is no longer zero."""
    recipe, config = run.settings(tmp_path / "out", "--lora_dropout=0")
    model, processor = load_base(recipe.base)
    rows = pack_split(
        load_samples("phantoms", recipe.data_root, "train", "vqa"), processor, recipe, config, training=True
    )
    built = PackedSFTTrainer(
        model=adapted(model, recipe),
        args=config,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=processor,
        data_collator=PackedRowCollator(processor, load_image, 64),
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in built.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return built


def loss_and_gradients(trainer: SFTTrainer, compute: Any, rows: int, items: int | None) -> tuple[Any, Any]:
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(rows)])
    trainer.model.zero_grad()
    loss = compute(trainer, trainer.model, batch, num_items_in_batch=items)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("items", [None, 100], ids=["mean over the batch", "share of an accumulated batch"])
def test_loss_gradients_and_accuracy_equal_trls_own(trainer: PackedSFTTrainer, items: int | None) -> None:
    trainer.model.train()
    ours, our_gradients = loss_and_gradients(trainer, PackedSFTTrainer.compute_loss, 5, items)
    hits, labelled = trainer._hits[-1].tolist()
    our_tokens = int(count_seen(trainer.data_collator([trainer.train_dataset[index] for index in range(5)]))[0])
    stock, stock_gradients = loss_and_gradients(trainer, SFTTrainer.compute_loss, 5, items)
    assert ours == pytest.approx(stock, rel=1e-5)
    assert hits / labelled == pytest.approx(trainer._metrics["train"]["mean_token_accuracy"][-1], abs=1e-6)
    assert trainer._total_train_tokens == our_tokens > 0
    assert set(our_gradients) == set(stock_gradients)
    for name, gradient in stock_gradients.items():
        assert gradient.abs().max() > 0, name
        assert (our_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_its_own_upload_is_refused_with_a_pointer(trainer: PackedSFTTrainer) -> None:
    with pytest.raises(PeFoMedError, match="pefomed publish"):
        trainer.push_to_hub()


def test_accuracy_counts_right_answer_tokens(trainer: PackedSFTTrainer) -> None:
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    targets = batch["labels"][:, 1:][batch["labels"][:, 1:] != -100]
    expected = (outputs.logits.argmax(-1) == targets).float().mean().item()
    summed, items, hits, labelled = trainer._eval_sums[-1].tolist()
    assert hits / labelled == pytest.approx(expected)
    assert items == labelled == targets.numel()
    assert summed / items == pytest.approx(loss.item(), rel=1e-5)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(outputs.logits, targets).item(), rel=1e-5)


def test_accumulated_batches_equal_one_large_batch(run: Run, tmp_path: Path, log_of: Log, weights_of: Weights) -> None:
    # plain SGD: AdamW would blow rounding of near-zero gradients up to whole steps
    common = ("--lora_dropout=0", "--optim=sgd", "--learning_rate=0.3", "--max_steps=3", "--warmup_steps=0")
    folders = {}
    for rows, accumulated in ((2, 4), (8, 1)):
        folders[rows] = tmp_path / f"{rows}x{accumulated}"
        batches = (f"--per_device_train_batch_size={rows}", f"--gradient_accumulation_steps={accumulated}")
        run(folders[rows], *common, *WITHOUT_BEST, *batches)
    losses = {rows: [row["loss"] for row in log_of(folder) if "loss" in row] for rows, folder in folders.items()}
    assert len(losses[2]) == 3
    assert losses[2] == pytest.approx(losses[8], abs=1e-5)
    small, large = weights_of(folders[2]), weights_of(folders[8])
    for name, weight in large.items():
        assert torch.allclose(small[name], weight, rtol=0, atol=1e-5), name
    assert max(weight.abs().max() for name, weight in large.items() if "lora_B" in name) > 1e-3


# Plain SGD without dropout: what differs then differs by rounding only.
PLAIN = ("--lora_dropout=0", "--optim=sgd", "--learning_rate=0.3", "--warmup_steps=0", *WITHOUT_BEST)


def assert_same_training(first: Path, second: Path, log_of: Log, weights_of: Weights, tolerance: float) -> None:
    losses = [[row["loss"] for row in log_of(folder) if "loss" in row] for folder in (first, second)]
    assert losses[0] == pytest.approx(losses[1], abs=tolerance)
    one, two = weights_of(first), weights_of(second)
    assert max((two[name] - weight).abs().max() for name, weight in one.items()) <= tolerance
    assert max(weight.abs().max() for name, weight in one.items() if "lora_B" in name) > 1e-3


@pytest.mark.parametrize(
    ("option", "tolerance"), [("--row_tokens=300", 1e-5), ("--dataloader_num_workers=2", 0.0)], ids=["rows", "workers"]
)
def test_how_images_are_laid_out_and_loaded_changes_nothing(
    run: Run, tmp_path: Path, log_of: Log, weights_of: Weights, option: str, tolerance: float
) -> None:
    common = (*PLAIN, "--max_steps=3", "--per_device_train_batch_size=4")
    run(tmp_path / "plain", *common)
    run(tmp_path / "other", *common, option)
    assert_same_training(tmp_path / "plain", tmp_path / "other", log_of, weights_of, tolerance)
    logs = [[(row["num_tokens"], row["questions"], row["images"]) for row in log_of(tmp_path / name) if "loss" in row]
            for name in ("plain", "other")]  # fmt: skip
    assert logs[0] == logs[1]


def test_cached_features_train_as_images_do_bit_for_bit(
    run: Run, tmp_path: Path, log_of: Log, weights_of: Weights
) -> None:
    samples = [s for split in ("train", "validation") for s in load_samples("phantoms", run.data, split, "vqa")]
    build_features(run.base, samples, tmp_path / "features", dtype=torch.float32)
    common = ("--max_steps=3", *WITHOUT_BEST)
    live = run(tmp_path / "live", *common)
    cached = run(tmp_path / "cached", *common, f"--feature_cache={tmp_path / 'features'}")
    assert_same_training(tmp_path / "live", tmp_path / "cached", log_of, weights_of, tolerance=0.0)
    for key in ("validation_loss_before", "validation_loss_after", "seen"):
        assert cached[key] == live[key]


def test_a_feature_cache_that_lacks_images_of_the_run_is_refused(run: Run, tmp_path: Path) -> None:
    samples = load_samples("phantoms", run.data, "train", "vqa")
    build_features(run.base, samples, tmp_path / "features", dtype=torch.float32)
    with pytest.raises(PeFoMedError, match=r"features: 3 of the run's 11 images .* add them with `pefomed features`"):
        run(tmp_path / "out", f"--feature_cache={tmp_path / 'features'}")
    assert not (tmp_path / "out").exists()


def test_what_was_seen_is_counted_exactly_and_on_when_a_run_is_continued(
    run: Run, tmp_path: Path, log_of: Log, weights_of: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    # two rows an image, five steps an epoch of which the last is filled up; interrupted in the second epoch
    options = ("--max_questions_per_image=6", "--gradient_accumulation_steps=2", "--max_steps=9", *WITHOUT_BEST)
    whole = run(tmp_path / "whole", *options)
    recipe, config = run.settings(tmp_path / "by hand", *options)
    samples = load_samples("phantoms", run.data, "train", "vqa")
    rows = pack_split(samples, load_base(recipe.base)[1], recipe, config, training=True)
    steps = -(-len(rows) // 4)
    assert len(rows) > len({tuple(sample.image_paths) for sample in samples}) and 4 < steps < 7
    orders = [order_rows(rows.lengths, rows.images, 4, config.seed, epoch, by_length=True) for epoch in (0, 1)]
    seen = [rows[epoch, number] for epoch in (0, 1) for number in orders[epoch].ravel()][: 9 * 4]
    tokens, questions = (sum(len(row[name]) for row in seen) for name in ("input_ids", "sample_ids"))
    assert whole["seen"] == {"num_tokens": tokens, "questions": questions, "images": 36}

    class Interrupting(stages.LossCurveCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 8:
                raise KeyboardInterrupt

    folder = tmp_path / "continued"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "LossCurveCallback", Interrupting)
        run(folder, *options, "--save_steps=7")
    again = run(folder, *options, "--save_steps=7")
    assert again["resumed"] and again["seen"] == whole["seen"]
    assert_same_training(tmp_path / "whole", folder, log_of, weights_of, tolerance=0.0)


def test_a_sample_longer_than_the_model_is_refused_before_training(run: Run, tmp_path: Path) -> None:
    data = Path(shutil.copytree(run.data, tmp_path / "data"))
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    number = next(n for n, line in enumerate(lines) if "answer" in json.loads(line))
    long = json.loads(lines[number])
    lines[number] = json.dumps({**long, "answer": "yes " * 600})
    (data / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(PeFoMedError, match=r"longest sample, .* tokens.* reads at most 512 \(max_position_embeddings"):
        run(tmp_path / "out", f"--data_root={data}", "--max_length=4000")
    assert not (tmp_path / "out").exists()


def test_a_row_may_be_longer_than_the_model(run: Run, tmp_path: Path) -> None:
    options = ("--max_steps=1", "--row_tokens=2000", "--per_device_train_batch_size=8")
    record = run(tmp_path / "out", *options, *WITHOUT_BEST)
    assert record["seen"]["num_tokens"] > 512


def test_steps_of_one_image_are_warned_of(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "out", "--max_steps=1", "--per_device_train_batch_size=1", *WITHOUT_BEST)
    assert "each step trains on one image" in caplog.text


def test_the_same_settings_give_the_same_adapter_and_another_seed_another_one(
    run: Run, tmp_path: Path, weights_of: Weights
) -> None:
    options = ("--max_steps=2", *WITHOUT_BEST)
    for name, seed in (("once", 1), ("again", 1), ("other", 2)):
        run(tmp_path / name, *options, f"--seed={seed}")
    once, again, other = (weights_of(tmp_path / name) for name in ("once", "again", "other"))
    assert [name for name in once if not torch.equal(once[name], again[name])] == []
    assert [name for name in once if torch.equal(once[name], other[name])] == []


@pytest.fixture(scope="module")
def learnt(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that has learnt enough to have something to lose."""
    folder = tmp_path_factory.mktemp("runs") / "learnt"
    options = ("--max_steps=30", "--per_device_train_batch_size=4", "--learning_rate=0.03", "--lora_dropout=0")
    run(folder, "--task=caption", *options, *WITHOUT_BEST)
    return folder


@pytest.mark.parametrize("steps", [1, 4])
def test_the_recorded_loss_is_that_of_the_kept_adapter_and_the_best_of_those_validated(
    run: Run, learnt: Path, tmp_path: Path, log_of: Log, steps: int
) -> None:
    options = (f"--adapter={learnt}", *SPOILING, f"--eval_steps={steps}", f"--save_steps={steps}")
    record = run(tmp_path / "out", *options)
    losses = {row["step"]: row["eval_loss"] for row in log_of(tmp_path / "out") if "eval_loss" in row}
    del losses[0]  # before training
    assert set(losses) == {*range(steps, 7, steps), 6}
    if steps == 1:
        assert min(losses.values()) < losses[6] - 0.05  # or the last would do as well
    next_run = run(tmp_path / "next", "--task=caption", f"--adapter={tmp_path / 'out'}", "--max_steps=2")
    assert next_run["validation_loss_before"] == pytest.approx(record["validation_loss_after"], abs=1e-5)
    assert record["validation_loss_after"] == pytest.approx(min(losses.values()), abs=1e-5)


def test_without_a_best_one_the_recorded_loss_is_that_of_the_last_adapter(
    run: Run, learnt: Path, tmp_path: Path
) -> None:
    record = run(tmp_path / "out", f"--adapter={learnt}", *SPOILING, *WITHOUT_BEST)
    assert record["validation_loss_after"] > record["validation_loss_before"] + 0.05
    next_run = run(tmp_path / "next", "--task=caption", f"--adapter={tmp_path / 'out'}", "--max_steps=2")
    assert next_run["validation_loss_before"] == pytest.approx(record["validation_loss_after"], abs=1e-5)


def test_training_stops_when_validation_has_not_improved_for_so_long(run: Run, learnt: Path, tmp_path: Path) -> None:
    options = (f"--adapter={learnt}", *SPOILING, "--eval_steps=1", "--save_steps=1", "--early_stopping_patience=2")
    assert run(tmp_path / "out", *options)["steps"] == 3


def test_the_validation_loss_does_not_depend_on_the_size_of_validation_batches(run: Run, tmp_path: Path) -> None:
    # its unit is nats per answer token
    options = ("--max_steps=1", *WITHOUT_BEST)
    one, all_at_once = (
        run(tmp_path / str(rows), *options, f"--per_device_eval_batch_size={rows}")["validation_loss_before"]
        for rows in (1, 9)
    )
    assert one == pytest.approx(all_at_once, rel=1e-5)

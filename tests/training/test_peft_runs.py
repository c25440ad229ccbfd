# SPDX-License-Identifier: Apache-2.0
"""Whole runs with PEFT methods: the best adapter is kept, the record counts what is trained, and stages go on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pefomed_recipes.data.datasets_index import load_samples
from pefomed_recipes.data.images import load_image
from pefomed_recipes.errors import ConfigError
from pefomed_recipes.inference.generate import Request, generate_answers, load_model
from pefomed_recipes.models.adapter_folders import load_adapter
from pefomed_recipes.models.adapter_models import ProjectorPeftModel
from pefomed_recipes.training import stages
from pefomed_recipes.training.callbacks import AdaLoraCallback, LossCurveCallback
from pefomed_recipes.training.collator import PackedRowCollator
from pefomed_recipes.training.run_data import pack_split
from pefomed_recipes.training.stages import load_base

from ..modeling.tiny import draw_image

# The rate starts at 0 and rises until what was learnt is spoilt: the last step is not the best.
SPOILING = ("--learning_rate=0.5", "--warmup_steps=5", "--max_steps=6", "--virtual_tokens=4")


def validation_loss(run: Any, folder: Path, *options: str) -> float:
    """Of a saved adapter, loaded anew: the mean over all answer tokens."""
    recipe, config = run.settings(folder, *options)
    base, processor = load_base(recipe.base)
    samples = load_samples("phantoms", recipe.data_root, "validation", recipe.task)
    rows = pack_split(samples, processor, recipe, config, training=False)
    batch = PackedRowCollator(processor, load_image, 64)(list(rows))
    with torch.no_grad():
        adapted = load_adapter(base, folder, trainable=False)
        # AdaLoRA's own forward adds its penalty
        model = adapted if isinstance(adapted, ProjectorPeftModel) else adapted.get_base_model()
        return model(**batch).loss.item()


def best_validation_loss(folder: Path) -> float:
    """The lowest one of a run's curve, behind its first."""
    rows = [json.loads(line) for line in (folder / "loss.jsonl").read_text(encoding="utf-8").splitlines()]
    return min(row["eval_loss"] for row in rows if "eval_loss" in row and row["step"] > 0)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["vera", "adalora"])
def test_the_kept_adapter_is_the_best_and_the_record_counts_it(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    record = run(tmp_path / "out", *SPOILING, f"--peft_method={method}")
    assert record["settings"]["peft_method"] == method
    assert (record["peft_type"], record["quantization"]) == (method.upper(), "none")
    best = best_validation_loss(tmp_path / "out")
    assert best < record["validation_loss_before"]
    assert validation_loss(run, tmp_path / "out") == pytest.approx(best, rel=1e-4)
    count_is_printed(run, tmp_path / "out", record, capsys)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["llama_adapter", "prefix_tuning", "p_tuning"])
def test_methods_with_learned_tokens_keep_their_best_and_go_on(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    record = run(tmp_path / "one", "--task=caption", *SPOILING, f"--peft_method={method}")
    best = best_validation_loss(tmp_path / "one")
    assert best < record["validation_loss_before"]
    assert validation_loss(run, tmp_path / "one", "--task=caption") == pytest.approx(best, rel=1e-4)
    count_is_printed(run, tmp_path / "one", record, capsys)

    second = run(tmp_path / "two", f"--adapter={tmp_path / 'one'}", "--max_steps=2")
    assert second["peft_type"] == record["peft_type"]
    assert second["trainable_parameters"] == record["trainable_parameters"]
    request = Request("r", "vqa", "Is there a mass?", (draw_image(0),))
    loaded = load_model(tmp_path / "two", dtype=torch.float32)
    assert len(list(generate_answers(*loaded, [request], max_new_tokens=3))) == 1


def count_is_printed(run: Any, folder: Path, record: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT's own count of the saved adapter is the record's."""
    capsys.readouterr()
    load_adapter(load_base(str(run.base))[0], folder, trainable=True).print_trainable_parameters()
    printed = re.search(r"trainable params: ([\d,]+)", capsys.readouterr().out)
    assert printed is not None
    assert int(printed[1].replace(",", "")) == record["trainable_parameters"] > 0


def ranks_left(folder: Path, weights_of: Any) -> int:
    return sum(int((value != 0).sum()) for name, value in weights_of(folder).items() if ".lora_E" in name)


@pytest.mark.integration
def test_adalora_ends_with_the_rank_that_was_asked_for(run: Any, tmp_path: Path, weights_of: Any) -> None:
    plain = ("--load_best_model_at_end=false", "--max_steps=9", "--peft_method=adalora")
    run(tmp_path / "out", *plain)
    assert ranks_left(tmp_path / "out", weights_of) == 2 * 2 * 4  # layers x (q, v) x rank


@pytest.mark.integration
@pytest.mark.parametrize("step", [5, 7], ids=["before the last pruning", "at the final rank"])
def test_adalora_goes_on_after_an_interruption(
    run: Any, tmp_path: Path, weights_of: Any, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    class Interrupting(LossCurveCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    settings = ("--max_steps=9", "--peft_method=adalora", "--save_steps=1", "--eval_steps=1")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "LossCurveCallback", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", *settings)
    assert run(tmp_path / "out", *settings)["resumed"]
    assert 0 < ranks_left(tmp_path / "out", weights_of) <= 2 * 2 * 6


def test_adaloras_penalty_is_part_of_the_training_loss_only(run: Any, tmp_path: Path) -> None:
    recipe, _ = run.settings(tmp_path, "--peft_method=adalora")
    model = stages.adapted(load_base(recipe.base)[0], recipe)
    config = model.peft_config["default"]
    callback, none = AdaLoraCallback(), None
    args = type("Arguments", (), {"gradient_accumulation_steps": 4, "world_size": 2})()
    state = type("State", (), {"max_steps": 30})()
    assert config.orth_reg_weight == 0
    callback.on_train_begin(args, state, none, model=model)
    assert (config.tinit, config.tfinal, config.total_step) == (3, 10, 30)
    callback.on_step_begin(args, state, none)
    assert config.orth_reg_weight == AdaLoraCallback.PENALTY / 8
    callback.on_step_end(args, state, none)
    assert config.orth_reg_weight == 0


@pytest.mark.integration
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--peft_method=prefix_tuning", "--gradient_checkpointing=true"), "gradient_checkpointing to false"),
        (("--peft_method=adalora", "--loss_reduction=example"), "loss_reduction to token"),
    ],
)
def test_settings_that_a_method_cannot_train_with_are_refused(
    run: Any, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()

# SPDX-License-Identifier: Apache-2.0
"""One training run: what it leaves, what it records, what the next stage takes over, and what it refuses."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.data.datasets_index import load_samples
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.training import stages
from pefomed_recipes.training.composing import save_base
from pefomed_recipes.training.provenance import data_fingerprint

from ..modeling.tiny import build_config, build_model, build_processor, text_config

pytestmark = pytest.mark.integration

Run = Callable[..., dict[str, Any]]
Finished = tuple[Path, dict[str, Any]]
Log = Callable[[Path], list[dict[str, float]]]
Weights = Callable[[Path], dict[str, torch.Tensor]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the phantoms that a test may damage."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


# ------------------------------------------------------------------------------------------------- what a run leaves


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_finished_run_leaves_adapter_processor_curve_and_record(stage: str, request: Any) -> None:
    folder, _ = request.getfixturevalue(stage)
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "loss.jsonl", "loss.png", "run.json"} <= names
    assert {"processor_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert [name for name in names if name == "README.md" or name.startswith("checkpoint-")] == []
    assert [name for name in names if name.endswith((".tmp", ".partial"))] == []


def test_the_run_folder_loads_as_a_model_with_its_processor(stage2: Finished, weights_of: Weights) -> None:
    folder, _ = stage2
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(model, PeFoMedForConditionalGeneration)
    assert isinstance(AutoProcessor.from_pretrained(folder), PeFoMedProcessor)
    loaded = dict(model.named_parameters())
    for name, saved in weights_of(folder).items():
        part = next(word for word in ("lora_A", "lora_B", "multi_modal_projector") if word in name)
        assert any(torch.equal(saved, value) for key, value in loaded.items() if part in key), name


def test_the_adapter_is_lora_on_q_and_v_of_the_language_model_and_the_whole_projector(
    stage2: Finished, weights_of: Weights
) -> None:
    names = set(weights_of(stage2[0]))
    lora = {name for name in names if "lora_" in name}
    assert all("language_model" in name and (".q_proj." in name or ".v_proj." in name) for name in lora)
    assert len(lora) == 2 * 2 * 2  # layers, projections, A and B
    rest = names - lora
    assert len(rest) == 2
    assert all("multi_modal_projector" in name for name in rest)


def test_the_curve_has_every_step_and_every_validation(stage2: Finished, log_of: Log) -> None:
    folder, record = stage2
    log = log_of(folder)
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in log if "eval_loss" in row] == [0, 2, 4]
    assert record["validation_loss_before"] == next(row["eval_loss"] for row in log if "eval_loss" in row)
    with Image.open(folder / "loss.png") as image:
        assert image.format == "PNG"
        assert image.width > 400


def test_training_lowers_the_loss(stage2: Finished) -> None:
    _, record = stage2
    assert record["validation_loss_after"] < record["validation_loss_before"]
    assert record["steps"] == 4


def test_the_record_counts_what_is_trained(stage2: Finished) -> None:
    # rank 4 on q (48 -> 48) and v (48 -> 24) of two layers; the projector 4 * 32 -> 48 with its bias
    lora = 2 * (4 * (48 + 48) + 4 * (48 + 24))
    assert stage2[1]["trainable_parameters"] == lora + (4 * 32 * 48 + 48)
    assert stage2[1]["frozen_weights_bit_identical"] is True


def test_the_record_names_the_data_by_content(stage2: Finished, tiny_data: Path, own_data: Path) -> None:
    record = stage2[1]
    for split, images in (("train", 8), ("validation", 3)):
        here = data_fingerprint(load_samples("phantoms", tiny_data, split, "vqa"))
        elsewhere = data_fingerprint(load_samples("phantoms", own_data, split, "vqa"))
        assert record["data"][split] == here == elsewhere
        assert here["images"] == images
    lines = (own_data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    assert "answer" in last
    lines[-1] = json.dumps({**last, "answer": "something else"})
    (own_data / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    changed = data_fingerprint(load_samples("phantoms", own_data, "train", "vqa"))
    assert changed["samples"] == record["data"]["train"]["samples"]
    assert changed["sha256"] != record["data"]["train"]["sha256"]


def texts(value: Any) -> list[str]:
    """Every text in a record."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *texts(item))]
    return [text for item in value for text in texts(item)] if isinstance(value, list) else [str(value)]


def test_the_record_is_the_written_one_and_names_no_place_outside_its_settings(stage2: Finished) -> None:
    folder, record = stage2
    written = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(record, default=str))
    assert {"started", "finished", "seconds", "code_commit", "environment", "settings", "data"} <= set(written)
    assert written["environment"]["packages"]["torch"] == torch.__version__
    del written["settings"]
    places = [str(folder.parent), str(Path.home()), str(Path.cwd()), sys.prefix]
    assert [text for text in texts(written) if text.startswith("/") or any(place in text for place in places)] == []
    assert platform.node() not in texts(record)


def test_a_run_writes_nothing_to_stdout(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "out", "--max_steps=1", "--save_steps=1", "--eval_steps=1")
    assert capfd.readouterr().out == ""


# ------------------------------------------------------------------------------------------- what a second run takes


def test_a_finished_folder_of_the_same_settings_is_reused(stage2: Finished, stage1: Finished, run: Run) -> None:
    folder, record = stage2
    before = contents(folder)
    again = run(folder, "--task=vqa", f"--adapter={stage1[0]}")
    assert again == json.loads(json.dumps(record, default=str))
    assert contents(folder) == before


def test_a_finished_folder_is_reused_with_and_without_a_terminal(
    stage1: Finished, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(stage1[0], "--task=caption")["started"] == stage1[1]["started"]


def test_a_finished_folder_of_other_settings_is_refused_with_the_keys_that_differ(stage1: Finished, run: Run) -> None:
    folder, _ = stage1
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"learning_rate 0\.01 there, 0\.02 now.*lora_r 4 there, 8 now") as refused:
        run(folder, "--task=caption", "--learning_rate=0.02", "--lora_r=8")
    assert "max_steps" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert contents(folder) == before


def test_the_next_stage_starts_exactly_where_the_adapter_ended(
    stage1: Finished, run: Run, tmp_path: Path, weights_of: Weights
) -> None:
    folder, record = stage1
    continued = run(tmp_path / "continued", "--task=caption", f"--adapter={folder}", "--max_steps=2")
    fresh = run(tmp_path / "fresh", "--task=caption", "--max_steps=2")
    # on the same validation images: LoRA and projector are both there, or the loss would differ
    assert continued["validation_loss_before"] == pytest.approx(record["validation_loss_after"], abs=1e-6)
    assert abs(fresh["validation_loss_before"] - record["validation_loss_after"]) > 1e-3
    start, end = weights_of(folder), weights_of(tmp_path / "continued")
    assert set(start) == set(end)
    assert [name for name in start if torch.equal(start[name], end[name])] == []


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_hidden_layers": 3}], ids=["wider", "deeper"])
def test_an_adapter_of_another_base_is_refused(
    stage1: Finished, run: Run, tmp_path: Path, changes: dict[str, int]
) -> None:
    processor = build_processor()
    other = build_model(processor, build_config(processor, text=text_config(processor, **changes)))
    save_base(tmp_path / "other", other, processor)
    with pytest.raises(PeFoMedError, match="does not fit the base") as refused:
        run(tmp_path / "out", f"--base={tmp_path / 'other'}", f"--adapter={stage1[0]}")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- what it refuses


def empty(data: Path, split: str) -> None:
    (data / f"{split}.jsonl").write_text("", encoding="utf-8")


def keep_only_captions(data: Path, split: str) -> None:
    lines = (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if "caption" in json.loads(line)]
    (data / f"{split}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")


def remove_image(data: Path, split: str) -> None:
    (data / "images" / f"{split}-000001.png").unlink()


def cut_image(data: Path, split: str) -> None:
    path = data / "images" / f"{split}-000001.png"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (empty, "{split}.jsonl: the file is empty"),
        (keep_only_captions, "the {split} split has no [vqa] samples"),
        (remove_image, "images/{split}-000001.png of {split}-000001"),
        (cut_image, "images/{split}-000001.png"),
    ],
)
def test_data_that_cannot_be_used_is_named_and_nothing_is_written(
    run: Run, own_data: Path, tmp_path: Path, split: str, damage: Callable[[Path, str], None], named: str
) -> None:
    damage(own_data, split)
    with pytest.raises(PeFoMedError) as refused:
        run(tmp_path / "out", f"--data_root={own_data}")
    _, *listed = str(refused.value).splitlines()
    assert named.format(split=split) in str(refused.value)
    assert all(line.strip().startswith(("line ", "images/")) for line in listed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max_length=40"], r"longer than max_length=40 tokens.*train-0.*nothing is cut"),
        (["--data_root=nowhere"], "nowhere: no such folder"),
        (["--dataset=vqa_rod"], "Unknown dataset 'vqa_rod'"),
        (["--base=nowhere/base"], "nowhere/base: cannot load a PeFoMed base model"),
        (["--adapter=nowhere"], "nowhere: no adapter there"),
        (["--resume=nowhere"], "nowhere: no complete checkpoint there"),
        (
            ["--early_stopping_patience=1", "--eval_strategy=no", "--load_best_model_at_end=false"],
            "early_stopping_patience",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_sentence_and_nothing_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PeFoMedError, match=named) as refused:
        run(tmp_path / "out", *options)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_no_pefomed_model_is_refused_as_base(run: Run, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(PeFoMedError, match=r"base: .*PeFoMed base model") as refused:
        run(tmp_path / "out", f"--base={tmp_path / 'base'}")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_without_a_validation_split_the_same_images_are_held_out_for_every_task(
    run: Run, own_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own_data / "validation.jsonl").unlink()
    with caplog.at_level(logging.WARNING):
        record = run(tmp_path / "out", f"--data_root={own_data}", "--task=caption", "--max_steps=2")
    assert (record["data"]["train"]["images"], record["data"]["validation"]["images"]) == (7, 1)
    assert any("held out" in message for message in caplog.messages)
    held_out = {load_samples("phantoms", own_data, "validation", task)[0].image_id for task in ("caption", "vqa")}
    assert len(held_out) == 1


def test_without_config_and_data_a_stage_asks_for_the_folder_of_other_datasets(tmp_path: Path) -> None:
    arguments = ["--base=nowhere", "--dataset=jsonl", f"--output_dir={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match="dataset jsonl needs --data_root"):
        stages.main(arguments, stages.STAGE2_DEFAULTS, "test")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("template", ["released", "chat"])
def test_an_adapter_is_asked_and_continued_in_the_form_in_which_it_was_trained(
    run: Run, tmp_path: Path, template: str
) -> None:
    processor = build_processor()
    processor.language_model_template = (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% if message['role'] == "
        "'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    save_base(tmp_path / "base", build_model(processor), processor)
    short = [f"--base={tmp_path / 'base'}", "--max_steps=1", "--save_steps=1", "--eval_steps=1"]
    record = run(tmp_path / "first", *short, f"--template={template}")
    assert record["template"] == template
    assert AutoProcessor.from_pretrained(tmp_path / "first").template == template
    assert run(tmp_path / "second", *short, f"--adapter={tmp_path / 'first'}")["template"] == template
    assert run(tmp_path / "third", *short)["template"] == "paper"


def test_a_form_that_the_language_model_lacks_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="template 'chat' needs a chat template of the language model"):
        run(tmp_path / "out", "--template=chat")
    assert not (tmp_path / "out").exists()


def test_a_mixture_is_trained_with_the_rows_of_all_its_sets(run: Run, tiny_data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(tiny_data, tmp_path / "sets" / name)
    options = [f"--data_root={tmp_path / 'sets'}", "--task=caption", "--max_steps=1", "--save_steps=1"]
    record = run(tmp_path / "out", *options, "--eval_steps=1", '--mixture={"one": 3, "two": 1}')
    assert record["data"]["train"]["samples"] == 16
    assert record["rows"]["validation"] == 6
    assert record["rows"]["train"] > 16
    assert record["settings"]["mixture"] == {"one": 3, "two": 1}
    assert {name: count["samples"] for name, count in record["sets"].items()} == {"one": 8, "two": 8}
    drawn = [count["rows_an_epoch"] for count in record["sets"].values()]
    assert sum(drawn) == record["rows"]["train"] and drawn[0] > drawn[1]


def test_a_run_follows_the_released_codes_schedule(run: Run, tmp_path: Path, log_of: Log) -> None:
    schedule = '{"min_lr": 0.001, "warmup_start_lr": 0.002, "steps_per_epoch": 2}'
    options = ["--task=caption", "--max_steps=6", "--warmup_steps=2", "--eval_steps=6", "--save_steps=6"]
    run(tmp_path / "out", *options, f"--lr_scheduler_kwargs={schedule}")
    used = [row["learning_rate"] for row in log_of(tmp_path / "out") if "learning_rate" in row]
    # peak 0.01: two steps of warm-up, then a cosine of three epochs at its second and third
    assert used == pytest.approx([0.002, 0.006, 0.00775, 0.00775, 0.00325, 0.00325])

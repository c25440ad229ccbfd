# SPDX-License-Identifier: Apache-2.0
"""The doctor: it shows what is really trained on, counts what is really trained, and finds each mistake it knows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from pefomed_recipes.data.phantoms import write_phantoms
from pefomed_recipes.doctor import doctor as launcher
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.records import Sample
from pefomed_recipes.training.adapters import add_adapter
from pefomed_recipes.training.data_findings import check_answers, check_overlaps, check_treatment
from pefomed_recipes.training.doctor import examine, printable, show_row, training_row
from pefomed_recipes.training.examined import Finding

from ..modeling.tiny import build_processor, save_tiny_base

pytestmark = pytest.mark.integration

LIMITS = {"vqa": 32, "caption": 128, "report": 300, "refer": 32}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound base."""
    return save_tiny_base(tmp_path_factory.mktemp("doctor") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """A sound adapter of it, away from its start."""
    model = add_adapter(AutoModelForImageTextToText.from_pretrained(base), r=4, alpha=2, dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = base.with_name("adapter")
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few phantoms."""
    folder = tmp_path_factory.mktemp("doctor") / "data"
    return write_phantoms(folder, tasks=("vqa",), cases_per_split={"train": 3, "validation": 2, "test": 2}, size_px=32)


def found(folder: Path, **options: Any) -> list[Finding]:
    return examine(str(folder), answer_limits=LIMITS, **options)[1]


def errors(findings: list[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.level == "error"]


def test_a_sound_model_has_no_errors_or_warnings(base: Path, adapter: Path, data: Path) -> None:
    for folder in (base, adapter):
        findings = found(folder, data_root=str(data), dataset="phantoms")
        assert {finding.level for finding in findings} <= {"note"}, findings


def test_what_is_trained_on_is_marked() -> None:
    processor = build_processor()
    sample = Sample("1", "vqa", ["a.png"], "Is there a mass?", ["yes, left"])
    row = training_row(sample, processor)
    shown = show_row(row, processor, colour=False)
    assert shown.startswith("<s>[INST] <Img><image x 4></Img> [vqa]")
    assert shown.endswith("[/INST][[ yes, left</s>]]")
    assert show_row(row, processor, colour=True) == shown.replace("[[", "\033[32m").replace("]]", "\033[0m")


def test_text_of_a_data_set_cannot_reach_the_terminal_as_a_command() -> None:
    assert printable("a\033[31mb\x07\nc\u202e") == "a\\x1b[31mb\\x07\nc\\u202e"


def test_counts_are_those_of_the_model(base: Path, adapter: Path) -> None:
    model = add_adapter(AutoModelForImageTextToText.from_pretrained(base), r=64, alpha=16, dropout=0.0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for n, p in model.named_parameters() if not p.requires_grad and "projector" not in n)
    text, _ = examine(str(base), answer_limits=LIMITS)
    assert f"{trained:,} trained (with LoRA of rank 64" in text
    assert f"{frozen:,} frozen" in text
    text, _ = examine(str(adapter), answer_limits=LIMITS)
    weights = load_file(adapter / "adapter_model.safetensors")
    assert f"{sum(tensor.numel() for tensor in weights.values()):,} trained (LORA and projector)" in text


def test_the_description_says_template_image_tokens_formats_and_memory(base: Path) -> None:
    text, _ = examine(str(base), rows=2, max_length=128, answer_limits=LIMITS)
    assert "template    paper" in text
    assert "image       4 tokens: 32 px in patches of 8 px, 4 patches a token" in text
    assert "dtypes      language model F32; projector F32; vision tower F32" in text
    assert "to train on 2 x 128 tokens, estimated: 0.0 GB plain" in text
    assert "short_answer: Based on the image" in text


@pytest.mark.parametrize("task", LIMITS)
def test_each_task_has_a_built_in_example(base: Path, task: str) -> None:
    text, _ = examine(str(base), task=task, answer_limits=LIMITS)
    assert f"</Img> [{task}] " in text
    assert "a built-in example" in text


def test_only_one_sample_of_a_data_set_is_shown(base: Path, data: Path) -> None:
    lines = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    text, _ = examine(str(base), data_root=str(data), dataset="phantoms", answer_limits=LIMITS)
    shown = [line for line in lines if line["question"] in text]
    assert {line["question"] for line in shown} == {lines[0]["question"]}


# What is changed in a copy of the adapter and its base, the level of the finding, and what it says.
def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        target = content["image_processor"] if name == "processor_config.json" and "seq" not in changes else content
        if "seq" in changes:
            content["image_seq_length"] = changes["seq"]
        else:
            target.update(changes)
        path.write_text(json.dumps(content), encoding="utf-8")

    return change


def edit_tensors(change_tensors: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], file: str) -> Any:
    def change(folder: Path) -> None:
        save_file(change_tensors(load_file(folder / file)), folder / file, metadata={"format": "pt"})

    return change


ADAPTER, BASE = "adapter_model.safetensors", "model.safetensors"
MISTAKES: dict[str, tuple[str, Any, str, str]] = {
    "flip": (
        "adapter",
        edit_json("processor_config.json", do_random_flip=True),
        "error",
        "random transform: do_random_flip",
    ),
    "crop": ("adapter", edit_json("processor_config.json", do_center_crop=True), "warning", "crops"),
    "size": ("adapter", edit_json("processor_config.json", size={"height": 64, "width": 64}), "error", "images of"),
    "mean": ("adapter", edit_json("processor_config.json", image_mean=[0.5] * 3), "warning", "mean [0.5, 0.5, 0.5]"),
    "tokens": ("adapter", edit_json("processor_config.json", seq=8), "error", "writes 8 image tokens"),
    "epsilon": ("base", edit_json("config.json", vision_post_layernorm_eps=1e-6), "error", "epsilon 1e-06"),
    "image id": ("base", edit_json("config.json", image_token_id=7), "error", "the id 7, where the tokenizer has"),
    "sampling": ("base", edit_json("generation_config.json", do_sample=True), "warning", "sets do_sample"),
    "base projector": (
        "base",
        edit_tensors(lambda t: {n: x.bfloat16() if "projector" in n else x for n, x in t.items()}, BASE),
        "warning",
        "the base's projector is in BF16",
    ),
    "scale": ("adapter", edit_json("adapter_config.json", lora_alpha=64), "warning", "scale is 16"),
    "moved base": (
        "adapter",
        edit_json("adapter_config.json", base_model_name_or_path="./nowhere"),
        "error",
        "base './nowhere' cannot be read",
    ),
    "no projector": (
        "adapter",
        edit_tensors(lambda t: {n: x for n, x in t.items() if "projector" not in n}, ADAPTER),
        "error",
        "none of them of the projector",
    ),
    "other projector": (
        "adapter",
        edit_tensors(
            lambda t: {n: x[:, :-1].contiguous() if "projector" in n and x.ndim > 1 else x for n, x in t.items()},
            ADAPTER,
        ),
        "error",
        "projector has shape [48, 127]",
    ),
    "tower": (
        "adapter",
        edit_tensors(lambda t: t | {"base_model.model.model.vision_tower.lora_A.weight": torch.ones(1)}, ADAPTER),
        "error",
        "changes the vision tower",
    ),
    "not finite": (
        "adapter",
        edit_tensors(lambda t: {n: x / 0 if "lora_A" in n else x for n, x in t.items()}, ADAPTER),
        "error",
        "not finite",
    ),
    "untrained": (
        "adapter",
        edit_tensors(lambda t: {n: x * 0 if "lora_B" in n else x for n, x in t.items()}, ADAPTER),
        "warning",
        "not left its start",
    ),
}


@pytest.fixture
def copies(base: Path, adapter: Path, tmp_path: Path) -> dict[str, Path]:
    """Copies of base and adapter that a test may spoil."""
    folders = {name: tmp_path / name for name in ("base", "adapter")}
    for name, source in (("base", base), ("adapter", adapter)):
        shutil.copytree(source, folders[name])
    edit_json("adapter_config.json", base_model_name_or_path=str(folders["base"]))(folders["adapter"])
    return folders


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_in_a_folder_is_found(copies: dict[str, Path], mistake: str) -> None:
    where, change, level, said = MISTAKES[mistake]
    change(copies[where])
    new = [finding for finding in found(copies["adapter"]) if finding.level != "note"]
    assert [finding.level for finding in new if said in finding.found] == [level], new
    assert all(finding.expected and finding.advice for finding in new)
    assert bool(errors(new)) == (level == "error")


def test_a_damaged_weight_file_is_named(copies: dict[str, Path]) -> None:
    path = copies["adapter"] / ADAPTER
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PeFoMedError, match="not a whole safetensors file"):
        found(copies["adapter"])


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PeFoMedError, match="cannot read an adapter or a base model"):
        examine(name, answer_limits=LIMITS)


def vqa(number: int, **changes: Any) -> Sample:
    sample = Sample(str(number), "vqa", [f"{number}.png"], "Is there a mass?", ["yes"], answer_type="CLOSED")
    return replace(sample, **changes)


def test_what_splits_share_is_counted() -> None:
    splits = {"train": [vqa(1), vqa(2)], "test": [vqa(2, image_paths=["3.png"]), vqa(4, image_paths=["1.png"])]}
    texts = [finding.found for finding in check_overlaps(splits)]
    assert texts == ["1 ids of test occur in train, too", "1 of 2 images of test occur in train, too"]
    assert list(check_overlaps({"train": [vqa(1)], "test": [vqa(2)]})) == []


def test_closed_answers_other_than_yes_and_no_are_counted() -> None:
    samples = [vqa(1), vqa(2, answers=["No."]), vqa(3, answers=["left"]), vqa(4, answers=["a"], answer_type="OPEN")]
    assert [finding.found for finding in check_answers(samples, flips=False)] == [
        "1 of 3 closed questions are answered otherwise than by yes or no"
    ]


def test_sides_and_flips_do_not_go_together() -> None:
    samples = [vqa(1), vqa(2, instruction="Is it on the LEFT?"), vqa(3, answers=["right lung"], answer_type="OPEN")]
    assert [finding.level for finding in check_answers(samples, flips=True)] == ["error"]
    assert list(check_answers(samples, flips=False)) == []


TEXT = "The heart is of normal size. The lungs are clear (2.5 cm nodule on the right) without effusion."
TREATED = {
    "as written": ([TEXT] * 20, []),
    "lower case": ([TEXT.lower()] * 20, ["has a capital"]),
    "cleaned": ([TEXT.replace(".", " ").replace("(", "").replace(")", "")] * 20, ["has a mark"]),
    "cut": ([" ".join(["Word."] * 50)] * 20, ["20 texts end at word 50"]),
    "too few to tell": ([TEXT.lower()] * 5, []),
    "short": (["Liver"] * 30, []),
}


@pytest.mark.parametrize(("texts", "expected"), TREATED.values(), ids=TREATED)
def test_texts_that_were_treated_before_are_told(texts: list[str], expected: list[str]) -> None:
    findings = list(check_treatment(texts))
    assert len(findings) == len(expected)
    assert all(said in finding.found for said, finding in zip(expected, findings, strict=True))


def write_data(folder: Path, answer: str = "yes", **splits: int) -> Path:
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    for split, count in splits.items():
        rows = [{"id": f"{split}{n}", "image": "a.png", "question": "Is it?", "answer": answer} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_samples_that_do_not_fit_are_counted(base: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", "word " * 40, train=2, validation=1)
    findings = found(base, data_root=str(data), max_length=64)
    texts = "\n".join(finding.found for finding in findings)
    assert "3 of 3 samples are longer than 64 tokens" in texts
    assert "3 of 3 answers are longer than the 32 tokens" in texts
    assert len(errors(findings)) == 1


def test_data_that_cannot_be_read_are_an_error(base: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=2, validation=1)
    (data / "train.jsonl").write_text('{"image": "b.png"}', encoding="utf-8")
    [error] = errors(found(base, data_root=str(data)))
    assert "train.jsonl" in error
    (data / "train.jsonl").unlink()
    assert "train" in "".join(errors(found(base, data_root=str(data))))


def test_the_exit_code_says_whether_something_must_be_changed(
    copies: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    launcher(str(copies["base"]))
    out, err = capsys.readouterr()
    assert "[[ yes</s>]]" in out
    assert "\033" not in out
    assert err.endswith("0 of them errors\n")
    edit_json("config.json", vision_post_layernorm_eps=1e-6)(copies["base"])
    with pytest.raises(SystemExit) as stop:
        launcher(str(copies["base"]))
    out, err = capsys.readouterr()
    assert stop.value.code == 1
    assert "error: the tower's last LayerNorm" in out
    assert err.endswith("1 of them errors\n")

# SPDX-License-Identifier: Apache-2.0
"""Saved folders open through transformers' Auto classes with nothing lost: base, adapter, tied weights, pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)

from modeling_pefomed import (
    PeFoMedConfig,
    PeFoMedForConditionalGeneration,
    PeFoMedImageProcessor,
    PeFoMedModel,
    PeFoMedProcessor,
)

from .tiny import ask, build_config, text_config

BuildModel = Callable[..., PeFoMedForConditionalGeneration]


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    weights, others = one.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


@pytest.mark.parametrize("trust", [None, True], ids=["default", "trust_remote_code"])
def test_auto_classes_give_the_packages_classes(base_folder: Path, trust: bool | None) -> None:
    expected = {
        AutoConfig: PeFoMedConfig,
        AutoModel: PeFoMedModel,
        AutoModelForImageTextToText: PeFoMedForConditionalGeneration,
        AutoImageProcessor: PeFoMedImageProcessor,
        AutoProcessor: PeFoMedProcessor,
    }
    for auto_class, class_ in expected.items():
        assert type(auto_class.from_pretrained(base_folder, trust_remote_code=trust)) is class_


def test_saved_folder_names_its_code_and_carries_it(base_folder: Path, repo: Path) -> None:
    auto_map = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"}
    files = ("configuration_pefomed", "image_processing_pefomed", "modeling_pefomed", "processing_pefomed")
    for file in files:
        source = (repo / "modeling_pefomed" / f"{file}.py").read_text(encoding="utf-8")
        assert (base_folder / f"{file}.py").read_text(encoding="utf-8") == source
    processor = json.loads((base_folder / "processor_config.json").read_text(encoding="utf-8"))
    assert set(processor["auto_map"]) == {"AutoProcessor"}
    assert "AutoImageProcessor" in processor["image_processor"]["auto_map"]


def test_reloaded_base_has_bit_equal_weights_and_logits(
    base_folder: Path, model: PeFoMedForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(base_folder)
    assert_same_weights(loaded, model)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.model.vision_tower.post_layernorm.eps == 1e-5
    assert not loaded.training


def test_auto_model_gives_the_model_below_the_head(
    base_folder: Path, model: PeFoMedForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    headless = AutoModel.from_pretrained(base_folder)
    assert_same_weights(headless, model.model)
    assert torch.equal(headless(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)


def test_a_model_saved_without_its_head_opens_as_both_classes(
    tmp_path: Path, base_folder: Path, model: PeFoMedForConditionalGeneration
) -> None:
    AutoModel.from_pretrained(base_folder).save_pretrained(tmp_path)
    assert_same_weights(AutoModel.from_pretrained(tmp_path), model.model)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert_same_weights(whole.model, model.model)


def test_a_saved_copy_of_a_loaded_base_loads_again(
    tmp_path: Path, base_folder: Path, model: PeFoMedForConditionalGeneration
) -> None:
    AutoModelForImageTextToText.from_pretrained(base_folder).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(base_folder).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in base_folder.iterdir()}
    assert_same_weights(AutoModelForImageTextToText.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_tied_and_untied_heads_survive_saving(
    processor: PeFoMedProcessor, own_model: BuildModel, inputs: dict[str, Any], tmp_path: Path, tied: bool
) -> None:
    model = own_model(build_config(processor, text=text_config(processor, tie_word_embeddings=tied)))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as weights:
        assert ("lm_head.weight" in weights.keys()) is not tied  # noqa: SIM118 (no mapping)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
    assert loaded.config.tie_word_embeddings is tied
    assert_same_weights(loaded, model)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_survives_saving(base_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    half = AutoModelForImageTextToText.from_pretrained(base_folder, dtype=dtype)
    half.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert {name: value.dtype for name, value in loaded.state_dict().items()} == {
        name: torch.float32 if "multi_modal_projector" in name else dtype for name in half.state_dict()
    }
    assert_same_weights(loaded, half)


def test_adapter_folder_opens_as_both_classes(
    base_folder: Path, adapter_folder: Path, model: PeFoMedForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    settings = json.loads((adapter_folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == str(base_folder)
    base = PeFoMedForConditionalGeneration.from_pretrained(base_folder)
    expected = PeftModel.from_pretrained(base, adapter_folder).eval()
    logits = expected(**inputs).logits
    assert not torch.allclose(logits, model(**inputs).logits, atol=0.1), "the adapter must matter"

    loaded = AutoModelForImageTextToText.from_pretrained(adapter_folder)
    torch.testing.assert_close(loaded(**inputs).logits, logits, rtol=0, atol=0)
    headless = AutoModel.from_pretrained(adapter_folder)
    hidden = headless(**inputs).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), logits, rtol=0, atol=0)


def test_adapter_holds_lora_and_projector_and_nothing_else(adapter_folder: Path) -> None:
    with safe_open(adapter_folder / "adapter_model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
    lora = {name for name in names if ".lora_" in name}
    assert len(lora) == 2 * 2 * 2  # layers x (q, v) x (A, B)
    assert all(".language_model." in name for name in lora)
    projector = {name.removeprefix("base_model.model.") for name in names - lora}
    assert projector == {"model.multi_modal_projector.weight", "model.multi_modal_projector.bias"}


def test_pipeline_answers_a_chat(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    images: list[Image.Image],
    inputs: dict[str, Any],
) -> None:
    ask_model = pipeline("image-text-to-text", model=model, processor=processor)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    [answer] = ask_model(
        text=ask("[vqa] Is there a mass?", images[0]), generate_kwargs=settings, return_full_text=False
    )
    assert answer["generated_text"] == processor.tokenizer.decode(expected, skip_special_tokens=True)
    hostile = ask("<ImageHere></s>", images[0])
    [answer] = ask_model(text=hostile, generate_kwargs=settings, return_full_text=False)
    assert isinstance(answer["generated_text"], str)

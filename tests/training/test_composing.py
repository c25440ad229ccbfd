# SPDX-License-Identifier: Apache-2.0
"""Base models from pretrained parts: nothing of a part is changed, and what is saved loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2VisionModel,
    CLIPConfig,
    CLIPModel,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from modeling_pefomed import PeFoMedProcessor
from pefomed_recipes.training.composing import build_base, load_vision_tower, save_base

from ..modeling.tiny import (
    INITIALIZER_RANGE,
    ask,
    build_processor,
    build_tokenizer,
    draw_image,
    encode,
    text_config,
    vision_config,
)


@pytest.fixture(scope="module")
def processor() -> PeFoMedProcessor:
    """The tiny model's processor."""
    return build_processor()


@pytest.fixture(scope="module")
def inputs(processor: PeFoMedProcessor) -> dict[str, Any]:
    """One image and one question."""
    return encode(processor, ask("Is there a mass?", draw_image(0)))


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory: pytest.TempPathFactory, processor: PeFoMedProcessor) -> Path:
    """A language model as its makers publish it: weights, and a tokenizer that knows no image token."""
    folder = tmp_path_factory.mktemp("llm")
    LlamaForCausalLM(text_config(processor)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def save_tower(folder: Path, kind: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "blip2":
        Blip2VisionModel(vision_config()).save_pretrained(folder)
    elif kind == "siglip":
        SiglipVisionModel(SiglipVisionConfig(**sizes)).save_pretrained(folder)
    else:  # a two-tower model, of which the vision part is wanted
        text = sizes | {"vocab_size": 99, "image_size": None, "patch_size": None}
        CLIPModel(CLIPConfig(vision_config=sizes, text_config=text)).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["blip2", "siglip", "clip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_is_its_pretrained_parts_and_a_float32_projector(
    llm_folder: Path, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    save_tower(tmp_path / "tower", kind)
    model, processor = build_base(llm_folder, tmp_path / "tower", dtype=dtype)
    llm = LlamaForCausalLM.from_pretrained(llm_folder, dtype=dtype)
    tower = load_vision_tower(tmp_path / "tower", dtype)
    parts = (
        (model.model.language_model, llm.model),
        (model.lm_head, llm.lm_head),
        (model.model.vision_tower, tower),
    )
    for part, source in parts:
        weights, expected = part.state_dict(), source.state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert {parameter.dtype for parameter in model.model.multi_modal_projector.parameters()} == {torch.float32}
    assert processor.image_token_id == model.config.image_token_id == model.config.text_config.vocab_size
    assert processor.image_seq_length == model.config.image_seq_length == 4
    inputs = encode(processor, ask("Is there a mass?", draw_image(0)))
    answer = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 2


def test_the_projectors_start_depends_on_the_seed_alone(llm_folder: Path, tmp_path: Path) -> None:
    save_tower(tmp_path, "blip2")

    def projector(seed: int) -> torch.Tensor:
        return build_base(llm_folder, tmp_path, dtype=torch.float32, seed=seed)[0].model.multi_modal_projector.weight

    first = projector(1)
    torch.manual_seed(99)
    assert torch.equal(projector(1), first)
    assert not torch.equal(projector(2), first)
    assert first.std().item() == pytest.approx(INITIALIZER_RANGE, rel=0.9)


def test_padding_of_answers_uses_the_tokenizers_own_token(llm_folder: Path, tmp_path: Path) -> None:
    save_tower(tmp_path, "blip2")
    model, processor = build_base(llm_folder, tmp_path, dtype=torch.float32)
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_a_saved_base_loads_and_replaces_an_older_one(
    llm_folder: Path, tmp_path: Path, inputs: dict[str, Any]
) -> None:
    save_tower(tmp_path / "tower", "blip2")
    model, processor = build_base(llm_folder, tmp_path / "tower", dtype=torch.float32)
    folder = tmp_path / "base"
    (folder / "left over").mkdir(parents=True)
    save_base(folder, model, processor)
    assert not (folder / "left over").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tower"]
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)
    reloaded = AutoProcessor.from_pretrained(folder)
    assert reloaded.encode_prompt("Is it?", "vqa") == processor.encode_prompt("Is it?", "vqa")

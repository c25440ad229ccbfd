# SPDX-License-Identifier: Apache-2.0
"""Adapters: what they train, that they load exactly, and the bases that they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import CLIPConfig, Phi3Config

from modeling_pefomed import PeFoMedConfig, PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.models.adapter_folders import load_adapter
from pefomed_recipes.training.adapters import add_adapter

from ..modeling.tiny import ask, build_config, build_model, build_processor, draw_image, encode, text_config

SETTINGS = {"r": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def processor() -> PeFoMedProcessor:
    """The tiny model's processor."""
    return build_processor()


@pytest.fixture(scope="module")
def inputs(processor: PeFoMedProcessor) -> dict[str, Any]:
    """One image and one question."""
    return encode(processor, ask("Is there a mass?", draw_image(0)))


def nudge(adapted: PeftModel, seed: int = 0) -> PeftModel:
    """Move every trained weight away from its start, where LoRA is a zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return adapted


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_paper_trains_56_627_200_parameters() -> None:
    with torch.device("meta"):
        base = PeFoMedForConditionalGeneration(PeFoMedConfig())
        adapted = add_adapter(base, r=64, alpha=16, dropout=0.05)
    counts = {name: parameter.numel() for name, parameter in trainable(adapted).items()}
    assert sum(counts.values()) == 56_627_200
    assert sum(count for name, count in counts.items() if ".lora_" in name) == 33_554_432
    assert sum(count for name, count in counts.items() if "multi_modal_projector" in name) == 23_072_768


def test_adapter_trains_q_and_v_of_the_language_model_and_the_projector_only(processor: PeFoMedProcessor) -> None:
    # CLIP's tower has layers of the same names
    vision = CLIPConfig().vision_config
    vision.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4})
    vision.update({"image_size": 32, "patch_size": 8})
    adapted = add_adapter(build_model(processor, build_config(processor, vision=vision)), **SETTINGS)
    assert any("vision_tower" in name and "q_proj" in name for name, _ in adapted.named_modules())
    names = set(trainable(adapted))
    lora = {name for name in names if ".lora_" in name}
    assert len(lora) == 2 * 2 * 2  # layers x (q, v) x (A, B)
    assert all(".language_model." in name for name in lora)
    assert {name.rpartition(".")[2] for name in names - lora} == {"weight", "bias"}
    assert all("multi_modal_projector.modules_to_save" in name for name in names - lora)
    assert len(names - lora) == 2


def test_a_fresh_adapter_answers_as_the_base(processor: PeFoMedProcessor, inputs: dict[str, Any]) -> None:
    base = build_model(processor)
    before = base(**inputs).logits
    assert torch.equal(add_adapter(base, **SETTINGS).eval()(**inputs).logits, before)


def test_a_language_model_without_q_and_v_is_refused(processor: PeFoMedProcessor) -> None:
    fused = Phi3Config(**text_config(processor).to_diff_dict() | {"model_type": "phi3"})
    base = build_model(processor, build_config(processor, text=fused))
    with pytest.raises(PeFoMedError, match="phi3 has no q_proj and v_proj"):
        add_adapter(base, **SETTINGS)


@pytest.mark.parametrize("continue_training", [True, False])
def test_a_saved_adapter_loads_exactly(
    processor: PeFoMedProcessor, inputs: dict[str, Any], tmp_path: Path, continue_training: bool
) -> None:
    adapted = nudge(add_adapter(build_model(processor), **SETTINGS)).eval()
    adapted.save_pretrained(tmp_path)
    loaded = load_adapter(build_model(processor), tmp_path, trainable=continue_training).eval()
    assert torch.equal(loaded(**inputs).logits, adapted(**inputs).logits)
    assert set(trainable(loaded)) == (set(trainable(adapted)) if continue_training else set())


def test_a_folder_without_an_adapter_is_refused_by_name(processor: PeFoMedProcessor, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(PeFoMedError, match=f"{folder.name}: no adapter there"):
            load_adapter(build_model(processor), folder, trainable=False)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 64}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"num_key_value_heads": 4}],
    ids=["wider", "deeper", "shallower", "more heads"],
)
def test_an_adapter_of_another_base_is_refused_with_the_right_bases_name(
    processor: PeFoMedProcessor, tmp_path: Path, changes: dict[str, int]
) -> None:
    base = build_model(processor)
    base.name_or_path = str(tmp_path / "right-base")
    base.config.save_pretrained(base.name_or_path)
    add_adapter(base, **SETTINGS).save_pretrained(tmp_path / "adapter")
    other = build_model(processor, build_config(processor, text=text_config(processor, **changes)))
    with pytest.raises(PeFoMedError, match="does not fit the base model.*right-base"):
        load_adapter(other, tmp_path / "adapter", trainable=False)

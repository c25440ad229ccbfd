# SPDX-License-Identifier: Apache-2.0
"""The way back: a converted base and adapter give the released files again, bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from modeling_pefomed.convert_hf_weights_to_pefomed import to_reference
from modeling_pefomed.weight_files_pefomed import ConversionError

from .released import LLAMA, Released, assert_same_tensors, release, weights_of
from .tiny import build_tokenizer

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip_is_bit_equal(tmp_path: Path, dtype: torch.dtype) -> None:
    released = release(tmp_path / "released", dtype=dtype)
    released.convert(tmp_path)
    to_reference(tmp_path / "base", tmp_path / "back", adapter=tmp_path / "adapter")
    eva, stage2 = (torch.load(path, weights_only=True) for path in (released.eva, released.stage2))
    expected = {k: v for k, v in eva.items() if not k.startswith(("norm.", "head.", "blocks.3."))}
    assert_same_tensors(torch.load(tmp_path / "back" / "eva_vit_g.pth", weights_only=True), expected)
    fresh = {"ln_vision.weight": torch.ones(40), "ln_vision.bias": torch.zeros(40)}
    expected = {k: v for k, v in stage2["model"].items() if "inv_freq" not in k} | fresh
    assert_same_tensors(torch.load(tmp_path / "back" / "checkpoint.pth", weights_only=True)["model"], expected)
    assert_same_tensors(weights_of(tmp_path / "back" / "llm"), weights_of(released.llm))


def test_a_second_conversion_of_what_came_back_is_the_first(
    converted: Path, released: Released, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    to_reference(converted / "base", back, adapter=converted / "adapter")
    released.convert(tmp_path, vision=back / "eva_vit_g.pth", checkpoints=[back / "checkpoint.pth"], llm=back / "llm")
    for folder in ("base", "adapter"):
        assert_same_tensors(weights_of(tmp_path / folder), weights_of(converted / folder))
    one, other = (AutoTokenizer.from_pretrained(f) for f in (converted / "base", tmp_path / "base"))
    assert one.get_vocab() == other.get_vocab()


def test_what_came_back_loads_into_the_reference(converted: Path, released: Released, tmp_path: Path) -> None:
    to_reference(converted / "base", tmp_path / "back", adapter=converted / "adapter")
    state = torch.load(tmp_path / "back" / "checkpoint.pth", weights_only=True)["model"]
    state |= {f"visual_encoder.{k}": v for k, v in torch.load(tmp_path / "back" / "eva_vit_g.pth").items()}
    state |= {LLAMA + name: tensor for name, tensor in weights_of(tmp_path / "back" / "llm").items()}
    assert_same_tensors(state, released.reference.state_dict())


def test_keys_with_a_bias_cannot_go_back(converted: Path, tmp_path: Path) -> None:
    model = PeFoMedForConditionalGeneration.from_pretrained(converted / "base")
    model.model.vision_tower.encoder.layers[0].self_attn.qkv.bias.data.fill_(1)
    model.save_pretrained(tmp_path / "base")
    PeFoMedProcessor.from_pretrained(converted / "base").save_pretrained(tmp_path / "base")
    with pytest.raises(ConversionError, match="bias of keys"):
        to_reference(tmp_path / "base", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_adapter_of_another_base_is_refused(released: Released, converted: Path, tmp_path: Path) -> None:
    other = release(tmp_path / "other", seed=5)
    other.convert(tmp_path)
    with pytest.raises(ConversionError, match="found an adapter of a base with weights"):
        to_reference(converted / "base", tmp_path / "back", adapter=tmp_path / "adapter")
    (tmp_path / "adapter" / "manifest.json").unlink()
    to_reference(converted / "base", tmp_path / "unknown", adapter=tmp_path / "adapter")
    weights = weights_of(tmp_path / "adapter")
    for name in weights:
        if name.endswith("q_proj.lora_B.weight"):
            weights[name] = torch.ones(64, 3)
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ConversionError, match=r"is \(64, 3\), expected \(48, 3\)"):
        to_reference(converted / "base", tmp_path / "back", adapter=tmp_path / "adapter")
    assert not (tmp_path / "back").exists()


def test_a_tower_of_another_kind_cannot_go_back(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="found no PeFoMed base model"):
        to_reference(tmp_path / "nowhere", tmp_path / "back")
    with pytest.raises(ConversionError, match="found a llama model, expected a PeFoMed base model"):
        LlamaForCausalLM(AutoConfig.from_pretrained(base_folder).text_config).save_pretrained(tmp_path / "llama")
        build_tokenizer().save_pretrained(tmp_path / "llama")
        to_reference(tmp_path / "llama", tmp_path / "back")

# SPDX-License-Identifier: Apache-2.0
"""The configuration: the paper's sizes without arguments, counted on the meta device, and sizes that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from modeling_pefomed import PeFoMedConfig, PeFoMedForConditionalGeneration, PeFoMedProcessor

from .tiny import build_config, text_config, vision_config


@pytest.fixture(scope="module")
def paper_model() -> PeFoMedForConditionalGeneration:
    """The default model without memory for its weights."""
    with torch.device("meta"):
        return PeFoMedForConditionalGeneration(PeFoMedConfig())


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_default_sizes_are_the_papers() -> None:
    config = PeFoMedConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.image_size, vision.patch_size, vision.hidden_size) == (448, 14, 1408)
    assert (vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size) == (39, 16, 6144)
    assert vision.qkv_bias and vision.hidden_act == "gelu"
    assert (text.model_type, text.hidden_size, text.intermediate_size, text.vocab_size) == (
        "llama",
        4096,
        11008,
        32000,
    )
    assert (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) == (32, 32, 32)
    assert (text.max_position_embeddings, text.rms_norm_eps) == (4096, 1e-5)
    assert (config.patch_group_size, config.num_patches, config.image_seq_length) == (4, 1024, 256)
    assert config.image_token_id == 32000 and not config.tie_word_embeddings


def test_default_model_has_the_papers_parameter_counts(paper_model: PeFoMedForConditionalGeneration) -> None:
    tower, projector = paper_model.model.vision_tower, paper_model.model.multi_modal_projector
    assert count(tower) == 987_033_600
    assert count(projector) == 23_072_768
    assert (projector.in_features, projector.out_features) == (5632, 4096)
    assert count(paper_model.model.language_model) + count(paper_model.lm_head) == 6_738_415_616


def test_default_tower_normalises_with_the_papers_epsilons(paper_model: PeFoMedForConditionalGeneration) -> None:
    tower = paper_model.model.vision_tower
    assert tower.post_layernorm.eps == 1e-5
    assert {layer.layer_norm1.eps for layer in tower.encoder.layers} == {1e-6}


def test_embedding_matrix_is_not_resized_for_the_image_token(paper_model: PeFoMedForConditionalGeneration) -> None:
    assert paper_model.get_input_embeddings().weight.shape == (32000, 4096)
    assert paper_model.lm_head.weight.shape == (32000, 4096)


def test_projector_is_a_bare_linear_layer(paper_model: PeFoMedForConditionalGeneration) -> None:
    # PEFT mixes adapters within a batch for plain layers only
    assert type(paper_model.model.multi_modal_projector) is torch.nn.Linear


def test_model_names_only_classes_that_it_contains_as_indivisible(
    paper_model: PeFoMedForConditionalGeneration,
) -> None:
    present = {type(module).__name__ for module in paper_model.modules()}
    indivisible = set(paper_model._no_split_modules)
    assert {"Blip2EncoderLayer", "LlamaDecoderLayer"} <= indivisible <= present


@pytest.mark.parametrize("group_size", [0, -4, 3, 32])
def test_group_size_that_does_not_divide_the_patches_is_refused(processor: PeFoMedProcessor, group_size: int) -> None:
    with pytest.raises(ValueError, match=f"patch_group_size is {group_size}.*16 patch tokens"):
        build_config(processor, patch_group_size=group_size)


def test_values_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(Exception, match="image_token_id"):
        PeFoMedConfig(image_token_id="<ImageHere>")


@pytest.mark.parametrize(("group_size", "tokens"), [(1, 16), (2, 8), (8, 2), (16, 1)])
def test_image_tokens_are_patches_divided_by_group_size(
    processor: PeFoMedProcessor, group_size: int, tokens: int
) -> None:
    assert build_config(processor, patch_group_size=group_size).image_seq_length == tokens


def test_tied_embeddings_are_taken_from_the_language_model(processor: PeFoMedProcessor) -> None:
    tied = text_config(processor, tie_word_embeddings=True)
    assert build_config(processor, text=tied).tie_word_embeddings is True
    assert build_config(processor).tie_word_embeddings is False
    assert build_config(processor, text=tied, tie_word_embeddings=False).tie_word_embeddings is False


def test_configuration_survives_saving(processor: PeFoMedProcessor, tmp_path: Path) -> None:
    config = build_config(processor, patch_group_size=8, vision_post_layernorm_eps=1e-3)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, PeFoMedConfig)
    loaded.name_or_path = config.name_or_path
    assert loaded.to_dict() == config.to_dict()
    assert loaded.get_text_config().vocab_size == processor.image_token_id


def test_parts_may_be_given_as_objects() -> None:
    config = PeFoMedConfig(vision_config=vision_config(), text_config=LlamaConfig(hidden_size=64))
    assert config.image_seq_length == 4
    assert config.text_config.hidden_size == 64

# SPDX-License-Identifier: Apache-2.0
"""Composes a base model from a pretrained language model and a pretrained vision tower, with a fresh projector."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, Blip2VisionModel

from modeling_pefomed import PeFoMedConfig, PeFoMedForConditionalGeneration, PeFoMedImageProcessor, PeFoMedProcessor


def build_base(
    llm: str | Path, vision_tower: str | Path, *, dtype: torch.dtype, patch_group_size: int = 4, seed: int = 42
) -> tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]:
    """Return a base model with a fresh projector between two pretrained parts, and its processor.

    Args:
        llm: Hub id or folder of a decoder language model with its tokenizer.
        vision_tower: Hub id or folder of a vision backbone with patch tokens.
        dtype: of the frozen parts; the projector stays in float32.
        patch_group_size: consecutive patch tokens concatenated into one image token.
        seed: of the projector's initialisation.
    """
    language_model = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tower = load_vision_tower(vision_tower, dtype)
    vision_config: Any = tower.config
    processor = PeFoMedProcessor(
        image_processor=PeFoMedImageProcessor(
            size={"height": vision_config.image_size, "width": vision_config.image_size}
        ),
        tokenizer=tokenizer,
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2 // patch_group_size,
    )
    config = PeFoMedConfig(
        vision_config=vision_config.to_dict(),
        text_config=language_model.config.to_dict(),
        patch_group_size=patch_group_size,
        image_token_id=processor.image_token_id,
    )
    torch.manual_seed(seed)
    model = PeFoMedForConditionalGeneration._from_config(config, dtype=dtype)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language_model.get_decoder().state_dict())
    model.lm_head.load_state_dict(language_model.get_output_embeddings().state_dict())
    model.tie_weights()
    model.model.multi_modal_projector.float()
    model.generation_config = language_model.generation_config
    model.generation_config.pad_token_id = (
        tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    )
    return model, processor


def load_vision_tower(vision_tower: str | Path, dtype: torch.dtype) -> torch.nn.Module:
    """Return the vision part of any model that has one: a plain backbone, or the tower inside a two-tower model."""
    config = AutoConfig.from_pretrained(vision_tower)
    if config.model_type in ("blip_2_vision_model", "blip-2"):
        return Blip2VisionModel.from_pretrained(vision_tower, dtype=dtype)
    model = AutoModel.from_pretrained(vision_tower, dtype=dtype)
    return getattr(model, "vision_model", model)


def save_base(folder: Path, model: PeFoMedForConditionalGeneration, processor: PeFoMedProcessor) -> None:
    """Write a base model folder that loads with and without this package; it appears only when it is whole."""
    staged = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(staged, ignore_errors=True)
    model.save_pretrained(staged)
    processor.save_pretrained(staged)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staged, folder)

# SPDX-License-Identifier: Apache-2.0
"""Builds what training starts from: a base model from its frozen parts, and the adapter on top of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, Blip2VisionModel

from modeling_pefomed import PeFoMedConfig, PeFoMedForConditionalGeneration, PeFoMedImageProcessor, PeFoMedProcessor

from ..errors import PeFoMedError

# The language model's q and v only: the same names also occur in CLIP-like towers.
LORA_TARGETS = r".*language_model.*\.(q_proj|v_proj)"
LORA_TARGET_NAMES = ("q_proj", "v_proj")


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


def add_adapter(base: PeFoMedForConditionalGeneration, *, r: int, alpha: int, dropout: float) -> PeftModel:
    """Return the base with a fresh adapter: LoRA on the language model's q_proj and v_proj, and the whole projector.

    At the paper's sizes (r 64) this trains 56,627,200 parameters.

    Raises:
        PeFoMedError: the language model has no q_proj and v_proj.
    """
    names = {name.rsplit(".", 1)[-1] for name, _ in base.model.language_model.named_modules()}
    if not set(LORA_TARGET_NAMES) <= names:
        raise PeFoMedError(
            f"The language model {base.config.get_text_config().model_type} has no q_proj and v_proj layers for LoRA; "
            "use a model with separate attention projections."
        )
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=LORA_TARGETS,
        modules_to_save=["multi_modal_projector"],
    )
    return get_peft_model(base, config)


def load_adapter(base: PeFoMedForConditionalGeneration, folder: Path, *, trainable: bool) -> PeftModel:
    """Return the base with a saved adapter on it.

    Raises:
        PeFoMedError: the folder holds no adapter, or it was trained on a base of other sizes.
    """
    if not (folder / "adapter_config.json").is_file():
        raise PeFoMedError(f"{folder}: no adapter there (adapter_config.json is missing)")
    named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    try:
        model = PeftModel.from_pretrained(base, folder, is_trainable=trainable)
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as weights:
            differing = set(weights.keys()) ^ set(get_peft_model_state_dict(model))
        if differing:
            raise RuntimeError(f"size mismatch: {len(differing)} tensors, such as {sorted(differing)[0]}")
        return model
    except (RuntimeError, OSError, SafetensorError) as error:
        first = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), str(error))
        raise PeFoMedError(
            f"{folder}: this adapter does not fit the base model. It was trained on {named!r}; load that. ({first})"
        ) from None

# SPDX-License-Identifier: Apache-2.0
"""The adapter that is trained on top of a frozen base model: LoRA and the whole projector."""

from __future__ import annotations

import json
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from modeling_pefomed import PeFoMedForConditionalGeneration

from ..errors import PeFoMedError

# The language model's q and v only: the same names also occur in CLIP-like towers.
LORA_TARGETS = r".*language_model.*\.(q_proj|v_proj)"
LORA_TARGET_NAMES = ("q_proj", "v_proj")


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

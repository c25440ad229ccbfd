# SPDX-License-Identifier: Apache-2.0
"""An adapter merged into its base: a base model folder that answers as both together, without PEFT."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForImageTextToText

from modeling_pefomed import PeFoMedForConditionalGeneration

from ..errors import PeFoMedError
from ..models.adapter_folders import adapter_folder, load_adapter
from ..models.adapter_models import own_class
from ..models.bases import quantization_of
from ..staging import whole_folder
from .generate import adapter_base, load_processor


def merge_adapter(adapter: str | Path, out: Path, dtype: torch.dtype | None = None) -> Path:
    """Merge an adapter into its base, save model and processor in `out`, and return `out`.

    Every layer is merged in float32 and then rounded once to the base's number format; the projector stays in float32.
    Beside the base in its own format, only one layer at a time is held in float32. `out` appears when it is whole.

    Args:
        adapter: a folder or Hub id.
        dtype: number format of the result; by default that in which the base is saved.

    Raises:
        PeFoMedError: no adapter there, its method cannot be merged, its base is in 4 bits, or `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PeFoMedError(f"{out} is there already and not empty; name another folder or delete it")
    processor = load_processor(adapter)
    try:
        folder = adapter_folder(adapter)
        if folder is None:
            raise PeFoMedError(f"{adapter}: found a base model, expected an adapter (adapter_config.json is missing)")
        refuse_method(folder)
        base = AutoModelForImageTextToText.from_pretrained(adapter_base(folder), dtype=dtype or "auto")
    except (OSError, ValueError, RuntimeError) as error:
        raise PeFoMedError(f"{adapter}: cannot load it or its base ({(str(error).splitlines() or [''])[0]})") from None
    if quantization_of(base) != "none":
        raise PeFoMedError(f"{adapter}: its base is in 4 bits; name the base as it was before in adapter_config.json")
    merged = merge_layers(load_adapter(base, folder, trainable=False))
    with whole_folder(out) as staged:
        merged.save_pretrained(staged)
        processor.save_pretrained(staged)
    return out


def refuse_method(folder: Path) -> None:
    """Check that an adapter is weights to add to a base's.

    Raises:
        PeFoMedError: it is tokens beside the base's own; the method is named.
    """
    config: Any = PeftConfig.from_pretrained(folder)
    if own_class(config) is not None:
        raise PeFoMedError(
            f"{folder}: an adapter of {config.peft_type.value} cannot be merged: it is tokens that the model sees, "
            "not a change of its weights. Use the adapter with its base."
        )


def merge_layers(model: PeftModel) -> PeFoMedForConditionalGeneration:
    """Return the base with the adapter merged into it, layer by layer in float32, and rounded once."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "merge"):
            inner = layer.get_base_layer()
            dtype = inner.weight.dtype
            inner.float()
            layer.merge()
            inner.to(dtype)
    merged = model.merge_and_unload()  # what is merged is not merged again: this takes PEFT's layers away
    gc.collect()
    return merged.requires_grad_(False).eval()

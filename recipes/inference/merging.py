# SPDX-License-Identifier: Apache-2.0
"""An adapter merged into its base: a base model folder that answers as both together, without PEFT."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from ..errors import PeFoMedError
from ..models.adapter_folders import adapter_folder, load_adapter
from ..models.bases import quantization_of
from ..staging import whole_folder
from .loading import adapter_base, load_processor
from .merged_layers import merge_layers, refuse_method


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

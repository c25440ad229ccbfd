# SPDX-License-Identifier: Apache-2.0
"""Merging in memory: an adapter's layers added to the base's weights."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from modeling_pefomed import PeFoMedForConditionalGeneration

from ..errors import PeFoMedError
from ..models.adapter_models import own_class


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

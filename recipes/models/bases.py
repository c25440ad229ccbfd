# SPDX-License-Identifier: Apache-2.0
"""Bases under adapters: loading one in 4 bits, and telling whether it is the one that an adapter was trained on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from modeling_pefomed import PeFoMedForConditionalGeneration

from ..errors import PeFoMedError
from ..staging import whole_file
from .towers import AbsentTower, ModelWithoutTower, describe_tower, load_tower

FINGERPRINT = "base_fingerprint.json"
QUANTIZATIONS = ("none", "nf4")
# bitsandbytes skips a module when one of these is how its name starts; "vision_tower" alone would skip nothing. The
# language model's embeddings and norms are no Linear layers and keep their format anyway.
NOT_QUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
SAMPLED_VALUES = 64


def load_base_model(
    base: str | Path, dtype: torch.dtype, quantization: str = "none", *, without_tower: bool = False
) -> Any:
    """Return what `AutoModelForImageTextToText` finds at a place, in this dtype.

    Args:
        quantization: `nf4` for 4-bit NormalFloat with double quantization in the language model's linear layers; the
            tower, the projector and the head keep their format.
        without_tower: leave the vision tower out of memory, for runs that find all images in a feature cache. It is
            only read once, for the fingerprint of the base.

    Raises:
        PeFoMedError: an unknown quantization, or bitsandbytes is not installed.
        OSError, ValueError: what transformers raises where nothing can be loaded.
    """
    settings = quantization_settings(quantization, dtype)
    if without_tower:
        alone = load_tower(base, dtype)
        digest, description = base_fingerprint(alone)["vision_tower"], describe_tower(alone)
        del alone
        model = ModelWithoutTower.from_pretrained(base, dtype=dtype, **settings)
        tower = model.model.vision_tower
        tower.base_digest, tower.description = digest, description
    else:
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype, **settings)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On some CPUs bitsandbytes would repack weights when it first validates, and round their scales: the
            # frozen base would change while an adapter is trained on it.
            module.support_avx512bf16_for_cpu = False
    return model


def quantization_settings(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return what `from_pretrained` needs for [`load_base_model`]; computation is in `dtype`."""
    if quantization not in QUANTIZATIONS:
        raise PeFoMedError(f"unknown quantization {quantization!r}; expected one of {', '.join(QUANTIZATIONS)}")
    if quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PeFoMedError('quantization nf4 needs bitsandbytes: pip install "pefomed[quantization]"')
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=NOT_QUANTIZED,
        )
    }


def quantization_of(model: torch.nn.Module) -> str:
    """Return `nf4` for a base whose linear layers are in 4 bits, else `none`."""
    return "nf4" if getattr(model, "is_loaded_in_4bit", False) else "none"


def base_fingerprint(base: PeFoMedForConditionalGeneration) -> dict[str, str]:
    """Return a digest for each part of a base model without an adapter: names, shapes and 64 values of every tensor.

    The values stand evenly over the tensor and are rounded to bfloat16, so that a base has one fingerprint in float32
    and in bfloat16. The language model's linear layers are a part of their own, which is missing where they are
    quantized: a base and its 4-bit form agree in all other parts.
    """
    digests: dict[str, Any] = {}
    quantized = set()
    tower = base.model.vision_tower
    known = {"vision_tower": tower.base_digest} if isinstance(tower, AbsentTower) else {}
    for name, parameter in base.named_parameters():
        part = _part(base, name)
        if not parameter.is_floating_point():
            quantized.add(part)
        elif not parameter.is_meta:
            flat = parameter.detach().reshape(-1)
            places = torch.linspace(0, flat.numel() - 1, min(SAMPLED_VALUES, flat.numel()), dtype=torch.float64)
            values = flat[places.long().to(flat.device)].to(torch.bfloat16).cpu().view(torch.uint8)
            digest = digests.setdefault(part, hashlib.sha256())
            digest.update(f"{name} {tuple(parameter.shape)} ".encode() + bytes(values.tolist()))
    return known | {part: digest.hexdigest() for part, digest in digests.items() if part not in quantized}


def _part(base: PeFoMedForConditionalGeneration, name: str) -> str:
    part = next((part for part in ("vision_tower", "multi_modal_projector") if f"model.{part}." in name), "")
    is_linear = isinstance(base.get_submodule(name.rpartition(".")[0]), torch.nn.Linear)
    return part or ("lm_head" if name.startswith("lm_head") else f"language_model{' linear layers' * is_linear}")


def write_fingerprint(folder: str | Path, fingerprint: dict[str, str]) -> None:
    """Write the fingerprint of an adapter's base beside the adapter."""
    with whole_file(Path(folder) / FINGERPRINT) as staged:
        staged.write_text(json.dumps(fingerprint, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_base(folder: Path, found: dict[str, str], named: str | None) -> None:
    """Compare a base's fingerprint with that of the base on which the adapter in `folder` was trained, if it is known.

    Args:
        named: how the adapter names its base.

    Raises:
        PeFoMedError: a part of the base has other weights.
    """
    if not (folder / FINGERPRINT).is_file():
        return
    expected = json.loads((folder / FINGERPRINT).read_text(encoding="utf-8"))
    other = sorted(part for part in expected.keys() & found.keys() if expected[part] != found[part])
    if other:
        first = other[0]
        raise PeFoMedError(
            f"{folder}: this adapter does not fit the base model. It was trained on {named!r}, with other weights in: "
            f"{', '.join(other)} ({first}: found {found[first][:12]}, expected {expected[first][:12]}). Load that "
            "base, or train an adapter on this one."
        )

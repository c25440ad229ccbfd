# SPDX-License-Identifier: Apache-2.0
"""The vision tower by itself, a model without it, and what tells one tower from another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from modeling_pefomed import PeFoMedConfig, PeFoMedForConditionalGeneration

from ..errors import PeFoMedError

# Of a tower's configuration, what says nothing about its computation.
_IDLE_SETTINGS = ("dtype", "transformers_version", "architectures", "initializer_range", "id2label", "label2id")


class AbsentTower(torch.nn.Module):
    """Stands where a model has no tower in memory, with what identifies the one that was left out.

    Attributes:
        base_digest: the tower's part of the base's fingerprint.
        description: as [`describe_tower`] gives it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.base_digest = ""
        self.description: dict[str, str] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise PeFoMedError(
            "The vision tower is not in memory, and an image was given as pixels; expected features of a feature "
            "cache. Load the model with its tower, or pass cached features."
        )


class ModelWithoutTower(PeFoMedForConditionalGeneration):
    """A base model whose tower takes no memory; all images come as features. Adapters are saved as from the whole."""

    _keys_to_ignore_on_load_unexpected = [r"vision_tower\."]

    def __init__(self, config: PeFoMedConfig):
        super().__init__(config)  # within `from_pretrained`, where this takes no memory either
        self.model.vision_tower = AbsentTower()
        classes = {type(module).__name__ for module in self.modules()}
        for module in (self, self.model):  # FSDP looks for the tower's classes, too
            module._no_split_modules &= classes

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise PeFoMedError("A model without its vision tower cannot be saved as a base; load it with the tower.")


class TowerAlone(PeFoMedForConditionalGeneration):
    """A base model of which only the tower is in memory: enough to compute features."""

    _keys_to_ignore_on_load_unexpected = [r"^(?!.*vision_tower\.)"]

    def __init__(self, config: PeFoMedConfig):
        super().__init__(config)
        for module, part in ((self, "lm_head"), (self.model, "language_model"), (self.model, "multi_modal_projector")):
            setattr(module, part, None)
        self.all_tied_weights_keys: dict[str, str] = {}


def load_tower(base: str | Path, dtype: torch.dtype) -> TowerAlone:
    """Return the vision tower of a base model, in evaluation mode.

    Raises:
        OSError, ValueError: there is no PeFoMed base model.
    """
    check_is_pefomed(base)
    return TowerAlone.from_pretrained(base, dtype=dtype).eval()


def check_is_pefomed(base: str | Path) -> None:
    """Check that a base model can be taken apart.

    Raises:
        OSError: there is no model.
        ValueError: it is of another kind.
    """
    config = AutoConfig.from_pretrained(base)
    if not isinstance(config, PeFoMedConfig):
        raise ValueError(f"found a {config.model_type} model, expected a PeFoMed base model")


def describe_tower(model: Any) -> dict[str, str]:
    """Return what decides on a tower's output: its weights, its configuration, its number format and its attention.

    Args:
        model: a model with or without its tower in memory, or one with an adapter.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    tower = inner.model.vision_tower
    if isinstance(tower, AbsentTower):
        return tower.description
    settings = {
        key: value
        for key, value in inner.config.vision_config.to_dict().items()
        if key not in _IDLE_SETTINGS and not key.startswith("_")
    } | {"post_layernorm_eps": inner.config.vision_post_layernorm_eps}
    return {
        "tower weights": _weights_digest(tower),
        "tower configuration": _digest(json.dumps(settings, sort_keys=True).encode()),
        "number format": str(next(tower.parameters()).dtype).removeprefix("torch."),
        "attention": tower.config._attn_implementation,
    }


def _weights_digest(tower: torch.nn.Module) -> str:
    """Return a digest of every bit of a tower's weights, 1 s for each GB."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()

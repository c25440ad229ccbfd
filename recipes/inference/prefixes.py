# SPDX-License-Identifier: Apache-2.0
"""The beginning of a prompt, images included: computed once for all questions that share it, and kept for others."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from modeling_pefomed import PeFoMedProcessor

from ..models.feature_cache import FeatureCache

# Prompts that are prefilled at once: more of them gain nothing once the device is busy, and cost memory.
PREFIXES_TOGETHER = 4


@dataclass
class Prefix:
    """The first tokens of a prompt: their `ids`, and in every layer their keys and values `(heads, tokens, width)`."""

    ids: list[int]
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    def cut(self, length: int) -> Prefix:
        """Return its first tokens: what follows a token does not change its keys and values."""
        return Prefix(self.ids[:length], [(keys[:, :length], values[:, :length]) for keys, values in self.layers])


@dataclass
class Beginning:
    """What a prefix is computed from: images, the first token ids of a prompt, and the adapter that is asked."""

    images: tuple[Any, ...]
    ids: list[int]
    adapter: str | None = None


class Filled(Exception):
    """All layers have their keys and values."""


class LastLayer(DynamicLayer):
    """The last layer of a prefix, which ends the forward: what the layer would make of its keys and values is the
    input of nothing."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the keys and values.

        Raises:
            Filled: always.
        """
        super().update(*args, **kwargs)
        raise Filled


class PrefixMemory:
    """Prefixes of earlier prompts, for further questions about the same images; the least recently used goes first.

    It belongs to one model: after its weights have changed, start a new one.

    Args:
        limit: how many prefixes are kept.
    """

    def __init__(self, limit: int = 4) -> None:
        self.limit = limit
        self._kept: OrderedDict[tuple[Any, ...], Prefix] = OrderedDict()

    def recall(self, beginning: Beginning, image_token_id: int) -> Prefix | None:
        """Return as much of a kept prefix as the prompt begins with, where that holds all the images."""
        key = _key(beginning)
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        pairs = enumerate(zip(kept.ids, beginning.ids, strict=False))
        common = next((n for n, (old, new) in pairs if old != new), min(len(kept.ids), len(beginning.ids)))
        return None if image_token_id in beginning.ids[common:] else kept.cut(common)

    def keep(self, beginning: Beginning, prefix: Prefix) -> None:
        """Keep a prefix, and forget the one that was used longest ago."""
        self._kept[_key(beginning)] = prefix
        self._kept.move_to_end(_key(beginning))
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)


def _key(beginning: Beginning) -> tuple[Any, ...]:
    """Images by their content: a page gets an image anew with every question."""
    images = (
        image if isinstance(image, str) else (image.size, hashlib.sha256(image.tobytes()).digest())
        for image in beginning.images
    )
    return (beginning.adapter, *images)


def image_inputs(
    model: Any, processor: PeFoMedProcessor, images: Sequence[Any], features: FeatureCache | None
) -> dict[str, Any]:
    """Return what the model takes for images: pixels of pictures, or cached features of paths."""
    if not isinstance(images[0], str):
        pixels = processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.to(model.device)}
    if features is None:
        raise ValueError("A request names an image by its path, which needs a feature cache.")
    found = features.features(images).to(model.device)
    return {"mm_encoder_outputs": {"image": {"last_hidden_state": found}}}


def prefill(
    model: Any,
    processor: PeFoMedProcessor,
    beginnings: Sequence[Beginning],
    features: FeatureCache | None,
    context: Callable[[], AbstractContextManager[bool]],
) -> list[Prefix]:
    """Compute prefixes, a few at a time.

    Args:
        context: entered around every use of the model; yields whether calls need the rows' adapters by name.
    """
    kinds: dict[tuple[int, bool], list[int]] = {}
    for index, one in enumerate(beginnings):  # of as many images, so of about one length
        kinds.setdefault((len(one.images), isinstance(one.images[0], str)), []).append(index)
    found: dict[int, Prefix] = {}
    for indices in kinds.values():
        for start in range(0, len(indices), PREFIXES_TOGETHER):
            some = indices[start : start + PREFIXES_TOGETHER]
            prefixes = _prefill_together(model, processor, [beginnings[index] for index in some], features, context)
            found.update(zip(some, prefixes, strict=True))
    return [found[index] for index in range(len(beginnings))]


def _prefill_together(
    model: Any,
    processor: PeFoMedProcessor,
    beginnings: list[Beginning],
    features: FeatureCache | None,
    context: Callable[[], AbstractContextManager[bool]],
) -> list[Prefix]:
    longest = max(len(one.ids) for one in beginnings)
    # Padded on the right, where no token looks; any id will do.
    ids = [one.ids + one.ids[:1] * (longest - len(one.ids)) for one in beginnings]
    cache = DynamicCache(config=model.config.get_text_config())
    with suppress(Filled), context() as mixed:
        if not mixed:  # PEFT hands adapters' names over in hooks, which it takes away only after a whole forward
            cache.layers[-1] = LastLayer()
        names = {"adapter_names": [one.adapter or model.active_adapter for one in beginnings]} if mixed else {}
        model(
            input_ids=torch.tensor(ids, device=model.device),
            **image_inputs(model, processor, [image for one in beginnings for image in one.images], features),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **names,
        )
    return [
        Prefix(one.ids, [(layer.keys[row], layer.values[row]) for layer in cache.layers]).cut(len(one.ids))
        for row, one in enumerate(beginnings)
    ]

# SPDX-License-Identifier: Apache-2.0
"""Names of tensors, those of the reference (EVA, MiniGPT-v2, PeFoMed checkpoints) and ours, and what was made of them.

    visual_encoder.blocks.N.attn.qkv.weight            model.vision_tower.encoder.layers.N.self_attn.qkv.weight
    ln_vision.*                                        model.vision_tower.post_layernorm.*
    llama_proj.*                                       model.multi_modal_projector.*
    llama_model.model.*, llama_model.lm_head.*         model.language_model.*, lm_head.*
    llama_model.model.(...).q_proj.lora_A.weight       base_model.model.model.language_model.(...).q_proj.lora_A.weight

Not part of the Hub's remote code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from .weight_files_pefomed import ConversionError, Loader, Source

ADAPTER = "base_model.model."  # what PEFT puts before the names of an adapter's tensors
TOWER, PROJECTOR, LANGUAGE_MODEL = "model.vision_tower.", "model.multi_modal_projector.", "model.language_model."
POST_LAYERNORM, POSITIONS = TOWER + "post_layernorm.", TOWER + "embeddings.position_embedding"
QKV_BIAS = ".self_attn.qkv.bias"
# The reference has no bias of keys. Its two halves stand under these names until they are joined.
BIAS_PARTS = (QKV_BIAS + ".query", QKV_BIAS + ".value")

# Beginnings of names, reference and ours. Of two that fit, the longer comes first.
PREFIXES = [
    ("visual_encoder.cls_token", TOWER + "embeddings.class_embedding"),
    ("visual_encoder.pos_embed", POSITIONS),
    ("visual_encoder.patch_embed.proj.", TOWER + "embeddings.patch_embedding."),
    ("ln_vision.", POST_LAYERNORM),
    ("llama_proj.", PROJECTOR),
    ("llama_model.lm_head.", "lm_head."),
    ("llama_model.model.", LANGUAGE_MODEL),
]
BLOCK, LAYER = "visual_encoder.blocks.", TOWER + "encoder.layers."
PARTS_OF_BLOCK = [
    ("norm1.", "layer_norm1."),
    ("norm2.", "layer_norm2."),
    ("attn.q_bias", BIAS_PARTS[0].removeprefix(".")),
    ("attn.v_bias", BIAS_PARTS[1].removeprefix(".")),
    ("attn.qkv.", "self_attn.qkv."),
    ("attn.proj.", "self_attn.projection."),
    ("mlp.fc1.", "mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2."),
]
EXPECTED = "weights of EVA-CLIP ViT-g, LLaMA, MiniGPT-v2 or PeFoMed"
# Parts of EVA's own model that the released code does not build.
UNBUILT = ("visual_encoder.norm.", "visual_encoder.fc_norm.", "visual_encoder.head.", "visual_encoder.mask_token")


def canonical_name(name: str) -> str:
    """Return the one spelling of a reference name: as if the language model were not wrapped by PEFT.

    Accepts what different versions of PEFT wrote: `llama_model.base_model.model.`, `.base_layer.`, and
    `lora_A.default.weight` beside `lora_A.weight`.
    """
    name = name.removeprefix("module.")
    if name.startswith("llama_model."):
        name = name.replace("llama_model.base_model.model.", "llama_model.", 1).replace(".base_layer.", ".")
        name = re.sub(r"\.(lora_[AB])\.default\.weight$", r".\1.weight", name)
    return name


def our_name(name: str) -> str | None:
    """Return this model's name for a canonical reference name; adapter tensors get PEFT's prefix. `None`: no place.

    `q_bias` and `v_bias` give one of [`BIAS_PARTS`], to be joined into the one bias that this model has.
    """
    if name.startswith(BLOCK):
        number, _, part = name.removeprefix(BLOCK).partition(".")
        renamed = _replace_prefix(part, PARTS_OF_BLOCK)
        return None if renamed is None else f"{LAYER}{number}.{renamed}"
    renamed = _replace_prefix(name, PREFIXES)
    if renamed is None or ".lora_" not in renamed:
        return renamed
    return f"{ADAPTER}{renamed}" if re.search(r"\.lora_[AB]\.weight$", renamed) else None


def reference_name(name: str) -> str:
    """Return the reference's name for a tensor of this model or of its adapter: the inverse of [`our_name`].

    Raises:
        KeyError: the reference has no such tensor.
    """
    is_lora = ".lora_" in name
    name = name.removeprefix(ADAPTER)
    if name.startswith(LAYER):
        number, _, part = name.removeprefix(LAYER).partition(".")
        renamed = _replace_prefix(part, [(ours, reference) for reference, ours in PARTS_OF_BLOCK])
        renamed = None if renamed is None else f"{BLOCK}{number}.{renamed}"
    else:
        renamed = _replace_prefix(name, [(ours, reference) for reference, ours in PREFIXES])
    if renamed is None:
        raise KeyError(name)
    if is_lora:
        renamed = renamed.replace("llama_model.", "llama_model.base_model.model.", 1)
        renamed = re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", renamed)
    return renamed


def drop_reason(name: str, vision_layers: int) -> str | None:
    """Return why a canonical reference name is left out on purpose, or `None` when it is not."""
    if name.endswith("rotary_emb.inv_freq"):
        return "computed from the configuration"
    if name.startswith(BLOCK) and int(name.removeprefix(BLOCK).partition(".")[0]) >= vision_layers:
        return f"behind the tower's {vision_layers} blocks"
    if name.startswith(UNBUILT):
        return "not part of the released model"
    return None


def is_foreign(name: str) -> bool:
    """Whether a name without a place shows another architecture: to leave its tensor out would change the outputs."""
    return name.startswith((BLOCK, "ln_vision.", "llama_proj.")) or ".lora_" in name


def grouped_names(names: Iterable[str]) -> list[str]:
    """Return names as a short and complete list: numbers of one pattern are joined, as in `blocks.{0-38}.norm1.bias`.

    Of several numbers in a name, the first is joined.
    """
    numbers: dict[tuple[str, str], list[int]] = {}
    whole = []
    for name in names:
        match = re.search(r"(?<=\.)\d+(?=\.)", name)
        if match is None:
            whole.append(name)
        else:
            numbers.setdefault((name[: match.start()], name[match.end() :]), []).append(int(match.group()))
    joined = [f"{before}{_ranges(found)}{after}" for (before, after), found in numbers.items()]
    return sorted(whole) + joined


@dataclass
class Collection:
    """Tensors of several sources under our names, where each comes from, and what was not used."""

    loaders: dict[str, Loader] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        source: Source,
        *,
        vision_layers: int,
        spell: Callable[[str], str] = canonical_name,
        place: Callable[[str], str | None] = our_name,
    ) -> None:
        """Put a source over the earlier ones: where two have the same tensor, the later wins.

        Args:
            spell: gives the canonical reference name for a name in the source.
            place: gives our name for a canonical one, or `None`.

        Raises:
            ConversionError: the source belongs to another model, or has a tensor in two spellings or half a bias.
        """
        label = source.label if source.label not in self.reports else f"{source.label} ({len(self.reports) + 1})"
        added: dict[str, Loader] = {}
        dropped: dict[str, list[str]] = {}
        unused = []
        for name, load in source.loaders.items():
            canonical = spell(name)
            reason, ours = drop_reason(canonical, vision_layers), place(canonical)
            if reason is not None:
                dropped.setdefault(reason, []).append(name)
            elif ours is None and is_foreign(canonical):
                raise ConversionError(
                    f"{label}: found {name}, which PeFoMed has no place for and which must not be ignored; "
                    f"expected {EXPECTED}. Check that this is the right file."
                )
            elif ours is None:
                unused.append(name)
            elif ours in added:
                raise ConversionError(f"{label}: found {name} in two spellings. Remove one of the two tensors.")
            else:
                added[ours] = load
        if not added:
            raise ConversionError(
                f"{label}: found {len(source.loaders)} tensors such as {next(iter(source.loaders))}, none of "
                f"PeFoMed's; expected {EXPECTED}. Check that this is the right file."
            )
        self.reports[label] = {
            "files": source.files,
            "used": len(added),
            "dropped": dropped,
            "unused": unused,
            "replaced": [],
        }
        _join_biases(added, label)
        for name in sorted(self.origin.keys() & added.keys()):
            self.reports[self.origin[name]]["replaced"].append(name)
        self.loaders |= added
        self.origin |= dict.fromkeys(added, label)

    def start(self, tensors: dict[str, torch.Tensor], reason: str) -> None:
        """Give tensors that no source holds their start."""
        self.loaders |= {name: partial(_itself, tensor) for name, tensor in tensors.items()}
        self.fresh |= dict.fromkeys(tensors, reason)

    def leave_out(self, names: Iterable[str]) -> None:
        """List tensors as unused that sources hold and nothing needs."""
        for name in sorted(names):
            del self.loaders[name]
            self.reports[self.origin.pop(name)]["unused"].append(name)


def report_lines(manifest: dict[str, Any]) -> list[str]:
    """Return what a manifest says of each source, for people: every tensor that was not used, and why."""
    lines = []
    for label, source in manifest["sources"].items():
        lines.append(f"{label}: {source['used']} tensors used")
        for reason, names in source["dropped"].items():
            lines += [f"  dropped, {reason}: {name}" for name in names]
        lines += [f"  not used: {name}" for name in source["unused"]]
        lines += [f"  replaced by a later file: {name}" for name in source["replaced"]]
    return lines + [f"{name}: {reason}" for name, reason in manifest["fresh"].items()]


def _join_biases(loaders: dict[str, Loader], label: str) -> None:
    """Join the biases of queries and values to that of queries, keys (zero) and values, in place."""
    blocks = {name.removesuffix(part) for name in loaders for part in BIAS_PARTS if name.endswith(part)}
    for block in sorted(blocks):
        query, value = (loaders.pop(block + part, None) for part in BIAS_PARTS)
        if query is None or value is None:
            raise ConversionError(
                f"{label}: found only one of attn.q_bias and attn.v_bias for {block}, expected both. The file is not "
                "whole."
            )
        loaders[block + QKV_BIAS] = partial(_joined_bias, query, value)


def _joined_bias(query: Loader, value: Loader) -> torch.Tensor:
    value_bias = value()
    return torch.cat([query(), torch.zeros_like(value_bias), value_bias])


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _ranges(numbers: list[int]) -> str:
    """Return `{0-3,7}` for 0, 1, 2, 3 and 7, and the number itself when there is one."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    if len(numbers) == 1:
        return str(numbers[0])
    return "{" + ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans) + "}"


def _replace_prefix(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    for old, new in pairs:
        if name.startswith(old):
            return new + name[len(old) :]
    return None

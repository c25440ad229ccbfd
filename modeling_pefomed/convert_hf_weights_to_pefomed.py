# SPDX-License-Identifier: Apache-2.0
"""The way back: a base model folder and an adapter as the files that the released code reads.

    base model ─┬─▶ eva_vit_g.pth     the tower, bare names
    adapter   ──┼─▶ checkpoint.pth    {"model": ln_vision, llama_proj, LoRA}
                └─▶ llm/              the language model, its configuration and tokenizer

Bit-equal: what `convert_pefomed_weights_to_hf.py` read comes out again. Not part of the Hub's remote code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .modeling_pefomed import PeFoMedForConditionalGeneration
from .weight_files_pefomed import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    ConversionError,
    Loader,
    as_bytes,
    read_checkpoint,
    read_folder,
    read_json,
    read_safetensors,
    require_new,
    staged,
    weights_sha256,
    write_manifest,
    write_shards,
)
from .weight_names_pefomed import (
    ADAPTER,
    BIAS_PARTS,
    LANGUAGE_MODEL,
    POST_LAYERNORM,
    QKV_BIAS,
    TOWER,
    reference_name,
)
from .weight_shapes_pefomed import adapter_shapes, open_base, require_shapes, shapes_of

EVA, CHECKPOINT, LLM = "eva_vit_g.pth", "checkpoint.pth", "llm"
BARE = "visual_encoder."  # what names in EVA's own file do not begin with


def to_reference(
    base: str | Path, out: str | Path, *, adapter: str | Path | None = None, max_shard_bytes: int = 5 * 10**9
) -> dict[str, Any]:
    """
    Write the reference's files into a new folder and return its manifest.

    Args:
        base: a base model with a BLIP-2 (EVA) tower, a folder or Hub id.
        out: the new folder.
        adapter: an adapter folder; its projector then takes the place of the base's.
        max_shard_bytes: largest weight file of the language model.

    Raises:
        ConversionError: the tower or the adapter is of another kind, or the adapter belongs to another base.
    """
    require_new([Path(out)])
    skeleton, processor = open_base(base)
    tensors = read_folder(base).loaders
    require_shapes(tensors, shapes_of(skeleton), {})
    if skeleton.config.vision_config.model_type != "blip_2_vision_model":
        raise ConversionError(
            f"{base}: found a {skeleton.config.vision_config.model_type} tower, but the released code has EVA's only; "
            "expected a base model that was converted from EVA or BLIP-2 weights."
        )
    if adapter is not None:
        tensors |= adapter_loaders(Path(adapter), base, skeleton)
    language_model = {name: load for name, load in tensors.items() if name.startswith((LANGUAGE_MODEL, "lm_head."))}
    tower = {name: load for name, load in tensors.items() if name.startswith(TOWER) and POST_LAYERNORM not in name}
    trained = {name: load for name, load in tensors.items() if name not in language_model.keys() | tower.keys()}
    with staged([Path(out)], tensors.values()) as [folder]:
        _save(folder / EVA, {name.removeprefix(BARE): tensor for name, tensor in _as_reference(tower).items()})
        _save(folder / CHECKPOINT, {"model": _as_reference(trained)})
        (folder / LLM).mkdir()
        names = {name.replace(LANGUAGE_MODEL, "model.", 1): load for name, load in language_model.items()}
        write_shards(folder / LLM, names, max_shard_bytes)
        text_config = skeleton.config.text_config
        text_config.dtype = skeleton.config.dtype
        text_config.save_pretrained(folder / LLM)
        processor.tokenizer.save_pretrained(folder / LLM)
        return write_manifest(folder, {"base_weights_sha256": weights_sha256(base)})


def adapter_loaders(adapter: Path, base: str | Path, skeleton: PeFoMedForConditionalGeneration) -> dict[str, Loader]:
    """Return an adapter's tensors, LoRA under PEFT's names and the projector under the base model's.

    Raises:
        ConversionError: there is no LoRA adapter, or it was made for a base of other weights or sizes.
    """
    settings = read_json(adapter / ADAPTER_CONFIG)
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        raise ConversionError(
            f"{adapter}: found {settings.get('peft_type')}, expected plain LoRA, as the released code has."
        )
    if (adapter / MANIFEST).is_file():
        known, found = read_json(adapter / MANIFEST).get("base_weights_sha256"), weights_sha256(base)
        if known not in (None, found):
            raise ConversionError(
                f"{adapter}: found an adapter of a base with weights {known[:12]}, but {base} has {found[:12]}. "
                f"Expected the base that it was made for, {settings.get('base_model_name_or_path')}."
            )
    loaders = read_safetensors(adapter / ADAPTER_WEIGHTS).loaders
    shapes = adapter_shapes(loaders, settings["r"], skeleton)
    require_shapes(loaders, shapes, dict.fromkeys(loaders, adapter.name))
    return {name if ".lora_" in name else name.removeprefix(ADAPTER): loaders[name] for name in shapes}


def _as_reference(loaders: Mapping[str, Loader]) -> dict[str, torch.Tensor]:
    """Return tensors under the reference's names, with the bias of queries, keys and values split.

    Raises:
        ConversionError: keys have a bias, which the reference cannot hold.
    """
    tensors = {}
    for name, load in loaders.items():
        if not name.endswith(QKV_BIAS):
            tensors[reference_name(name)] = load()
            continue
        query, key, value = load().clone().chunk(3)
        if key.any():
            raise ConversionError(f"{name}: found a bias of keys that is not zero; the released code has none.")
        for part, half in zip(BIAS_PARTS, (query, value), strict=True):
            tensors[reference_name(name.removesuffix(QKV_BIAS) + part)] = half.clone()
    return tensors


def _save(path: Path, content: dict[str, Any]) -> None:
    """Write a `.pth` file, read it back and compare.

    Raises:
        ConversionError: it reads back differently.
    """
    torch.save(content, path)
    read = read_checkpoint(path).loaders
    meant = content.get("model", content)
    same = read.keys() == meant.keys() and all(
        load().dtype == meant[name].dtype and torch.equal(as_bytes(load()), as_bytes(meant[name]))
        for name, load in read.items()
    )
    if not same:
        raise ConversionError(f"{path.name} was written but reads back differently. Check the disk and start again.")

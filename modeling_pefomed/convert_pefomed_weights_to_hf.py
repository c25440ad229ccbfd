# SPDX-License-Identifier: Apache-2.0
"""Converts released weights: EVA, MiniGPT-v2 and PeFoMed files to a base model folder and an adapter folder.

    eva_vit_g.pth (or BLIP-2) ┐
    a Llama folder or Hub id  ┼─▶ base model: tower, projector, language model, config, processor, manifest.json
    MiniGPT-v2, PeFoMed .pth  ┴─▶ adapter: LoRA and projector as PEFT writes them, processor, manifest.json

Tensors are copied one by one, as they are stored; nothing is run, and nothing is left out without being listed.
`convert_hf_weights_to_pefomed.py` is the way back. Not part of the Hub's remote code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .configuration_pefomed import PeFoMedConfig
from .modeling_pefomed import PeFoMedForConditionalGeneration
from .processing_pefomed import PeFoMedProcessor
from .weight_files_pefomed import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ConversionError,
    Loader,
    compare_safetensors,
    read_checkpoint,
    read_folder,
    require_new,
    sha256_of,
    staged,
    weights_sha256,
    write_json,
    write_manifest,
    write_safetensors,
    write_shards,
)
from .weight_names_pefomed import (
    ADAPTER,
    LANGUAGE_MODEL,
    POSITIONS,
    POST_LAYERNORM,
    PROJECTOR,
    TOWER,
    Collection,
    canonical_name,
    grouped_names,
)
from .weight_shapes_pefomed import (
    adapter_shapes,
    build_skeleton,
    config_and_processor,
    greedy_generation,
    open_base,
    require_shapes,
    shapes_of,
    shown,
    tower_config,
)


def convert(
    *,
    llm: str | Path | None = None,
    vision: str | Path | None = None,
    checkpoints: Sequence[str | Path] = (),
    base: str | Path | None = None,
    out: str | Path | None = None,
    adapter_out: str | Path | None = None,
    num_attention_heads: int = 16,
    image_size: int = 448,
    vision_layers: int = 39,
    patch_group_size: int = 4,
    lora_alpha: int = 16,
    lora_dropout: float = 0.05,
    dtype: torch.dtype | None = None,
    base_name: str | None = None,
    seed: int = 42,
    max_shard_bytes: int = 5 * 10**9,
) -> dict[str, dict[str, Any]]:
    """
    Write a base model folder, an adapter folder, or both; return their manifests, as `{"base": ..., "adapter": ...}`.

    Everything is read back and compared bit by bit before the folders appear.

    Args:
        llm: folder or Hub id of a Llama: language model, tokenizer, configuration. For `out`.
        vision: `eva_vit_g.pth`, or folder or Hub id of a BLIP-2 model, which holds the same tower. For `out`, unless a
            checkpoint holds the tower.
        checkpoints: MiniGPT-v2 and PeFoMed `.pth` files. Where two have the same tensor, the later wins.
        base: a converted base model, instead of `out`: write only `adapter_out`, for one more checkpoint on it.
        out: the new base model folder.
        adapter_out: the new adapter folder.
        num_attention_heads: of the tower; tensors cannot tell.
        image_size: width and height of images in pixels. Position embeddings are interpolated to it, in float32.
        vision_layers: blocks of the tower that are used. EVA has 40, of which the released code builds 39.
        patch_group_size: consecutive patch tokens that make one image token.
        lora_alpha: of the checkpoint's LoRA; tensors cannot tell.
        lora_dropout: for those who train on.
        dtype: of the base's frozen tensors; by default as they are stored.
        base_name: what the adapter calls its base, such as a Hub id; by default the base's path.
        seed: of the projector's start when no checkpoint has one.
        max_shard_bytes: largest weight file of the base.

    Raises:
        ConversionError: what was found, what was expected, what to do. No folder is left behind.
    """
    targets = _checked_targets(llm, vision, base, out, adapter_out, checkpoints)
    collected = Collection()
    if vision is not None:
        _add_tower(collected, vision, vision_layers)
        if checkpoints:  # their projector was trained behind their own `ln_vision`, or behind a fresh one
            collected.leave_out(name for name in collected.origin if name.startswith(POST_LAYERNORM))
    if llm is not None:
        collected.add(read_folder(llm), vision_layers=vision_layers, spell=lambda name: f"llama_model.{name}")
    for path in checkpoints:
        collected.add(read_checkpoint(Path(path)), vision_layers=vision_layers)

    if base is not None:
        skeleton, processor = open_base(base)
        body = {}
    else:
        assert llm is not None
        tower = tower_config(collected, num_attention_heads, image_size)
        config, processor = config_and_processor(llm, tower, patch_group_size)
        _fit_positions(collected, config)
        _start_missing(collected, config, seed)
        _cast(collected, dtype)
        skeleton = build_skeleton(config, dtype or _dtype_of(collected))
        skeleton.generation_config = greedy_generation(llm, processor)
        body = _base_loaders(collected, skeleton)
    adapter = _adapter_loaders(collected, skeleton) if adapter_out is not None else {}
    needed = body.keys() | {name if ".lora_" in name else name.removeprefix(ADAPTER) for name in adapter}
    collected.leave_out(collected.origin.keys() - needed)

    report = _report(collected)
    manifests: dict[str, dict[str, Any]] = {}
    with staged(targets, [*body.values(), *adapter.values()]) as folders:
        if out is not None:
            settings = {"vision_layers": vision_layers, "dtype": str(dtype or "as stored"), "fresh_parts_seed": seed}
            _write_base(folders[0], skeleton, processor, body, max_shard_bytes)
            manifests["base"] = write_manifest(folders[0], {**report, "settings": settings})
        if adapter_out is not None:
            settings = _adapter_config(adapter, lora_alpha, lora_dropout)
            settings["base_model_name_or_path"] = base_name or _lasting_name(base or targets[0])
            _write_adapter(folders[-1], settings, processor, adapter)
            base_hash = manifests["base"]["weights_sha256"] if base is None else weights_sha256(base)
            manifests["adapter"] = write_manifest(folders[-1], {**report, "base_weights_sha256": base_hash})
    return manifests


def _checked_targets(
    llm: str | Path | None,
    vision: str | Path | None,
    base: str | Path | None,
    out: str | Path | None,
    adapter_out: str | Path | None,
    checkpoints: Sequence[str | Path],
) -> list[Path]:
    """Return the folders to be written, after refusing combinations that say too little or too much."""
    if (out is None) == (base is None) or (out is None) != (llm is None) or (base is not None and vision is not None):
        raise ConversionError(
            "Expected either a language model, a tower and a place for the new base model (llm, vision, out), or a "
            "base model that exists (base)."
        )
    if out is None and adapter_out is None:
        raise ConversionError("There is nothing to write: expected a place for the adapter (adapter_out).")
    if adapter_out is not None and not checkpoints:
        raise ConversionError("An adapter needs a MiniGPT-v2 or PeFoMed checkpoint; expected at least one.")
    targets = [Path(target) for target in (out, adapter_out) if target is not None]
    require_new(targets)
    return targets


def _add_tower(collected: Collection, vision: str | Path, vision_layers: int) -> None:
    """Add a tower: a `.pth` file of EVA or LAVIS, or the one inside BLIP-2's weights."""
    if Path(vision).is_file():
        source = read_checkpoint(Path(vision))
        is_bare = not any(name.startswith("visual_encoder.") for name in source.loaders)
        prefix = "visual_encoder." if is_bare else ""
        collected.add(source, vision_layers=vision_layers, spell=lambda name: canonical_name(prefix + name))
    elif Path(vision).suffix in (".pth", ".pt", ".bin"):
        raise ConversionError(f"{vision}: there is no such file; expected eva_vit_g.pth.")
    else:
        source = read_folder(vision, wanted=lambda name: name.startswith("vision_model."))
        if not source.loaders:
            raise ConversionError(f"{vision}: found no vision_model.*, expected the tower of a BLIP-2 model.")
        collected.add(
            source,
            vision_layers=vision_layers,
            spell=str,
            place=lambda name: TOWER + name.removeprefix("vision_model."),
        )


def _fit_positions(collected: Collection, config: PeFoMedConfig) -> None:
    """Interpolate position embeddings of another image size; the result stays in float32, as in the released code."""
    load = collected.loaders[POSITIONS]
    grid, stored = math.isqrt(config.num_patches), load().shape[1] - 1
    if stored == config.num_patches:
        return
    if math.isqrt(stored) ** 2 != stored:
        raise ConversionError(
            f"{collected.origin[POSITIONS]}: found {stored} patch positions, expected a square number of them."
        )
    collected.loaders[POSITIONS] = partial(interpolated_positions, load, grid)


def interpolated_positions(load: Loader, grid: int) -> torch.Tensor:
    """Return position embeddings (1, 1 + grid^2, width) in float32, interpolated from those of another grid.

    Source: the released code: bicubic, half-pixel centres, in float32; the CLS token keeps its own.
    """
    positions = load().float()
    side = math.isqrt(positions.shape[1] - 1)
    patches = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def _start_missing(collected: Collection, config: PeFoMedConfig, seed: int) -> None:
    """Start what no source holds: the tower's last LayerNorm as the released code does, and the projector at random.

    Source: the released code freezes `ln_vision` as it was made, at ones and zeros, and saves trained tensors only.
    """
    width, names = config.vision_config.hidden_size, (POST_LAYERNORM + "weight", POST_LAYERNORM + "bias")
    if not collected.loaders.keys() & set(names):
        affine = {names[0]: torch.ones(width), names[1]: torch.zeros(width)}
        collected.start(affine, "starts at ones and zeros, as in the released code")
    if not any(name.startswith(PROJECTOR) for name in collected.loaders):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            projector = torch.nn.Linear(width * config.patch_group_size, config.text_config.hidden_size)
        start = {PROJECTOR + key: value.detach() for key, value in projector.named_parameters()}
        collected.start(start, f"starts at random (seed {seed})")


def _dtype_of(collected: Collection) -> torch.dtype:
    """Return the dtype that most of the language model is stored in."""
    stored = [load().dtype for name, load in collected.loaders.items() if name.startswith(LANGUAGE_MODEL)]
    return max(set(stored), key=stored.count)


def _cast(collected: Collection, dtype: torch.dtype | None) -> None:
    """Change the frozen floating-point tensors to a dtype; adapter and projector stay as they are."""
    if dtype is not None:
        for name, load in collected.loaders.items():
            if not name.startswith((ADAPTER, PROJECTOR)):
                collected.loaders[name] = partial(_converted, load, dtype)


def _converted(load: Loader, dtype: torch.dtype) -> torch.Tensor:
    return load().to(dtype)


def _base_loaders(collected: Collection, skeleton: PeFoMedForConditionalGeneration) -> dict[str, Loader]:
    """Return the base model's tensors in the model's order.

    Raises:
        ConversionError: tensors are missing, have other shapes, or have no place.
    """
    expected = shapes_of(skeleton)
    if skeleton.config.tie_word_embeddings and "lm_head.weight" in collected.origin:
        collected.leave_out(["lm_head.weight"])
    homeless = [name for name in collected.loaders if name not in expected and not name.startswith(ADAPTER)]
    if homeless:
        raise ConversionError(
            f"{len(homeless)} tensors have no place in a model of this configuration: "
            f"{', '.join(grouped_names(map(shown, homeless)))}. Expected files of one architecture; check that "
            "tower, language model and checkpoint belong together."
        )
    require_shapes(collected.loaders, expected, collected.origin)
    return {name: collected.loaders[name] for name in expected}


def _adapter_loaders(collected: Collection, skeleton: PeFoMedForConditionalGeneration) -> dict[str, Loader]:
    """Return the adapter's tensors under PEFT's names.

    Raises:
        ConversionError: one of them is missing, has another shape, or has no place.
    """
    found = {name: load for name, load in collected.loaders.items() if name.startswith(ADAPTER)}
    ranks = [load().shape[0] for name, load in found.items() if ".lora_A." in name]
    expected = adapter_shapes(found, ranks[0] if ranks else 0, skeleton)
    homeless = found.keys() - expected.keys()
    if homeless:
        raise ConversionError(
            f"{len(homeless)} LoRA tensors have no place in the base model: "
            f"{', '.join(grouped_names(map(shown, sorted(homeless))))}. Expected LoRA of a model of its size."
        )
    projector = {name: load for name, load in collected.loaders.items() if name.startswith(PROJECTOR)}
    found |= {ADAPTER + name: load for name, load in projector.items() if name in collected.origin}
    origin = collected.origin | {ADAPTER + name: label for name, label in collected.origin.items()}
    require_shapes(found, expected, origin)
    return {name: found[name] for name in sorted(expected)}


def _adapter_config(adapter: Mapping[str, Loader], lora_alpha: int, lora_dropout: float) -> dict[str, Any]:
    """Return what PEFT reads from `adapter_config.json`; keys that it does not find have its defaults."""
    modules = sorted({name.rsplit(".", 3)[1] for name in adapter if ".lora_" in name})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": next(load().shape[0] for name, load in adapter.items() if ".lora_A." in name),
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "bias": "none",
        "target_modules": rf".*language_model.*\.({'|'.join(modules)})",
        "modules_to_save": [PROJECTOR.split(".")[1]],
        "inference_mode": True,
    }


def _lasting_name(base: str | Path) -> str:
    """Return a folder's absolute path, so that the adapter loads from any working directory, or a Hub id as it is."""
    return str(Path(base).resolve()) if isinstance(base, Path) or Path(base).is_dir() else str(base)


def _write_base(
    folder: Path,
    skeleton: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    body: Mapping[str, Loader],
    max_shard_bytes: int,
) -> None:
    """Write a base model; it opens, and has the tensors that its configuration asks for, or an error is raised."""
    skeleton.save_pretrained(folder, state_dict={})  # configuration and code; the weights follow
    processor.save_pretrained(folder)
    write_shards(folder, body, max_shard_bytes)
    reopened, _ = open_base(folder)
    require_shapes(read_folder(folder).loaders, shapes_of(reopened), {})


def _write_adapter(
    folder: Path, settings: dict[str, Any], processor: PeFoMedProcessor, adapter: Mapping[str, Loader]
) -> None:
    """Write an adapter as PEFT does, with its processor."""
    write_json(folder / ADAPTER_CONFIG, settings)
    write_safetensors(folder / ADAPTER_WEIGHTS, adapter)
    compare_safetensors(folder / ADAPTER_WEIGHTS, adapter)
    processor.save_pretrained(folder)


def _report(collected: Collection) -> dict[str, Any]:
    """Return what was used of each source and what was not, and the sha256 of each source's files."""
    sources = {}
    for label, found in collected.reports.items():
        sources[label] = {
            "files": {path.name: sha256_of(path) for path in found["files"]},
            "used": found["used"],
            "dropped": {reason: grouped_names(names) for reason, names in found["dropped"].items()},
            "unused": grouped_names(map(shown, found["unused"])),
            "replaced": grouped_names(map(shown, found["replaced"])),
        }
    return {"sources": sources, "fresh": collected.fresh}

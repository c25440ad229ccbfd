# SPDX-License-Identifier: Apache-2.0
"""Convert files of the released sizes with the real command: how long it takes, and how much memory.

    python -m pefomed_recipes.benchmarks.full_size_conversion --folder FOLDER

Writes EVA ViT-g, LLaMA-2-7B (float16) and a checkpoint (LoRA r 64, projector) with random numbers in the released
layout, converts them, looks at the result, deletes everything again, and keeps the numbers. Needs 34 GB of disk.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaTokenizer

from modeling_pefomed import PeFoMedConfig
from modeling_pefomed.weight_files_pefomed import read_checkpoint, read_folder, write_shards
from modeling_pefomed.weight_names_pefomed import LANGUAGE_MODEL, POSITIONS, POST_LAYERNORM, reference_name
from modeling_pefomed.weight_shapes_pefomed import adapter_shapes, build_skeleton, shapes_of

from ..training.provenance import code_commit, environment, write_json
from .measuring import RESULTS, measured

NAME = "full_size_conversion--fp16"
MAX_SHARD_BYTES = 9_980_000_000  # LLaMA-2-7B as it is published: two files


@dataclass
class Sizes:
    """The sizes to convert; the defaults are the released ones."""

    config: PeFoMedConfig
    stored_grid: int = 16  # EVA's position embeddings are those of 224 px
    rank: int = 64


@functools.cache
def pattern(dtype: torch.dtype) -> torch.Tensor:
    """Return 4,194,304 random numbers of the size that weights have."""
    return torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)


def numbers(shape: torch.Size, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Return a tensor of the shape: the same random numbers over and over, quick to make."""
    repeats = -(-shape.numel() // pattern(dtype).numel())
    return pattern(dtype).repeat(repeats)[: shape.numel()].clone().reshape(shape)  # torch.save writes whole storages


def write_files(folder: Path, sizes: Sizes) -> None:
    """Write `eva_vit_g.pth`, `checkpoint.pth` and `llama/` in the released layout."""
    skeleton = build_skeleton(sizes.config, torch.float16)
    shapes = shapes_of(skeleton)
    vision: Any = sizes.config.vision_config
    eva: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        if name.startswith("model.vision_tower.") and not name.startswith(POST_LAYERNORM):
            if name == POSITIONS:
                shape = torch.Size([1, 1 + sizes.stored_grid**2, vision.hidden_size])
            bare = reference_name(name).removeprefix("visual_encoder.")
            if bare.endswith("attn.qkv.bias"):
                for part in ("q_bias", "v_bias"):
                    eva[bare.replace("qkv.bias", part)] = numbers(torch.Size([vision.hidden_size]))
            else:
                eva[bare] = numbers(shape)
    last = f"blocks.{vision.num_hidden_layers - 1}."
    unused = {name.replace(last, f"blocks.{vision.num_hidden_layers}."): name for name in eva if name.startswith(last)}
    eva |= {name: eva[source].clone() for name, source in unused.items()}  # EVA's 40th block
    torch.save(eva, folder / "eva_vit_g.pth")

    trained = adapter_shapes([], sizes.rank, skeleton)
    model = {reference_name(name): numbers(shape, torch.float32) for name, shape in trained.items()}
    state = {n: {"exp_avg": t.clone(), "exp_avg_sq": t.clone()} for n, t in enumerate(model.values())}
    torch.save({"model": model, "optimizer": {"state": state}, "epoch": 4}, folder / "checkpoint.pth")

    llama = folder / "llama"
    llama.mkdir()
    language_model = {name: shape for name, shape in shapes.items() if name.startswith((LANGUAGE_MODEL, "lm_head."))}
    write_shards(
        llama,
        {n.replace(LANGUAGE_MODEL, "model.", 1): partial(numbers, shape) for n, shape in language_model.items()},
        MAX_SHARD_BYTES,
    )
    text_config: Any = sizes.config.text_config
    text_config.dtype = "float16"
    text_config.save_pretrained(llama)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [f"piece{number}" for number in range(len(pieces), text_config.vocab_size)]
    LlamaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]).save_pretrained(llama)


def check(folder: Path, sizes: Sizes) -> None:
    """Look at the result from outside: open the adapter as users do, and compare some tensors with their files.

    Raises:
        AssertionError: something is not as it was in the files.
    """
    started = time.monotonic()
    model = AutoModelForImageTextToText.from_pretrained(folder / "adapter")
    seconds = time.monotonic() - started
    counts = {"tower": 0, "projector": 0, "language_model": 0, "lora": 0}
    for name, parameter in model.named_parameters():
        part = "lora" if ".lora_" in name else "tower" if "vision_tower" in name else "language_model"
        part = "projector" if "multi_modal_projector.modules_to_save" in name else part
        if "original_module" not in name:
            counts[part] += parameter.numel()
    eva = read_checkpoint(folder / "eva_vit_g.pth").loaders
    base = read_folder(folder / "base").loaders
    vision: Any = sizes.config.vision_config
    block = vision.num_hidden_layers - 1
    assert torch.equal(
        eva[f"blocks.{block}.mlp.fc2.weight"](), base[f"model.vision_tower.encoder.layers.{block}.mlp.fc2.weight"]()
    )
    assert torch.equal(
        base["lm_head.weight"](), numbers(shapes_of(build_skeleton(sizes.config, torch.float16))["lm_head.weight"])
    )
    with safe_open(folder / "adapter" / "adapter_model.safetensors", framework="pt") as weights:
        saved = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 (no mapping)
    assert saved == counts["lora"] + counts["projector"]
    write_json(folder / "check.json", {"parameters": counts, "trained": saved, "load_seconds": round(seconds, 1)})


def run(command: list[str], result: Path) -> None:
    """Run a command and write what it cost."""
    write_json(result, measured(command))


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in a new process: a command counts the largest memory of whoever starts it as its own.

    Raises:
        RuntimeError: it failed.
    """
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}")


def measure(folder: Path, sizes: Sizes, *options: str) -> dict[str, Any]:
    """Write the files, convert them, check the result, delete all of it; return the numbers.

    Args:
        folder: a new folder.
        sizes: what to convert.
        options: for `pefomed convert`, where sizes are not the released ones.
    """
    folder.mkdir(parents=True)
    try:
        in_own_process(write_files, folder, sizes)
        parts = {
            "tower": [folder / "eva_vit_g.pth"],
            "checkpoint": [folder / "checkpoint.pth"],
            "language_model": sorted((folder / "llama").glob("*.safetensors")),
        }
        mib = {name: round(sum(path.stat().st_size for path in paths) / 2**20, 1) for name, paths in parts.items()}
        command = [sys.executable, "-m", "pefomed_recipes.cli", "convert", f"--llm={folder / 'llama'}"]
        command += [f"--vision={folder / 'eva_vit_g.pth'}", f"--checkpoint={folder / 'checkpoint.pth'}"]
        command += [f"--out={folder / 'base'}", f"--adapter-out={folder / 'adapter'}", *options]
        in_own_process(run, command, folder / "cost.json")
        written = sum(path.stat().st_size for name in ("base", "adapter") for path in (folder / name).iterdir())
        in_own_process(check, folder, sizes)
        cost, found = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("cost", "check"))
    finally:
        shutil.rmtree(folder)
    ratio = round(cost["peak_memory_mib"] / max(mib.values()), 3)
    return {"conversion": cost, "files_mib": mib, "written_mib": round(written / 2**20, 1)} | {
        "peak_memory_per_largest_part": ratio,
        "opened": found,
    }


def main() -> None:
    """Measure the released sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder on a disk with 34 GB of room")
    folder = parser.parse_args().folder
    if folder.exists():
        parser.error(f"{folder} exists; name a new folder, which is deleted at the end")
    commit = code_commit()  # before the result file changes the tree
    text_config = LlamaConfig(max_position_embeddings=4096, rms_norm_eps=1e-5)
    result = measure(folder, Sizes(PeFoMedConfig(text_config=text_config.to_dict())))
    result |= {"code_commit": commit, "environment": environment()}
    write_json(RESULTS / f"{NAME}.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

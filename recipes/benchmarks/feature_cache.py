# SPDX-License-Identifier: Apache-2.0
"""Measure the feature cache: its cost for up to 100,000 images, its reading at the paper's sizes, the memory it saves.

    python -m pefomed_recipes.benchmarks.feature_cache

`growth` has a tiny tower, so that what is measured is the cache: CPU seconds of computing and writing, of computing
nothing new, of opening and of looking every image up. `reading` is of the paper's 1,024 x 1,408 features in bfloat16,
from files that the system has in memory. `memory` is that of fresh processes that hold one base, whole and without its
tower. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .measuring import RESULTS

ROWS = (1_000, 10_000, 100_000)
IMAGE_PX, PATCH_PX = 16, 8
READINGS = 7
PAPER_IMAGES, PAPER_SHAPE = 64, (1024, 1408)


def save_base(folder: Path, *, image_px: int, patch_px: int, width: int, layers: int) -> Path:
    """Save a base model with a tower of these sizes, random weights and a small language model."""
    from transformers import Blip2VisionConfig, LlamaConfig, LlamaTokenizer

    from modeling_pefomed import (
        PeFoMedConfig,
        PeFoMedForConditionalGeneration,
        PeFoMedImageProcessor,
        PeFoMedProcessor,
    )

    heads = {"num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 4 * width}
    vision = Blip2VisionConfig(
        image_size=image_px, patch_size=patch_px, hidden_size=width, initializer_range=0.02, **heads
    )
    text = LlamaConfig(
        vocab_size=1000, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    config = PeFoMedConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=1000)
    PeFoMedForConditionalGeneration(config).save_pretrained(folder)
    PeFoMedProcessor(
        image_processor=PeFoMedImageProcessor(size={"height": image_px, "width": image_px}),
        tokenizer=LlamaTokenizer(vocab={"<unk>": 0, "<s>": 1, "</s>": 2}, merges=[]),
        image_seq_length=config.image_seq_length,
    ).save_pretrained(folder)
    return folder


def write_images(folder: Path, count: int) -> list[str]:
    """Write different small PNG files."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    paths = [str(folder / f"{number}.png") for number in range(count)]
    for path in paths:
        pixels = generator.integers(0, 256, (IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, compress_level=0)
    return paths


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU time that some work takes."""
    started = time.process_time()
    work()
    return round(time.process_time() - started, 3)


def growth(count: int) -> dict[str, Any]:
    """Measure every part of a cache's life for a number of images."""
    import torch

    from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

    from ..models.feature_building import build_features
    from ..models.feature_cache import FeatureCache
    from ..records import Sample

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = save_base(root / "base", image_px=IMAGE_PX, patch_px=PATCH_PX, width=32, layers=1)
        images = write_images(root / "images", count)
        time.sleep(3)  # files that have just changed are not remembered
        samples = [Sample(path, "vqa", [path], "", [""]) for path in images]
        model = PeFoMedForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
        image_processor = PeFoMedProcessor.from_pretrained(base).image_processor
        found: dict[str, Any] = {"images": count}

        def build() -> None:
            with contextlib.redirect_stderr(io.StringIO()):
                build_features(base, samples, root / "features", dtype=torch.float32)

        def open_cache() -> FeatureCache:
            return FeatureCache.open(root / "features", model, image_processor)

        found["build_cpu_seconds"] = cpu_seconds(build)
        found["nothing_new_cpu_seconds"] = cpu_seconds(build)
        found["open_cpu_seconds"] = cpu_seconds(open_cache)
        cache = open_cache()
        found["look_up_all_cpu_seconds"] = cpu_seconds(lambda: cache.missing(images))
        chosen = random.Random(0).choices(images, k=1000)
        cache.features(chosen)
        found["read_microseconds_per_image"] = round(1e3 * cpu_seconds(lambda: cache.features(chosen)), 1)
        return found


def reading() -> dict[str, Any]:
    """Measure reading features of the paper's size, in batches of 4 images at random places."""
    import torch

    from ..models.feature_shards import find_shards, images_per_shard, write_shard

    features = torch.randn(PAPER_IMAGES, *PAPER_SHAPE).to(torch.bfloat16)
    size = features[0].numel() * features.element_size()
    with tempfile.TemporaryDirectory() as folder:
        rows = images_per_shard(size)
        for start in range(0, PAPER_IMAGES, rows):
            part = features[start : start + rows]
            write_shard(Path(folder), "", [str(start + row) for row in range(len(part))], part)
        shards, _ = find_shards(Path(folder), "")
        mapped = [row for shard in shards for row in shard.features()]
        order = random.Random(0).sample(range(PAPER_IMAGES), PAPER_IMAGES)

        def read_all() -> None:
            for start in range(0, PAPER_IMAGES, 4):
                torch.stack([mapped[place] for place in order[start : start + 4]])

        read_all()
        seconds = [cpu_seconds(read_all) for _ in range(READINGS)]
        return {
            "bytes_per_image": size,
            "ms_per_image": round(1e3 * statistics.median(seconds) / PAPER_IMAGES, 3),
        }


def memory(base: Path, without_tower: bool) -> dict[str, float]:
    """Load a base and return this process's growth and its peak, in MiB."""
    import torch

    from ..models.bases import load_base_model
    from .reader_memory import memory_mib

    before = memory_mib("VmRSS")
    model = load_base_model(base, torch.float32, without_tower=without_tower)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.sum()  # weights are mapped files, and take memory when they are used
    held, peak = memory_mib("VmRSS"), memory_mib("VmHWM")
    return {
        "parameters": parameters,
        "held_mib": round(held - before, 1),
        "peak_mib": round(peak - before, 1),
    }


def measure_memory() -> dict[str, Any]:
    """Measure a base with a tower of 86 million weights in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        save_base(Path(folder), image_px=224, patch_px=16, width=768, layers=12)
        command = [sys.executable, "-m", "pefomed_recipes.benchmarks.feature_cache", "--base", folder]
        return {
            name: json.loads(subprocess.run([*command, *more], check=True, capture_output=True, text=True).stdout)
            for name, more in {"whole": [], "without_tower": ["--without-tower"]}.items()
        }


def main() -> None:
    """Measure everything and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--without-tower", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.base:
        print(json.dumps(memory(arguments.base, arguments.without_tower)))
        return
    from ..training.provenance import code_commit, environment, write_json

    measured = {
        "growth": [growth(count) for count in ROWS],
        "reading": reading(),
        "memory": measure_memory(),
    }
    result = {**measured, "code_commit": code_commit(), "environment": environment()}
    write_json(RESULTS / "feature_cache.json", result)
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The table of measured speed-ups, from the result files: `python -m pefomed_recipes.benchmarks.speed_table`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from .measuring import RESULTS

TRAIN, GENERATE, MEMORY, PIPELINE = (
    "bench_train--smol135",
    "bench_generate--smol135",
    "bench_memory--smol135",
    "bench_pipeline--micro",
)
TRAIN_MICRO, GENERATE_MICRO, PAPER = "bench_train--micro", "bench_generate--micro", "bench_train--paper"
SMOL, MICRO = "135M, 8 questions an image", "VQA-RAD's questions an image, small model"
REFERENCE, STOCK = "released code's way", "TRL, stock LLaVA"
# What is measured, on what, compared with what, and where the ratio stands: a result file, then the keys in it.
ROWS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("training step, packed", SMOL, REFERENCE, (TRAIN, "steps", "k8", "speedups", "packed")),
    (
        "training step, packed, features cached",
        SMOL,
        REFERENCE,
        (TRAIN, "steps", "k8", "speedups", "packed and cached"),
    ),
    ("training loop from JPEG files, cached", SMOL, STOCK, (TRAIN, "loop", "speedups", "packed and cached")),
    ("training step, packed", MICRO, REFERENCE, (TRAIN_MICRO, "steps", "vqa_rad", "speedups", "packed")),
    ("generation, prefix once", SMOL, REFERENCE, (GENERATE, "generation", "k8", "speedups", "prefix once")),
    (
        "generation, prefix once, features cached",
        SMOL,
        REFERENCE,
        (GENERATE, "generation", "k8", "speedups", "prefix once and cached"),
    ),
    (
        "generation, prefix once, features cached",
        MICRO.replace("questions", "test questions"),
        REFERENCE,
        (GENERATE_MICRO, "generation", "vqa_rad", "speedups", "prefix once and cached"),
    ),
    ("memory of the loss", "vocabulary of 32,000", "logits of every position", (MEMORY, "loss", "ratio")),
    (
        "decoding and collating, packed",
        "JPEG of 512 px",
        STOCK,
        (PIPELINE, "collating", "JPEG of 512 px", "speedups", "packed"),
    ),
)
NO_GPU = "not measured: no GPU was at hand"


def speed_table(results: Path = RESULTS) -> str:
    """Return the Markdown table; a ratio whose file is not there is said to be not measured."""
    lines = ["| what | on | compared with | times less |", "| --- | --- | --- | ---: |"]
    for what, on, plain, (name, *keys) in ROWS:
        found = _value(results / f"{name}.json", keys)
        lines.append(f"| {what} | {on} | {plain} | {'not measured' if found is None else f'{found:.1f}'} |")
    paper = _value(results / f"{PAPER}.json", ["steps", "vqa_rad", "speedups", "packed"])
    told = NO_GPU if paper is None else f"{paper:.1f}"
    lines.append(f"| training step, packed | the paper's 7B and ViT-g on a GPU | {REFERENCE} | {told} |")
    return "\n".join(lines)


def _value(path: Path, keys: list[str]) -> float | None:
    if not path.is_file():
        return None
    return reduce(lambda content, key: content[key], keys, json.loads(path.read_text(encoding="utf-8")))


def describe(result: Mapping[str, Any]) -> str:
    """Return a result as text: each number under the names that lead to it; settings and versions are left out."""
    lines: list[str] = []

    def show(content: Any, depth: int, name: str) -> None:
        if isinstance(content, Mapping):
            lines.append(f"{'  ' * depth}{name}")
            for key, value in content.items():
                show(value, depth + 1, str(key))
        elif isinstance(content, list) and content and isinstance(content[0], Mapping):
            for value in content:
                show(value, depth, name)
        else:
            lines.append(f"{'  ' * depth}{name}: {content}")

    idle = ("benchmark", "preset", "environment", "code_commit", "finished")
    title = f"{result['benchmark']}, preset {result['preset']['name']}"
    show({key: value for key, value in result.items() if key not in idle}, 0, title)
    return "\n".join(lines)


if __name__ == "__main__":
    print(speed_table())

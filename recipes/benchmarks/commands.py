# SPDX-License-Identifier: Apache-2.0
"""What `pefomed bench` runs: each benchmark at one preset, and its result file."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..training.provenance import code_commit
from .generation import measure_generation
from .memory import cards, measure_cards, measure_loss, measure_step
from .pipeline import GROWTH, measure_collating, measure_growth
from .presets import Preset, base_dtype, device, find_preset
from .timing import ROUNDS, save
from .trainer_loop import measure_loops
from .training import measure_steps

FULL_ROUNDS = 11
# The whole table on a CPU: benchmark and preset.
TABLE = (
    ("train", "smol135"),
    ("train", "micro"),
    ("generate", "smol135"),
    ("generate", "micro"),
    ("memory", "smol135"),
    ("pipeline", "micro"),
)


def train(preset: Preset, rounds: int, full: bool) -> dict[str, Any]:
    """Measure training; on a preset that one command measures as a whole, everything else, too."""
    result: dict[str, Any] = {"steps": measure_steps(preset, rounds, alone=full or preset.name != "smol135")}
    result["loop"] = measure_loops(preset, rounds)
    if preset.whole:
        free()
        result["cards_measured"] = measure_cards(preset)
        free()
        result |= generate(preset, rounds, full) | {"cards": cards()}
    return result


def generate(preset: Preset, rounds: int, full: bool) -> dict[str, Any]:
    """Measure generation."""
    return {"generation": measure_generation(preset, rounds)}


def memory(preset: Preset, rounds: int, full: bool) -> dict[str, Any]:
    """Measure memory, and compute what fits which card."""
    return {"loss": measure_loss(), "step": measure_step(preset), "cards": cards()}


def pipeline(preset: Preset, rounds: int, full: bool) -> dict[str, Any]:
    """Measure the way of the data."""
    return {"collating": measure_collating(preset, rounds), "growth": measure_growth(preset, GROWTH)}


BENCHMARKS: dict[str, Callable[[Preset, int, bool], dict[str, Any]]] = {
    "train": train,
    "generate": generate,
    "memory": memory,
    "pipeline": pipeline,
}
DEFAULT_PRESETS = dict(reversed(TABLE))


def free() -> None:
    """Give the memory of earlier models back: trainers refer to themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run(what: str, preset_name: str | None, json_path: Path | None, full: bool) -> list[dict[str, Any]]:
    """Run one benchmark, or with `all` the whole table; return the results.

    Result files in `results/` are written by presets of full size only.

    Raises:
        ConfigError: an unknown preset, or one that needs a GPU where there is none.
    """
    if sys.stderr.isatty():
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # CPU seconds are those of one thread
    if device().type == "cpu":
        torch.set_num_threads(1)
    chosen = TABLE if what == "all" else ((what, preset_name or DEFAULT_PRESETS[what]),)
    results = []
    commit = code_commit()  # before result files change the tree
    for name, preset_of in chosen:
        preset = find_preset(preset_of)
        rounds = 1 if preset.name == "tiny" else FULL_ROUNDS if full else ROUNDS
        result = {
            "benchmark": name,
            "preset": asdict(preset),
            "code_commit": commit,
            "dtype": str(base_dtype()).removeprefix("torch."),
        }
        result |= BENCHMARKS[name](preset, rounds, full)
        free()
        results.append(save(f"bench_{name}--{preset.name}", result, json_path, full_size=preset.name != "tiny"))
    return results

# SPDX-License-Identifier: Apache-2.0
"""Measure how reading images grows with processes: 1, 2 and 4 of them, as far as there are cores.

    python -m pefomed_recipes.benchmarks.image_reading

The images are PNG files of 1,500 x 1,800 pixels, in size like radiographs, half of them with 16 bits. What is timed is
what `pefomed data check` does with each: open, decode, fingerprint.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.image_facts import examine_images
from .measuring import RESULTS

IMAGES, SIZE_PX, REPEATS = 200, (1500, 1800), 5
WORKERS = (1, 2, 4)


def write_images(folder: Path, images: int, size: tuple[int, int]) -> list[str]:
    """Write soft blobs with some noise, 8 and 16 bits in turn, and return their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(images):
        blobs = Image.fromarray(rng.random((9, 9), dtype=np.float32)).resize(size, Image.Resampling.BICUBIC)
        tones = np.clip(np.asarray(blobs) + rng.normal(0, 0.01, size[::-1]), 0, 1)
        paths.append(str(folder / f"{number}.png"))
        pixels = (tones * 65535).astype(np.uint16) if number % 2 else (tones * 255).astype(np.uint8)
        Image.fromarray(pixels).save(paths[-1], compress_level=1)
    return paths


def measure(paths: list[str], workers: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """Return for each number of processes the median images a second and its ratio to one process; the numbers take
    turns, so that other work on the machine meets all of them alike."""
    seconds: dict[int, list[float]] = {number: [] for number in workers}
    for _ in range(repeats):
        for number in workers:
            started = time.perf_counter()
            states = [facts.state for _, facts in examine_images(paths, workers=number)]
            seconds[number].append(time.perf_counter() - started)
            assert states == ["good"] * len(paths)
    rates = {number: len(paths) / statistics.median(taken) for number, taken in seconds.items()}
    return [
        {"workers": number, "images_per_second": round(rate, 1), "ratio_to_one": round(rate / rates[workers[0]], 2)}
        for number, rate in rates.items()
    ]


def main() -> None:
    """Write the images, read them with each number of processes, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    images = parser.parse_args().images
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), images, SIZE_PX)
        runs = measure(paths, tuple(number for number in WORKERS if number <= cores), REPEATS)
    result: dict[str, Any] = {"images": images, "size_px": SIZE_PX, "cores": cores, "runs": runs}
    print(json.dumps(result, indent=2))
    if images == IMAGES:
        from ..training.provenance import code_commit, environment, write_json

        write_json(
            RESULTS / "image_reading.json", result | {"code_commit": code_commit(), "environment": environment()}
        )


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Measure how the cost of `predict` grows from 1,000 to 100,000 answers, ten to an image, with a tiny model.

    python -m pefomed_recipes.benchmarks.prediction_growth

All of the way is in it: reading JPEG files, prefilling images, decoding, keeping answers as they come, writing the
file. Sizes grow within one process, so that the peak of memory is that of all sizes until then.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ..inference.predicting import predict
from ..records import Sample
from .measuring import RESULTS
from .plain_ways import ready_to_answer
from .presets import build_model, build_processor, draw_samples, find_preset, write_images

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
QUESTIONS_PER_IMAGE = 10


def measure(sizes: tuple[int, ...], folder: Path) -> list[dict[str, Any]]:
    """Return CPU milliseconds an answer, the peak of memory and the size of the file, for each number of answers."""
    preset = find_preset("tiny")
    processor = build_processor(preset)
    model = ready_to_answer(build_model(preset, processor), processor)
    images = write_images(folder / "images", max(sizes) // QUESTIONS_PER_IMAGE, preset.image_px)
    samples: list[Sample] = draw_samples((QUESTIONS_PER_IMAGE,) * len(images), images)
    predict(folder, samples[: 2 * QUESTIONS_PER_IMAGE], folder / "warm.jsonl", model_and_processor=(model, processor))
    rows = []
    for size in sizes:
        out = folder / f"{size}.jsonl"
        started = time.process_time()
        predict(folder, samples[:size], out, model_and_processor=(model, processor))
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        rows.append(
            {
                "answers": size,
                "cpu_seconds": round(seconds, 1),
                "cpu_ms_per_answer": round(1000 * seconds / size, 3),
                "peak_memory_mib": round(peak),
                "file_mib": round(out.stat().st_size / 2**20, 1),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def main() -> None:
    """Measure all sizes and write the result file."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {"questions_per_image": QUESTIONS_PER_IMAGE, "rows": measure(SIZES, Path(folder))}
    from ..training.provenance import code_commit, environment, write_json

    write_json(
        RESULTS / "prediction_growth.json", result | {"code_commit": code_commit(), "environment": environment()}
    )


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""`pefomed bench generate`: answers about images, ours beside the released code's way and a stock model's.

Before anything is timed, ours and the released code's way must give the same answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data.images import load_image
from ..errors import PeFoMedError
from ..inference.generate import MAX_NEW_TOKENS, Request, generate_answers
from ..records import Sample
from .plain_ways import build_stock, ready_to_answer, reference_answers, stock_answers
from .presets import Preset, base_dtype, build_model, build_processor, draw_samples, open_features, write_images
from .timing import interleaved, speedup, summary

Answers = dict[str, str]


def check_equal(found: Answers, expected: Answers) -> dict[str, Any]:
    """Return how many answers were compared, how many of them are distinct, and how many differ: in bfloat16, where
    the order of sums decides between tokens that are nearly as likely, some may.

    Raises:
        PeFoMedError: in float32, an answer is another.
    """
    other = sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
    if other and base_dtype() == torch.float32:
        raise PeFoMedError(
            f"{len(other)} of {len(expected)} answers differ from those of the released code's way, such as that of "
            f"{other[0]}; expected none. Nothing was timed."
        )
    return {"answers": len(expected), "distinct": len(set(expected.values())), "differing": len(other)}


def answer_ways(preset: Preset, samples: list[Sample], folder: Path) -> dict[str, Callable[[], Answers]]:
    """Return the ways to answer all questions, by name, on decoded images."""
    limit = MAX_NEW_TOKENS["vqa"]
    processor = build_processor(preset)
    model = ready_to_answer(build_model(preset, processor), processor)
    peft_stock, stock_processor = build_stock(preset)
    stock = ready_to_answer(peft_stock, stock_processor)
    features = open_features(model, processor, samples, folder)
    opened = {path: load_image(path) for sample in samples for path in sample.image_paths}
    by_path = [Request(sample.id, "vqa", sample.instruction, tuple(sample.image_paths)) for sample in samples]
    requests = [replace(request, images=tuple(opened[str(image)] for image in request.images)) for request in by_path]
    return {
        "reference": lambda: dict(reference_answers(model, processor, requests, limit)),
        "stock": lambda: dict(stock_answers(stock, stock_processor, requests, limit)),
        "prefix once": lambda: dict(generate_answers(model, processor, requests)),
        "prefix once and cached": lambda: dict(generate_answers(model, processor, by_path, features=features)),
    }


def measure_generation(preset: Preset, rounds: int) -> dict[str, Any]:
    """Return milliseconds an answer of each way, their ratios and what was checked, for each list of questions."""
    found: dict[str, Any] = {}
    for name, questions in preset.test.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = write_images(Path(folder) / "images", len(questions), preset.image_px)
            samples = draw_samples(questions, paths)
            ways = answer_ways(preset, samples, Path(folder))
            expected = ways["reference"]()
            checked = {way: check_equal(ways[way](), expected) for way in ("prefix once", "prefix once and cached")}
            rows = summary(interleaved(ways, rounds), len(samples))
        found[name] = {
            "ways": rows,
            "speedups": {way: speedup(rows, "reference", way) for way in rows if way != "reference"},
            "speedups_over_stock": {way: speedup(rows, "stock", way) for way in checked},
            "questions_per_image": list(questions),
            "exactness": checked,
        }
    return found

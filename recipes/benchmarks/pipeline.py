# SPDX-License-Identifier: Apache-2.0
"""`pefomed bench pipeline`: what it takes to get questions and images to the model, and how that grows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.images import load_image
from ..records import Sample
from ..training.collator import PackedRowCollator
from .plain_ways import REFERENCE_BATCH, build_stock, stock_trainer
from .presets import VQA_RAD, Preset, build_model, build_processor, draw_samples, open_features, write_images
from .timing import interleaved, speedup, summary
from .training import PAD_TO, pack

FILES = {"JPEG of 512 px": (512, "jpg"), "JPEG of 1024 px": (1024, "jpg"), "PNG of 1024 px": (1024, "png")}
GROWTH = (1_000, 10_000, 100_000)
QUESTIONS_PER_IMAGE = 10


def measure_collating(preset: Preset, rounds: int) -> dict[str, Any]:
    """Return CPU milliseconds a question of decoding, resizing and collating: TRL's collator, which does it for each
    question, ours, once an image, and ours with a feature cache. All in this process: no data loader's workers."""
    processor = build_processor(preset)
    model = build_model(preset, processor)
    stock, stock_processor = build_stock(preset)
    found: dict[str, Any] = {}
    for name, (size_px, ending) in FILES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            paths = write_images(folder / "images", len(VQA_RAD), size_px)
            if ending == "png":
                for path in paths:
                    Image.open(path).save(path.with_suffix(".png"))
                paths = [path.with_suffix(".png") for path in paths]
            samples = draw_samples(VQA_RAD, paths)
            features = open_features(model, processor, samples, folder)
            trainer = stock_trainer(stock, stock_processor, samples, folder / "stock", max_steps=1)
            rows = pack(samples, processor)
            live = PackedRowCollator(processor, load_image, PAD_TO, normalize=False)
            cached = PackedRowCollator(processor, load_image, PAD_TO, features=features)

            def stock_way(trainer: Any = trainer, count: int = len(samples)) -> None:
                data = trainer.train_dataset
                for start in range(0, count, REFERENCE_BATCH):
                    places = range(start, min(start + REFERENCE_BATCH, count))
                    trainer.data_collator([data[place] for place in places])

            def ours(collate: PackedRowCollator, rows: Any = rows) -> None:
                for row in rows:
                    collate([row])

            ways: dict[str, Callable[[], None]] = {
                "TRL": stock_way,
                "packed": partial(ours, live),
                "packed and cached": partial(ours, cached),
            }
            times = summary(interleaved(ways, rounds), len(samples))
            found[name] = {"ways": times, "speedups": {way: speedup(times, "TRL", way) for way in [*times][1:]}}
    return found


def measure_growth(preset: Preset, sizes: tuple[int, ...] = GROWTH) -> list[dict[str, Any]]:
    """Return CPU seconds of packing generated samples and of reading every row once, at growing numbers of them."""
    processor = build_processor(preset)
    found = []
    for count in sizes:
        images = count // QUESTIONS_PER_IMAGE
        [pattern] = [draw_samples((QUESTIONS_PER_IMAGE,), [Path("0")])]
        samples: list[Sample] = [
            replace(
                sample,
                id=f"{image}-{number}",
                image_paths=[str(image)],
                instruction=f"{sample.instruction} {image:06d}",
            )
            for image in range(images)
            for number, sample in enumerate(pattern)
        ]
        started = time.process_time()
        rows = pack(samples, processor)
        packed = time.process_time()
        tokens = sum(len(row["input_ids"]) for row in rows)
        ended = time.process_time()
        found.append(
            {
                "samples": count,
                "images": images,
                "packing_ms_per_sample": round(1000 * (packed - started) / count, 4),
                "reading_ms_per_sample": round(1000 * (ended - packed) / count, 4),
                "tokens": tokens,
            }
        )
    return found

# SPDX-License-Identifier: Apache-2.0
"""The real training loops, from JPEG files to the optimizer: ours beside TRL's default path on a stock model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from ..data.images import load_image
from ..training.arguments import StageConfig
from ..training.collator import PackedRowCollator
from ..training.trainer import PackedSFTTrainer
from .plain_ways import REFERENCE_BATCH, build_stock, stock_trainer
from .presets import Preset, build_model, build_processor, device, draw_samples, open_features, write_images
from .timing import logger, speedup, summary
from .training import PAD_TO, pack

ON_GPU_STEPS = 4  # there, data loaders run beside the steps: the first step, which waits for them, is not counted


class StepClock(TrainerCallback):
    """Counts the seconds of a trainer's steps, the loading of their data included: of the CPU, or on a GPU those that
    pass."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def _now(self) -> float:
        if device().type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds, self._since = 0.0, self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = self._now()
        if state.global_step > 1 or device().type == "cpu":
            self.seconds += now - self._since
        self._since = now


def clocked(trainer: Trainer) -> Callable[[], float]:
    """Return a function that trains for the trainer's steps and gives the seconds that they took."""
    clock = StepClock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)

    def run() -> float:
        trainer.train()
        return clock.seconds

    return run


def measure_loops(preset: Preset, rounds: int) -> dict[str, Any]:
    """Return milliseconds a question in the real training loops, and the ratios to TRL's default path.

    A step of TRL's has 8 questions, one of ours the preset's rows.
    """
    name, questions = next(iter(preset.training.items()))
    steps = 1 if device().type == "cpu" else 1 + ON_GPU_STEPS
    counted = steps if device().type == "cpu" else ON_GPU_STEPS
    processor = build_processor(preset)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = write_images(folder / "images", len(questions), preset.image_px)
        samples = draw_samples(questions, images)
        model = build_model(preset, processor)
        features = open_features(model, processor, samples, folder)
        rows = pack(samples, processor)
        settings: dict[str, Any] = {
            "max_steps": steps,
            "per_device_train_batch_size": preset.rows_per_step,
            "save_strategy": "no",
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        if device().type == "cpu":
            settings["bf16"] = False  # as in the stock trainer
        ours = partial(PackedSFTTrainer, model=model, train_dataset=rows, processing_class=processor)
        collate = partial(PackedRowCollator, processor, load_image, PAD_TO, normalize=False)
        stock, stock_processor = build_stock(preset)
        trainers = {
            "TRL on a stock model": stock_trainer(stock, stock_processor, samples, folder / "stock", max_steps=steps),
            "packed": ours(args=StageConfig(output_dir=str(folder / "packed"), **settings), data_collator=collate()),
            "packed and cached": ours(
                args=StageConfig(output_dir=str(folder / "cached"), **settings),
                data_collator=collate(features=features),
            ),
        }
        # The questions of the steps that are counted: those of our trainers depend on the rows that come first.
        counts = dict.fromkeys(trainers, REFERENCE_BATCH * counted)
        runs = {way: clocked(trainer) for way, trainer in trainers.items()}
        seconds: dict[str, list[float]] = {way: [] for way in runs}
        for number in range(rounds + 1):
            for way, run in runs.items():
                taken = run()
                logger.info("loop, round %d of %d, %s: %.2f s", number, rounds, way, taken)
                if number:
                    seconds[way].append(taken)
        for way in ("packed", "packed and cached"):
            order = [*trainers[way]._get_train_sampler()][: steps * preset.rows_per_step]
            asked = [len(rows[place]["sample_ids"]) for place in order]
            counts[way] = sum(asked[(steps - counted) * preset.rows_per_step :])
        counts["TRL on a stock model"] = min(REFERENCE_BATCH, len(samples)) * counted
        found = summary(seconds, counts)
    return {
        "ways": found,
        "questions": counts,
        "speedups": {way: speedup(found, "TRL on a stock model", way) for way in ("packed", "packed and cached")},
        "distribution": name,
    }

# SPDX-License-Identifier: Apache-2.0
"""`pefomed bench train`: whole training steps, ours beside the released code's way and TRL's on a stock model.

Before anything is timed, plain and packed rows must give the same loss and the same gradients.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.flop_counter import FlopCounterMode

from modeling_pefomed import PeFoMedProcessor

from ..data.images import load_image
from ..errors import PeFoMedError
from ..models.feature_cache import FeatureCache
from ..records import Sample
from ..training.collator import PackedRowCollator
from ..training.packing import PackedRows, pack_samples
from .plain_ways import REFERENCE_BATCH, encode_rows, full_logits_loss, on_device, plain_batches
from .presets import (
    Preset,
    base_dtype,
    build_model,
    build_processor,
    device,
    draw_samples,
    open_features,
    write_images,
)
from .timing import interleaved, speedup, summary

Batch = dict[str, Any]
PAD_TO = 64
# Relative, of the loss and of the worst gradient: rounding of float32, and of bfloat16's 8 bits through all layers.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 5e-2}


def pack(samples: Sequence[Sample], processor: PeFoMedProcessor) -> PackedRows:
    """Return the samples as packed rows, as a run with the default settings packs them."""
    return pack_samples(
        samples, processor, lambda sample: sample.instruction, max_length=1024, max_questions_per_image=16, seed=0
    )


def packed_batches(
    samples: Sequence[Sample], processor: PeFoMedProcessor, rows_per_step: int, features: FeatureCache | None = None
) -> list[Batch]:
    """Return our batches: rows with an image and its questions, those of like length together."""
    rows = [*pack(samples, processor).longest_first()]
    collate = PackedRowCollator(processor, load_image, PAD_TO, features=features)
    return [on_device(collate(rows[start : start + rows_per_step])) for start in range(0, len(rows), rows_per_step)]


def labelled_loss(model: torch.nn.Module, batch: Batch, items: int | None = None) -> torch.Tensor:
    """Return the loss with the head at labelled positions only."""
    count = None if items is None else torch.tensor(items, device=batch["labels"].device)
    return model(**batch, num_items_in_batch=count, use_cache=False).loss


def autocast() -> AbstractContextManager[Any]:
    """Return bfloat16 autocast on a GPU, nothing on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device().type == "cuda" else nullcontext()


def gradients(model: PeftModel, loss: Callable[..., torch.Tensor], batches: Sequence[Batch]) -> dict[str, Any]:
    """Return the loss over all batches, a mean over their labelled tokens, and all gradients."""
    model.zero_grad(set_to_none=True)
    items, total = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches), 0.0
    for batch in batches:
        with autocast():
            part = loss(model, batch, items)
        part.backward()
        total += part.item()
    grads = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return {"loss": total, "gradients": grads}


def differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return how far two results of [`gradients`] are apart, relatively: in the loss, and in the worst gradient.

    Raises:
        PeFoMedError: further than rounding explains.
    """
    assert first["gradients"].keys() == second["gradients"].keys()
    worst = max(
        ((second["gradients"][name] - grad).norm() / grad.norm()).item() for name, grad in first["gradients"].items()
    )
    off = abs(second["loss"] - first["loss"]) / abs(first["loss"])
    allowed = TOLERANCE[base_dtype()]
    if not max(worst, off) <= allowed:  # also where one is nan
        raise PeFoMedError(
            f"packed rows and plain rows differ: loss by {off:.1e}, gradients by {worst:.1e}, relatively; expected at "
            f"most {allowed:.0e}. Nothing was timed."
        )
    return {"loss": off, "worst_gradient": worst, "tensors": len(first["gradients"]), "allowed": allowed}


def step_ways(
    model: PeftModel,
    processor: PeFoMedProcessor,
    samples: Sequence[Sample],
    features: FeatureCache,
    preset: Preset,
    *,
    alone: bool,
) -> tuple[dict[str, Callable[[], None]], dict[str, Any]]:
    """Return the ways to train once on all samples, by name, and what was checked beforehand.

    Args:
        alone: also each of our tricks without the others.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def train(loss: Callable[..., torch.Tensor], batches: Sequence[Batch]) -> None:
        for batch in batches:
            with autocast():
                value = loss(model, batch)
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tower_alone() -> None:
        with torch.no_grad(), autocast():
            for batch in plain:
                model.get_base_model().model.get_tower_output(batch["pixel_values"])

    plain = plain_batches(samples, processor, REFERENCE_BATCH)
    packed = packed_batches(samples, processor, preset.rows_per_step)
    cached = packed_batches(samples, processor, preset.rows_per_step, features)
    references = gradients(model, full_logits_loss, plain)
    checked = {
        "packed_vs_reference": differences(references, gradients(model, labelled_loss, packed)),
        "cached_vs_reference": differences(references, gradients(model, labelled_loss, cached)),
        "tokens": {
            "plain": sum(int(batch["attention_mask"].sum()) for batch in plain),
            "packed": sum(int(batch["attention_mask"].sum()) for batch in packed),
            "packed_with_padding": sum(batch["input_ids"].numel() for batch in packed),
        },
    }
    ways: dict[str, Callable[[], None]] = {
        "reference, batch 1": partial(train, full_logits_loss, plain_batches(samples, processor, 1)),
        f"reference, batch {REFERENCE_BATCH}": partial(train, full_logits_loss, plain),
        "tower of the plain rows alone": tower_alone,
        "packed": partial(train, labelled_loss, packed),
        "packed and cached": partial(train, labelled_loss, cached),
    }
    if alone:
        ways |= {
            "alone: loss at labelled positions": partial(train, labelled_loss, plain),
            "alone: feature cache": partial(
                train, full_logits_loss, plain_batches(samples, processor, REFERENCE_BATCH, features)
            ),
            "alone: packing": partial(train, full_logits_loss, packed),
        }
    return ways, checked


def measure_steps(preset: Preset, rounds: int, *, alone: bool) -> dict[str, Any]:
    """Return milliseconds a question of whole steps, their ratios and what was checked, for each list of questions.

    Args:
        alone: on the first list, also each of our tricks without the others.
    """
    processor = build_processor(preset)
    model = build_model(preset, processor).train()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, questions in preset.training.items():
            images = write_images(Path(folder) / name, len(questions), preset.image_px)
            samples = draw_samples(questions, images)
            features = open_features(model, processor, samples, Path(folder) / f"{name}-features")
            ways, checked = step_ways(model, processor, samples, features, preset, alone=alone and not found)
            rows = summary(interleaved(ways, rounds), len(samples))
            rate = add_flops(rows, ways, len(samples)) if preset.whole else None
            found[name] = describe_steps(rows) | {
                "matrix_flops_per_second": rate,
                "questions_per_image": list(questions),
                "tokens_per_question": round(
                    sum(len(prompt) + len(answer) for prompt, answer in encode_rows(samples, processor)) / len(samples)
                ),
                "exactness": checked,
            }
    return found


def add_flops(rows: dict[str, Any], ways: dict[str, Callable[[], None]], questions: int) -> float:
    """Add to each way the FLOPs that it executes for a question, and their rate as a share of that of large matrix
    products in the same run, which is returned. torch counts no attention on a CPU."""
    size, repeats = (8192, 20) if device().type == "cuda" else (512, 2)
    matrix = torch.randn(size, size, device=device(), dtype=base_dtype())
    seconds = interleaved({"product": lambda: [matrix @ matrix for _ in range(repeats)]})["product"]
    rate = repeats * 2 * size**3 / statistics.median(seconds)
    for name, way in ways.items():
        with FlopCounterMode(display=False) as counter:
            way()
        flops = counter.get_total_flops() / questions
        share = 1000 * flops / rows[name]["ms_per_question"] / rate
        rows[name] |= {"flops_per_question": flops, "share_of_matrix_rate": round(share, 3)}
    return rate


def describe_steps(rows: dict[str, Any]) -> dict[str, Any]:
    """Return the ways' times, their ratios to the faster of the reference's two batch sizes, and the tower's share."""
    tower = rows.pop("tower of the plain rows alone")
    references = [name for name in rows if name.startswith("reference")]
    fastest = min(references, key=lambda name: rows[name]["ms_per_question"])
    return {
        "ways": rows,
        "compared_with": fastest,
        "speedups": {name: speedup(rows, fastest, name) for name in rows if name not in references},
        "tower_share_of_a_plain_step": round(tower["ms_per_question"] / rows[fastest]["ms_per_question"], 3),
    }

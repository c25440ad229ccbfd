# SPDX-License-Identifier: Apache-2.0
"""`pefomed bench memory`: what the loss, a training step and full fine-tuning take, and what fits which card.

On a CPU, every allocation and release of torch's own allocator is recorded; on a GPU its allocator keeps the peak.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from modeling_pefomed import PeFoMedConfig

from ..training.estimates import GIB, estimate_full_memory, model_sizes
from ..training.planning import CHECKPOINTING_RULE, DataSizes, card_presets
from .plain_ways import REFERENCE_BATCH, full_logits_loss, plain_batches
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
from .training import autocast, labelled_loss, packed_batches

MIB = 2**20
# The loss alone: 8 rows of a question each at a LLaMA's vocabulary.
ROWS, ROW_TOKENS, LABELLED, WIDTH, VOCABULARY = 8, 303, 4, 1024, 32_000
# VQA-RAD's training split as packed rows, for what fits which card.
VQA_RAD_SIZES = DataSizes(
    samples=3064,
    rows=334,
    validation_rows=50,
    images_per_row=1,
    questions_per_row=9.2,
    tokens=631,
    longest_tokens=903,
    longest_labelled=64,
    measured=False,
)


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return how many bytes of tensors a piece of work needs at its peak, beyond those that were there before."""
    if device().type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure_loss(rows: int = ROWS, row_tokens: int = ROW_TOKENS, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Return the peak memory of the loss and its gradient: with logits of every position, and of labelled ones."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, row_tokens, WIDTH, generator=generator).to(device()).requires_grad_()
    head = torch.randn(vocabulary, WIDTH, generator=generator).to(device()) / WIDTH**0.5
    labels = torch.full((rows, row_tokens), -100, device=device())
    labels[:, -LABELLED:] = torch.randint(0, vocabulary, (rows, LABELLED), generator=generator).to(device())
    losses: list[float] = []

    def full() -> None:
        logits = (hidden[:, :-1] @ head.T).float()
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        losses.append(loss.item())

    def labelled() -> None:
        chosen = labels[:, 1:] != -100
        loss = cross_entropy((hidden[:, :-1][chosen] @ head.T).float(), labels[:, 1:][chosen])
        loss.backward()
        losses.append(loss.item())

    peaks = {}
    for name, work in {"full logits": full, "labelled positions": labelled}.items():
        hidden.grad = None
        peaks[name] = peak_bytes(work)
    # Both make a gradient of the hidden states' size, which a step needs in any case.
    gradient = hidden.numel() * hidden.element_size()
    extra = {name: peak - gradient for name, peak in peaks.items()}
    return {
        "mib": {name: round(size / MIB, 2) for name, size in extra.items()},
        "ratio": round(extra["full logits"] / extra["labelled positions"], 1),
        "shape": [rows, row_tokens, WIDTH, vocabulary],
        "labelled_tokens": rows * LABELLED,
        "loss_difference": abs(losses[0] - losses[1]) / losses[0],
    }


def measure_step(preset: Preset) -> dict[str, Any]:
    """Return the memory of one training step in MiB: parameters, and what the first step with AdamW adds at its peak.

    Full fine-tuning trains the language model and the projector of the same model, one question a row.
    """
    processor = build_processor(preset)
    model = build_model(preset, processor).train()
    questions = next(iter(preset.training.values()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        samples = draw_samples(questions, write_images(folder / "images", len(questions), preset.image_px))
        features = open_features(model, processor, samples, folder)
        plain = plain_batches(samples, processor, REFERENCE_BATCH)[0]
        packed = packed_batches(samples, processor, preset.rows_per_step)[0]
        cached = packed_batches(samples, processor, preset.rows_per_step, features)[0]
    ways = {
        f"reference, batch {REFERENCE_BATCH}": partial(train_step, model, full_logits_loss, plain),
        "packed": partial(train_step, model, labelled_loss, packed),
        "packed and cached": partial(train_step, model, labelled_loss, cached),
    }
    extra = {name: peak_bytes(way) for name, way in ways.items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name and ".lora_" not in name)
    extra["full fine-tuning"] = peak_bytes(ways[f"reference, batch {REFERENCE_BATCH}"])
    kept = kept_bytes(model)
    return {
        "mib": {
            name: {"parameters": round(kept / MIB, 1), "peak": round((kept + size) / MIB, 1)}
            for name, size in extra.items()
        },
        "questions": {"plain": len(plain["input_ids"]), "packed": sum(questions[: preset.rows_per_step])},
        "full_finetuning_per_packed": round((kept + extra["full fine-tuning"]) / (kept + extra["packed"]), 2),
    }


def kept_bytes(model: torch.nn.Module) -> int:
    """Return the bytes that stay between steps: of a model's parameters, or on a GPU of all that is there."""
    if device().type == "cuda":
        return torch.cuda.memory_allocated()
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def train_step(model: PeftModel, loss: Callable[..., torch.Tensor], batch: dict[str, Any]) -> None:
    """Train for the first step of a run: AdamW's moments are made in it. The weights stay as they are."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with autocast():
        value = loss(model, batch)
    value.backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)


def quantize_in_place(model: PeftModel) -> None:
    """Put the language model's frozen linear layers into 4 bits, as `quantization: nf4` loads them."""
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    for parent in [*model.get_base_model().model.language_model.modules()]:
        for name, layer in [*parent.named_children()]:
            if type(layer) is torch.nn.Linear and not layer.weight.requires_grad:
                packed = layers.Linear4bit(
                    layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=base_dtype()
                )
                packed.weight = layers.Params4bit(
                    layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
                )
                setattr(parent, name, packed.to(device()))


def measure_cards(preset: Preset) -> dict[str, Any]:
    """Return the memory of one training step with the settings of each card size, measured at this preset's sizes."""
    processor = build_processor(preset)
    model = build_model(preset, processor).train()
    plans = card_presets(model_sizes(PeFoMedConfig()), VQA_RAD_SIZES)
    questions = (max(next(iter(preset.training.values()))),) * max(
        plan.config["per_device_train_batch_size"] for plan in plans.values()
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        samples = draw_samples(questions, write_images(Path(temporary), len(questions), preset.image_px))
        # Weights in 4 bits cannot go back: those cards come last.
        for gib, plan in sorted(plans.items(), key=lambda item: item[1].config["quantization"] != "none"):
            config = plan.config
            if config["quantization"] != "none":
                quantize_in_place(model)
            if config["gradient_checkpointing"]:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                model.gradient_checkpointing_disable()
            batch = packed_batches(samples, processor, config["per_device_train_batch_size"])[0]
            kept = kept_bytes(model)
            peak = kept + peak_bytes(partial(train_step, model, labelled_loss, batch))
            found[f"{gib} GB"] = {"gib": round(peak / GIB, 5), "rows": len(batch["input_ids"])}
    return found


def cards() -> dict[str, Any]:
    """Return, computed from the paper's sizes, the settings for cards of each size and the memory that they take, and
    the memory of full fine-tuning on the same rows."""
    sizes = model_sizes(PeFoMedConfig())
    found = {}
    for gib, plan in card_presets(sizes, VQA_RAD_SIZES).items():
        config = plan.config
        rows = config["per_device_train_batch_size"]
        full = estimate_full_memory(sizes, rows=rows, row_tokens=VQA_RAD_SIZES.longest_tokens)
        found[f"{gib} GB"] = {
            "quantization": config["quantization"],
            "gradient_checkpointing": config["gradient_checkpointing"],
            "rows": rows,
            "gib": round(sum(plan.memory.values()) / GIB, 1),
            "full_finetuning_gib": round(sum(full.values()) / GIB, 1),
        }
    return {"computed": found, "rule": CHECKPOINTING_RULE}

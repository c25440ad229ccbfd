# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with an installation, a base model and an adapter, as far as files show it.

Source: the mistakes of the released code, and those whose cost was measured beside it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from modeling_pefomed import PeFoMedConfig, PeFoMedImageProcessor

from ..errors import PeFoMedError
from .examined import Finding, Subject, adapter_shapes, base_dtypes

LORA_SCALES = (0.05, 4.0)  # alpha / rank; the paper's is 0.25
PAPER_EPS = 1e-5
CLIP_MEAN = [round(mean, 4) for mean in PeFoMedImageProcessor.image_mean]


def check_environment() -> Iterator[Finding]:
    """Yield what is wrong with the installation."""
    if importlib.util.find_spec("torchvision") is not None:
        yield Finding(
            "warning",
            "torchvision is installed",
            "no torchvision: one that does not match torch breaks transformers' imports",
            "pip uninstall torchvision",
        )


def random_transforms(transform: dict[str, Any]) -> list[str]:
    """Return the settings of an image processor that change images at random or mirror them."""
    return [key for key, value in transform.items() if value and ("flip" in key.lower() or "random" in key.lower())]


def check_processor(subject: Subject) -> Iterator[Finding]:
    """Yield what is wrong with the image processor, the tokenizer and the template."""
    processor, config, transform = subject.processor, subject.config, subject.transform
    if random_transforms(transform):
        yield Finding(
            "error",
            f"the image processor has a random transform: {', '.join(random_transforms(transform))}",
            "the same pixels every time: a flip turns left into right, a random crop makes scores random",
            "remove it from the image processor's configuration",
        )
    if transform.get("do_center_crop"):
        yield Finding(
            "warning",
            "the image processor crops",
            "whole images: findings lie at the margins",
            "set do_center_crop to false",
        )
    if getattr(processor, "template", "paper") == "released":
        yield Finding(
            "note",
            "template released: lower-cased and cleaned in training, another prompt when asked",
            "template paper, unless the released weights are used",
            "--template paper",
        )
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield Finding(
            "note",
            "the padding token is the end token",
            "labels that are masked by position, never by this id, as they are here",
            "nothing here; take care in code of your own",
        )
    if config is None:
        return
    size = transform.get("size") or {}
    vision: Any = config.vision_config
    sides = {size.get("height"), size.get("width")} if isinstance(size, dict) else {size}
    if sides != {vision.image_size}:
        yield Finding(
            "error",
            f"the image processor makes images of {size} px",
            f"{vision.image_size} px, the vision tower's size",
            "save the base's own processor beside the model",
        )
    if vision.model_type == "blip_2_vision_model" and _rounded(transform.get("image_mean")) != CLIP_MEAN:
        yield Finding(
            "warning",
            f"images are normalised with mean {transform.get('image_mean')}",
            f"CLIP's {CLIP_MEAN}, with which EVA-CLIP was trained",
            "set image_mean and image_std to CLIP's",
        )
    image_id = config.image_token_id
    spelled = tokenizer.convert_ids_to_tokens(image_id) if image_id < len(tokenizer) else None
    if processor.image_token_id != image_id or spelled != processor.image_token:
        yield Finding(
            "error",
            f"config.json gives the image token the id {image_id}, where the tokenizer has {spelled!r}; the image "
            f"token has {processor.image_token_id} there",
            "one id for the image token: otherwise text is replaced by image features",
            "take config.json and the tokenizer from the same base",
        )
    if processor.image_seq_length != config.image_seq_length:
        yield Finding(
            "error",
            f"the processor writes {processor.image_seq_length} image tokens",
            f"{config.image_seq_length}, as the model makes of an image",
            "save the base's own processor beside the model",
        )


def check_base(subject: Subject) -> Iterator[Finding]:
    """Yield what is wrong with the base's configuration and weight files."""
    config = subject.config
    if config is None:
        return
    if config.model_type != "pefomed":
        raise PeFoMedError(f"{subject.base}: found a {config.model_type} model, expected a PeFoMed base model")
    eps = config.vision_post_layernorm_eps
    vision: Any = config.vision_config
    if vision.model_type == "blip_2_vision_model" and eps != PAPER_EPS:
        yield Finding(
            "error",
            f"the tower's last LayerNorm has epsilon {eps:g}",
            f"{PAPER_EPS:g}, as the released code; features differ by up to 8e-3 otherwise",
            "set vision_post_layernorm_eps in config.json",
        )
    projector = base_dtypes(subject).get("projector", {"F32"})
    if projector != {"F32"}:
        yield Finding(
            "warning",
            f"the base's projector is in {', '.join(sorted(projector))}",
            "float32: it is trained, and small updates are lost in rounding",
            "save the base again: this project's classes keep the projector in float32",
        )
    settings = Path(subject.base) / "generation_config.json"
    generation = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    changed = [key for key in ("do_sample", "repetition_penalty", "no_repeat_ngram_size") if generation.get(key)]
    if changed:
        yield Finding(
            "warning",
            f"generation_config.json sets {', '.join(changed)}",
            "greedy decoding without penalties, as in the paper",
            "remove them there",
        )


def check_adapter(subject: Subject) -> Iterator[Finding]:
    """Yield what is wrong with an adapter's settings and tensors."""
    if subject.adapter is None:
        return
    shapes = adapter_shapes(subject.adapter)
    projector = {name: entry for name, entry in shapes.items() if "multi_modal_projector" in name}
    if not projector:
        yield Finding(
            "error",
            f"{len(shapes)} tensors in adapter_model.safetensors, none of them of the projector",
            "LoRA and the whole projector: without it the adapter sees images through the base's",
            "train it with this project, or save it with modules_to_save=['multi_modal_projector']",
        )
    for name, (shape, kind) in projector.items():
        if kind != "F32":
            yield Finding("warning", f"{name} is in {kind}", "float32", "train with the projector in float32")
        if subject.config is not None and name.endswith("weight") and shape != _projector_shape(subject.config):
            yield Finding(
                "error",
                f"the adapter's projector has shape {shape}",
                f"{_projector_shape(subject.config)}, as the base {subject.base}",
                "load the base that it was trained on",
            )
    if any("vision_tower" in name for name in shapes):
        yield Finding("error", "the adapter changes the vision tower", "a frozen tower", "give target_modules by name")
    if not shapes or subject.adapter_config.get("peft_type") != "LORA":
        return
    rank, alpha = subject.adapter_config.get("r") or 1, subject.adapter_config.get("lora_alpha") or 0
    scale = alpha / rank**0.5 if subject.adapter_config.get("use_rslora") else alpha / rank
    if not LORA_SCALES[0] <= scale <= LORA_SCALES[1]:
        yield Finding(
            "warning",
            f"LoRA's scale is {scale:g} (alpha {alpha}, rank {rank})",
            f"{LORA_SCALES[0]:g} to {LORA_SCALES[1]:g}; the paper's is 0.25",
            "compare lora_alpha with the run record",
        )
    yield from _check_lora_values(subject.adapter / "adapter_model.safetensors")


def _check_lora_values(path: Path) -> Iterator[Finding]:
    """Yield what is wrong with the values of a LoRA adapter."""
    with safe_open(path, framework="pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 (no mapping)
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        yield Finding(
            "error", f"{len(broken)} tensors are not finite, such as {broken[0]}", "numbers", "train it again"
        )
    second = [tensor for name, tensor in tensors.items() if "lora_B" in name]
    if second and not any(tensor.any() for tensor in second):
        yield Finding("warning", "LoRA has not left its start", "a trained adapter", "see whether the run took a step")


def _projector_shape(config: PeFoMedConfig) -> list[int]:
    vision: Any = config.vision_config
    return [config.get_text_config().hidden_size, vision.hidden_size * config.patch_group_size]


def _rounded(values: Any) -> list[float]:
    return [round(value, 4) for value in values] if isinstance(values, list | tuple) else []

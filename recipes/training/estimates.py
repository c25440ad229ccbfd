# SPDX-License-Identifier: Apache-2.0
"""What a training run needs in memory and time, estimated from sizes alone; `plan` and `doctor` share it.

Every constant says where it is from. None of them has been measured on a GPU by this project.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modeling_pefomed import PeFoMedConfig, PeFoMedForConditionalGeneration

from ..errors import ConfigError, PeFoMedError, did_you_mean

GIB = 2**30

# Memory in GiB, and dense bfloat16 tensor TFLOP/s with float32 accumulation. Source: the makers' datasheets; where
# they print the rate with sparsity only, half of it.
CARDS: dict[str, tuple[int, float]] = {
    "RTX 3060": (12, 25.5),
    "RTX 3090": (24, 71.0),
    "RTX 4090": (24, 165.2),
    "A10": (24, 125.0),
    "L4": (24, 121.0),
    "RTX 5090": (32, 209.5),
    "A40": (48, 149.7),
    "RTX A6000": (48, 154.8),
    "L40S": (48, 362.0),
    "A100 40GB": (40, 312.0),
    "A100": (80, 312.0),
    "H100": (80, 989.0),
    "H200": (141, 989.0),
}

# Memory. Source of the first two: float32 weights, gradients and AdamW's two moments, and the bfloat16 copy that
# autocast keeps; bitsandbytes' blocks of 64 values with doubly quantized scales.
BYTES_PER_TRAINED = 4 + 4 + 8 + 2
BYTES_PER_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# A decoder layer keeps 8 bytes for each unit of its MLP's width and 27 for each of its own width, a token: 198.7 kB at
# LLaMA-2-7B's sizes. Source: 198 kB a token and layer were counted there (bfloat16, sdpa, float32 LoRA).
ACTIVATION_BYTES_MLP, ACTIVATION_BYTES_HIDDEN = 8, 27
BYTES_PER_LOGIT = 2 + 4 + 4  # bfloat16, float32, gradient
CUDA_CONTEXT_BYTES = 0.75 * GIB  # not measured: a reserve for the driver's and the libraries' own buffers
FRAGMENTATION_SHARE = 0.08  # not measured: a reserve for what the allocator cannot use

# Time. Source of the share: 45 % of the 790 TFLOP/s that an H200 reaches is a good run, that is 36 % of the 989 in its
# datasheet; no run of this project has been measured on a GPU yet.
UTILISATION = 0.36
# Unpacking 4-bit weights in every pass. Source: 7.6 ms beside 21.8 ms for a row of 664 tokens, by arithmetic.
NF4_SLOWDOWN = 1.35
# A step starts some 5,176 kernels of 5 us at the paper's 39 + 32 layers, however small it is.
LAUNCH_SECONDS_PER_LAYER = 5176 * 5e-6 / 71


@dataclass(frozen=True)
class ModelSizes:
    """Parameters and widths that memory and time depend on.

    `linear` are the language model's linear layers, which 4 bits pack; `other` its embeddings, norms and head.
    `lora_per_rank` is what LoRA adds for each unit of its rank.
    """

    tower: int
    projector: int
    linear: int
    other: int
    lora_per_rank: int
    largest_linear: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    image_tokens: int
    tower_tokens: int
    tower_layers: int
    tower_hidden: int
    tower_intermediate: int

    @property
    def frozen(self) -> int:
        """Parameters that are never trained."""
        return self.tower + self.linear + self.other

    def trained(self, lora_r: int) -> int:
        """Parameters that are trained: LoRA and the projector."""
        return self.projector + lora_r * self.lora_per_rank


@dataclass(frozen=True)
class Mode:
    """How the frozen weights are kept, and whether activations are computed twice instead of kept."""

    quantization: str
    gradient_checkpointing: bool


@dataclass(frozen=True)
class Gpu:
    """A card: bytes of memory, and peak FLOP/s of dense bfloat16 products."""

    name: str
    memory: float
    flops: float

    @property
    def usable(self) -> float:
        """Bytes that a run can fill."""
        return self.memory * (1 - FRAGMENTATION_SHARE) - CUDA_CONTEXT_BYTES


def find_gpu(text: str) -> Gpu:
    """Return the card that is meant by `24GB` or by a name such as `RTX 4090`.

    An amount of memory stands for the slowest known card that has it: the time is then rather too long.

    Raises:
        ConfigError: neither an amount of memory nor a known card.
    """
    wanted = re.sub(r"[\s_-]", "", text).lower()
    for name, (gib, tflops) in CARDS.items():
        if wanted.removeprefix("nvidia").removeprefix("geforce") == name.replace(" ", "").lower():
            return Gpu(name, gib * GIB, tflops * 1e12)
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)\s*gi?b?", text.strip(), re.IGNORECASE)
    if not amount or float(amount[1]) <= 0:
        raise ConfigError(
            f"--gpu: found {text!r}{did_you_mean(text, CARDS)}, expected memory as 24GB or one of {', '.join(CARDS)}"
        )
    memory = float(amount[1])
    enough = [card for card in CARDS.items() if card[1][0] >= memory] or [max(CARDS.items(), key=lambda c: c[1][0])]
    name, (_, tflops) = min(enough, key=lambda card: card[1][1])
    return Gpu(f"{memory:g} GB (as fast as {name})", memory * GIB, tflops * 1e12)


def model_sizes(config: PeFoMedConfig, target_modules: Sequence[str] = ("q_proj", "v_proj")) -> ModelSizes:
    """Return the sizes of a model that is laid out without any weights.

    Raises:
        PeFoMedError: the language model has no layers of these names.
    """
    with torch.device("meta"):
        model = PeFoMedForConditionalGeneration(config)
    text: Any = config.get_text_config()
    vision: Any = config.vision_config
    decoder = model.model.language_model
    linear = {name: module for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)}
    adapted = [module for name, module in linear.items() if name.rsplit(".", 1)[-1] in target_modules]
    if not adapted:
        names = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise PeFoMedError(
            f"a {text.model_type} language model has no layers {', '.join(target_modules)}; found {', '.join(names)}"
        )
    tower, projector = (
        sum(parameter.numel() for parameter in part.parameters())
        for part in (model.model.vision_tower, model.model.multi_modal_projector)
    )
    in_linear = sum(parameter.numel() for module in linear.values() for parameter in module.parameters())
    return ModelSizes(
        tower=tower,
        projector=projector,
        linear=in_linear,
        other=sum(parameter.numel() for parameter in model.parameters()) - tower - projector - in_linear,
        lora_per_rank=sum(module.in_features + module.out_features for module in adapted),
        largest_linear=max(module.weight.numel() for module in linear.values()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        image_tokens=config.image_seq_length,
        tower_tokens=config.num_patches + 1,
        tower_layers=vision.num_hidden_layers,
        tower_hidden=vision.hidden_size,
        tower_intermediate=getattr(vision, "intermediate_size", 4 * vision.hidden_size),
    )


def estimate_memory(
    sizes: ModelSizes, mode: Mode, *, lora_r: int, rows: int, row_tokens: int, images_per_row: int, labelled: int
) -> dict[str, float]:
    """Return the estimated bytes of one training step, part by part.

    Args:
        rows: of a micro-batch.
        row_tokens: of its longest row.
        labelled: supervised tokens of a row.
    """
    packed = mode.quantization == "nf4"
    linear = sizes.linear * (BYTES_PER_NF4 if packed else 2)
    per_token = ACTIVATION_BYTES_MLP * sizes.intermediate + ACTIVATION_BYTES_HIDDEN * sizes.hidden
    tokens = rows * row_tokens
    kept = sizes.layers * per_token
    if mode.gradient_checkpointing:  # each layer's input, and all of one layer at a time
        kept = sizes.layers * 2 * sizes.hidden + per_token
    tower = rows * images_per_row * sizes.tower_tokens * 2 * (2 * sizes.tower_intermediate + 8 * sizes.tower_hidden)
    return {
        "frozen weights": 2 * (sizes.tower + sizes.other) + linear + 4 * sizes.projector,  # PEFT keeps a projector
        "trained weights, gradients, AdamW": BYTES_PER_TRAINED * sizes.trained(lora_r),
        "activations of the language model": tokens * kept,
        "one layer of the vision tower": tower,
        "logits of supervised tokens": rows * labelled * sizes.vocabulary * BYTES_PER_LOGIT,
        "unpacked weights of one layer": 2 * sizes.largest_linear if packed else 0,
    }


def estimate_full_memory(sizes: ModelSizes, *, rows: int, row_tokens: int) -> dict[str, float]:
    """Return the estimated bytes of one step of full fine-tuning on rows of this size, part by part: language model
    and projector trained, the tower frozen, logits of every position, no gradient checkpointing."""
    trained = sizes.linear + sizes.other + sizes.projector
    per_token = ACTIVATION_BYTES_MLP * sizes.intermediate + ACTIVATION_BYTES_HIDDEN * sizes.hidden
    return {
        "frozen weights": 2 * sizes.tower,
        "trained weights, gradients, AdamW": BYTES_PER_TRAINED * trained,
        "activations of the language model": rows * row_tokens * sizes.layers * per_token,
        "logits of every position": rows * row_tokens * sizes.vocabulary * BYTES_PER_LOGIT,
    }


def estimate_seconds(
    sizes: ModelSizes,
    mode: Mode,
    gpu: Gpu,
    *,
    lora_r: int,
    rows: int,
    row_tokens: float,
    images_per_row: int,
    training: bool = True,
) -> float:
    """Return the estimated seconds of one micro-batch, forward only without `training`.

    FLOPs: 2 a parameter and token forward; as many backward, for activations only, and LoRA's and the projector's own
    gradients; attention to all earlier tokens. The tower runs forward only.
    """
    lora = lora_r * sizes.lora_per_rank
    attention = 2 * row_tokens * sizes.hidden * sizes.layers
    forward = 2 * (sizes.linear + lora) + attention
    backward = 2 * sizes.linear + 4 * lora + 2 * attention
    again = forward if mode.gradient_checkpointing else 0
    decoder = row_tokens * (forward + (backward + again if training else 0))
    decoder *= NF4_SLOWDOWN if mode.quantization == "nf4" else 1
    tower = 2 * sizes.tower * sizes.tower_tokens + 4 * sizes.tower_tokens**2 * sizes.tower_hidden * sizes.tower_layers
    projector = 2 * sizes.projector * sizes.image_tokens * (3 if training else 1)
    flops = rows * (decoder + images_per_row * (tower + projector))
    launches = LAUNCH_SECONDS_PER_LAYER * (sizes.layers + sizes.tower_layers)
    return max(flops / (gpu.flops * UTILISATION), launches)

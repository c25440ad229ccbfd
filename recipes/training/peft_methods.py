# SPDX-License-Identifier: Apache-2.0
"""The PEFT methods by name: which configuration of PEFT each of them is.

Rank, alpha and dropout mean what they mean for LoRA wherever a method has something like them. Every method trains and
saves the whole projector in float32 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
)

from modeling_pefomed import PeFoMedForConditionalGeneration

from ..errors import PeFoMedError, did_you_mean

# Layers whose input IA3 scales, not their output.
FEED_FORWARD_NAMES = ("down_proj", "fc2", "dense_4h_to_h")


def _lora(**changes: Any) -> Callable[..., PeftConfig]:
    def build(r: int, alpha: int, dropout: float, **layers: Any) -> PeftConfig:
        return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", **layers, **changes)

    return build


# name -> configuration from rank, alpha, dropout and layers (target_modules, modules_to_save)
LAYER_METHODS: dict[str, Callable[..., PeftConfig]] = {
    "lora": _lora(),
    "rslora": _lora(use_rslora=True),
    "dora": _lora(use_dora=True),
    "pissa": _lora(init_lora_weights="pissa"),
    "olora": _lora(init_lora_weights="olora"),
    # AdaLoRA starts half as large again and prunes to the rank; AdaLoraCallback sets its schedule and its penalty.
    "adalora": lambda r, alpha, dropout, **layers: AdaLoraConfig(
        init_r=r + (r + 1) // 2, target_r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", total_step=10**9,
        orth_reg_weight=0.0, **layers,
    ),
    "ia3": lambda r, alpha, dropout, target_modules, **layers: IA3Config(
        target_modules=target_modules, feedforward_modules=rf".*\.({'|'.join(FEED_FORWARD_NAMES)})", **layers
    ),
    "vera": lambda r, alpha, dropout, **layers: VeraConfig(r=r, vera_dropout=dropout, **layers),
    "loha": lambda r, alpha, dropout, **layers: LoHaConfig(r=r, alpha=alpha, rank_dropout=dropout, **layers),
    "lokr": lambda r, alpha, dropout, **layers: LoKrConfig(r=r, alpha=alpha, rank_dropout=dropout, **layers),
    # In PEFT's OFT the rank is the number of rotated blocks.
    "oft": lambda r, alpha, dropout, **layers: OFTConfig(r=r, oft_block_size=0, module_dropout=dropout, **layers),
}  # fmt: skip

# name -> configuration from the number of virtual tokens and the language model's configuration
TOKEN_METHODS: dict[str, Callable[[int, Any], PeftConfig]] = {
    # the stand-in for bottleneck adapters, which PEFT does not have
    "llama_adapter": lambda count, text: AdaptionPromptConfig(
        adapter_len=count, adapter_layers=text.num_hidden_layers, task_type="CAUSAL_LM"
    ),
    "prompt_tuning": lambda count, text: PromptTuningConfig(
        num_virtual_tokens=count, prompt_tuning_init="RANDOM", task_type="CAUSAL_LM"
    ),
    "prefix_tuning": lambda count, text: PrefixTuningConfig(num_virtual_tokens=count, task_type="CAUSAL_LM"),
    "p_tuning": lambda count, text: PromptEncoderConfig(
        num_virtual_tokens=count, encoder_hidden_size=text.hidden_size, task_type="CAUSAL_LM"
    ),
}

METHODS = (*LAYER_METHODS, *TOKEN_METHODS)


def target_pattern(base: PeFoMedForConditionalGeneration, names: Sequence[str]) -> str:
    """Return the pattern of the layers of these names in the language model; the same names also occur in towers.

    Raises:
        PeFoMedError: the language model lacks one of them; its linear layers are listed.
    """
    language_model = base.model.language_model
    linear = {
        name.rpartition(".")[2]: None
        for name, module in language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    missing = [name for name in names if name not in linear]
    if missing or not names:
        kind = base.config.get_text_config().model_type
        raise PeFoMedError(
            f"The language model {kind} has no {' and '.join(missing) or 'target_modules'} layers to adapt. Its "
            f"linear layers are {', '.join(linear)}; choose among them, for example --target_modules "
            f"{next(iter(linear))}"
        )
    return rf".*language_model.*\.({'|'.join(names)})"


def peft_config(
    base: PeFoMedForConditionalGeneration,
    method: str,
    *,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: Sequence[str],
    virtual_tokens: int,
) -> PeftConfig:
    """Return PEFT's configuration of a method on this base.

    Raises:
        PeFoMedError: an unknown method, or layers that the language model does not have.
    """
    if method in TOKEN_METHODS:
        return TOKEN_METHODS[method](virtual_tokens, base.config.get_text_config())
    if method not in LAYER_METHODS:
        raise PeFoMedError(f"unknown peft_method {method!r}{did_you_mean(method, METHODS)}: {', '.join(METHODS)}")
    return LAYER_METHODS[method](
        r, alpha, dropout,
        target_modules=target_pattern(base, target_modules),
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )  # fmt: skip

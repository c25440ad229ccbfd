# SPDX-License-Identifier: Apache-2.0
"""The adapter that is trained on top of a frozen base model: a PEFT method's weights and the whole projector."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel, get_peft_model

from modeling_pefomed import PeFoMedForConditionalGeneration

from ..errors import PeFoMedError
from ..models.adapter_folders import check_quantized
from ..models.adapter_models import own_class, train_in_float32
from ..models.bases import base_fingerprint
from .peft_methods import peft_config


def add_adapter(
    base: PeFoMedForConditionalGeneration,
    *,
    r: int,
    alpha: int,
    dropout: float,
    method: str = "lora",
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    virtual_tokens: int = 20,
) -> PeftModel:
    """Return the base with a fresh adapter: a PEFT method's weights and the whole projector, all of it in float32.

    By default it is the paper's, LoRA on the language model's q_proj and v_proj: at the paper's sizes (r 64) it trains
    56,627,200 parameters.

    Args:
        method: a name of `peft_methods.METHODS`.
        target_modules: names of linear layers of the language model, for methods that adapt layers.
        virtual_tokens: how many tokens LLaMA-Adapter, prompt, prefix and p-tuning learn.

    Raises:
        PeFoMedError: the language model has no such layers, or the method cannot be put on this base.
    """
    config = peft_config(
        base, method, r=r, alpha=alpha, dropout=dropout, target_modules=target_modules, virtual_tokens=virtual_tokens
    )
    check_quantized(base, config)
    own, fingerprint = own_class(config), base_fingerprint(base)
    try:
        model = get_peft_model(base, config) if own is None else own(base, config)
    except (ValueError, TypeError, AttributeError) as error:
        raise PeFoMedError(f"peft_method {method} cannot be put on this base: {str(error).splitlines()[0]}") from None
    model.base_fingerprint = fingerprint
    return train_in_float32(model)

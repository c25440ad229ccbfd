# SPDX-License-Identifier: Apache-2.0
"""Saved adapters: where one lies, which base it belongs to, and how it comes onto that base."""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file, find_adapter_config_file

from modeling_pefomed import PeFoMedForConditionalGeneration

from ..errors import PeFoMedError
from .adapter_models import CHANGE_THE_BASE, WEIGHTS, own_class, train_in_float32
from .bases import FINGERPRINT, base_fingerprint, check_base, quantization_of


def check_quantized(base: PeFoMedForConditionalGeneration, config: PeftConfig) -> None:
    """Check that a method works on a base in 4 bits, where PEFT would fail at the first step or change the base.

    Raises:
        PeFoMedError: it does not; the method is named.
    """
    start = getattr(config, "init_lora_weights", True)
    method = start if start in CHANGE_THE_BASE else str(config.peft_type.value).lower()
    if quantization_of(base) != "none" and method in (*CHANGE_THE_BASE, "loha", "lokr"):
        raise PeFoMedError(f"{method} does not work on a base in 4 bits; use lora, or quantization none")


def adapter_folder(name: str | Path) -> Path | None:
    """Return the local folder of an adapter, fetched from the Hub where `name` is an id; `None` for a base model.

    Raises:
        OSError: nothing is there, or the Hub cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder if (folder / "adapter_config.json").is_file() else None
    settings = find_adapter_config_file(str(name))
    if settings is None:
        return None
    for file in (WEIGHTS, FINGERPRINT):
        cached_file(str(name), file, _raise_exceptions_for_missing_entries=False)
    return Path(settings).parent


def load_adapter(
    base: PeFoMedForConditionalGeneration,
    folder: Path,
    *,
    trainable: bool,
    name: str = "default",
    beside: PeftModel | None = None,
) -> PeftModel:
    """Return the base with a saved adapter on it.

    Args:
        name: under which PEFT knows the adapter.
        beside: the model that already holds other adapters of this base, and then is what is returned.

    Raises:
        PeFoMedError: the folder holds no adapter, or it was trained on a base of other sizes or other weights.
    """
    if not (folder / "adapter_config.json").is_file():
        raise PeFoMedError(f"{folder}: no adapter there (adapter_config.json is missing)")
    named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    try:
        if beside is not None:
            check_base(folder, beside.base_fingerprint, named)
            beside.load_adapter(folder, name, is_trainable=trainable)
            return check_tensors(beside, folder, name)
        fingerprint = base_fingerprint(base)
        check_base(folder, fingerprint, named)
        config = PeftConfig.from_pretrained(folder)
        check_quantized(base, config)
        own = own_class(config)
        if own is None:
            model = PeftModel.from_pretrained(base, folder, name, is_trainable=trainable)
            check_tensors(model, folder, name)
        else:
            config.inference_mode = False
            model = own(base, config, name)
            model.load_adapter(folder)
            model = train_in_float32(model) if trainable else model.requires_grad_(False).eval()
        model.base_fingerprint = fingerprint
        return model
    except SafetensorError as error:
        raise PeFoMedError(f"{folder}: cannot load the adapter's weights ({error})") from None
    except (RuntimeError, OSError) as error:
        first = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), str(error))
        raise PeFoMedError(
            f"{folder}: this adapter does not fit the base model. It was trained on {named!r}; load that. ({first})"
        ) from None


def check_tensors(model: PeftModel, folder: Path, name: str) -> PeftModel:
    """Return the model, after comparing which tensors it has with which are saved: PEFT passes over differences.

    Raises:
        RuntimeError: a tensor is missing on one side.
    """
    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        differing = set(weights.keys()) ^ set(get_peft_model_state_dict(model, adapter_name=name))
    if differing:
        raise RuntimeError(f"size mismatch: {len(differing)} tensors, such as {sorted(differing)[0]}")
    return model

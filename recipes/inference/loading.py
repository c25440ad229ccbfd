# SPDX-License-Identifier: Apache-2.0
"""Models to be asked: an adapter on its base, a base alone, or one base with several adapters."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoProcessor

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

from ..devices import default_dtype
from ..errors import PeFoMedError
from ..models.adapter_folders import adapter_folder, load_adapter
from ..models.adapter_models import ProjectorPeftModel
from ..models.bases import load_base_model
from .merged_layers import merge_layers, refuse_method
from .switching import BASE, check_methods, check_names


def load_processor(folder: str | Path) -> PeFoMedProcessor:
    """Return the processor that lies beside an adapter or a base model.

    Raises:
        PeFoMedError: there is none.
    """
    try:
        return AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise PeFoMedError(f"{folder}: cannot load an adapter or a base model ({_first_line(error)})") from None


def load_model(
    folder: str | Path,
    dtype: torch.dtype | None = None,
    quantization: str = "none",
    *,
    merge: bool = False,
    without_tower: bool = False,
) -> tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]:
    """Return a model in evaluation mode and its processor, from an adapter or a base model: a folder or a Hub id.

    Args:
        dtype: the base's number format; by default the device's best.
        quantization: `nf4` loads the base in 4 bits. An adapter loads on both forms of its base, whichever of them it
            was trained on; its answers are closest to those of training on the same form.
        merge: add a LoRA adapter to the base's weights in memory. Answers come a little faster, and are the adapter's
            up to rounding.
        without_tower: leave the vision tower out of memory, where all images come from a feature cache.

    Raises:
        PeFoMedError: nothing loadable is there, the base model that the adapter names is missing, or its weights are
            not those that the adapter was trained on.
    """
    gc.collect()  # trainers refer to themselves: an earlier model would stay in memory beside this one
    processor = load_processor(folder)
    try:
        adapter = adapter_folder(folder)
        if merge and adapter is not None:
            refuse_method(adapter)
            if quantization != "none":
                raise OSError("an adapter cannot be merged into 4-bit weights; leave out one of the two")
        base = folder if adapter is None else located_base(adapter)
        model = load_base(base, dtype, quantization, without_tower=without_tower)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise PeFoMedError(f"{folder}: cannot load an adapter or a base model ({_first_line(error)})") from None
    if adapter is not None:
        peft_model = load_adapter(model, adapter, trainable=False)
        if merge:
            return merge_layers(peft_model), processor
        # The adapter's layers are inside the base now; virtual tokens stand in front of it.
        model = peft_model if isinstance(peft_model, ProjectorPeftModel) else peft_model.get_base_model()
    return model.eval(), processor


def load_adapters(
    folders: Mapping[str, str | Path], dtype: torch.dtype | None = None, quantization: str = "none"
) -> tuple[PeftModel, PeFoMedProcessor]:
    """Return one base with several adapters and the first one's processor; `Request.adapter` says which one answers.

    Args:
        folders: adapters by the names that requests use; the first one answers requests without a name. The base is
            the one that the first adapter names.
        dtype, quantization: as in [`load_model`].

    Raises:
        PeFoMedError: an adapter cannot be loaded, was trained on another base, or cannot share it.
        ConfigError: a name that PEFT would confuse with a weight's.
    """
    gc.collect()
    processor = load_processor(next(iter(folders.values())))
    adapters = {}
    try:
        for name, folder in folders.items():
            found = adapter_folder(folder)
            if found is None:
                raise OSError(f"{folder} is a base model; ask it as {BASE}")
            adapters[name] = found
        configs = {name: PeftConfig.from_pretrained(folder) for name, folder in adapters.items()}
        check_methods(configs)
        base = load_base(located_base(next(iter(adapters.values()))), dtype, quantization)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise PeFoMedError(f"{name}: cannot load the adapter or its base model ({_first_line(error)})") from None
    check_names(list(adapters), base)
    model: Any = None
    for name, folder in adapters.items():
        model = load_adapter(base, folder, trainable=False, name=name, beside=model)
    return model.eval(), processor


def load_base(
    base: str | Path, dtype: torch.dtype | None, quantization: str, *, without_tower: bool = False
) -> PeFoMedForConditionalGeneration:
    """Return a base model on the GPU where there is one.

    Raises:
        OSError: there is none; for a folder that was moved, the message says how to find it again.
    """
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise OSError(
            f"its base is not at {base} any more; put it back, or write its new place into "
            "base_model_name_or_path of adapter_config.json"
        )
    model = load_base_model(base, dtype or default_dtype(), quantization, without_tower=without_tower)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def adapter_base(folder: str | Path) -> str:
    """Return the base model that an adapter's folder names; "" where the folder holds no adapter or names none."""
    settings = Path(folder) / "adapter_config.json"
    named = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return named.get("base_model_name_or_path") or ""


def located_base(folder: Path) -> str:
    """Return where an adapter's base lies: the folder or Hub id that it names, or the local copy of the commit there.

    A commit that is named is fetched where it is not there: what is published later is another base.

    Raises:
        OSError: the commit is not there, or the Hub cannot be reached.
    """
    base = adapter_base(folder)
    revision = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("revision")
    return base if not revision or Path(base).is_dir() else snapshot_download(base, revision=revision)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

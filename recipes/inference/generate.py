# SPDX-License-Identifier: Apache-2.0
"""Answers from a local model: each image is encoded and prefilled once for all its questions.

Source: greedy decoding, as the paper. Differs: the released code encodes the image again for every question; the
tokens are the same.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoProcessor, DynamicCache

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor, shared_prefix_length

from ..devices import default_dtype
from ..errors import PeFoMedError
from ..models.adapter_folders import adapter_folder, load_adapter
from ..models.adapter_models import ProjectorPeftModel
from ..models.bases import load_base_model
from .switching import BASE, can_mix, check_methods, check_names, switched

# Longest answers in tokens, by task.
MAX_NEW_TOKENS = {"vqa": 32, "refer": 32, "caption": 128, "report": 300}


@dataclass
class Request:
    """One instruction about images: `images` are RGB pictures, the same objects for requests that share them.

    `adapter` names which of several loaded adapters answers (see `several_adapters.py`), `__base__` the base without
    any; `None` takes the model as it is.
    """

    id: str
    task: str
    instruction: str
    images: tuple[Image.Image, ...]
    adapter: str | None = None


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
    folder: str | Path, dtype: torch.dtype | None = None, quantization: str = "none"
) -> tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]:
    """Return a model in evaluation mode and its processor, from an adapter or a base model: a folder or a Hub id.

    Args:
        dtype: the base's number format; by default the device's best.
        quantization: `nf4` loads the base in 4 bits. An adapter loads on both forms of its base, whichever of them it
            was trained on; its answers are closest to those of training on the same form.

    Raises:
        PeFoMedError: nothing loadable is there, the base model that the adapter names is missing, or its weights are
            not those that the adapter was trained on.
    """
    gc.collect()  # trainers refer to themselves: an earlier model would stay in memory beside this one
    processor = load_processor(folder)
    try:
        adapter = adapter_folder(folder)
        model = load_base(folder if adapter is None else adapter_base(adapter), dtype, quantization)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise PeFoMedError(f"{folder}: cannot load an adapter or a base model ({_first_line(error)})") from None
    if adapter is not None:
        peft_model = load_adapter(model, adapter, trainable=False)
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
        base = load_base(adapter_base(next(iter(adapters.values()))), dtype, quantization)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise PeFoMedError(f"{name}: cannot load the adapter or its base model ({_first_line(error)})") from None
    check_names(list(adapters), base)
    model: Any = None
    for name, folder in adapters.items():
        model = load_adapter(base, folder, trainable=False, name=name, beside=model)
    return model.eval(), processor


def load_base(base: str | Path, dtype: torch.dtype | None, quantization: str) -> PeFoMedForConditionalGeneration:
    """Return a base model on the GPU where there is one.

    Raises:
        OSError: there is none; for a folder that was moved, the message says how to find it again.
    """
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise OSError(
            f"its base is not at {base} any more; put it back, or write its new place into "
            "base_model_name_or_path of adapter_config.json"
        )
    model = load_base_model(base, dtype or default_dtype(), quantization)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def adapter_base(folder: str | Path) -> str:
    """Return the base model that an adapter's folder names; "" where the folder holds no adapter or names none."""
    settings = Path(folder) / "adapter_config.json"
    named = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return named.get("base_model_name_or_path") or ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def shared_prefix_batches(
    requests: Sequence[Request],
    rows_per_batch: int,
    length_of: Callable[[Request], int] | None = None,
    mix_adapters: bool = False,
) -> Iterator[list[Request]]:
    """Yield batches of at most `rows_per_batch` requests of one task and one number of images, so that all prompts of
    a batch share their image tokens' places; requests about the same images stand together.

    Args:
        length_of: where given, only requests of equal length are put together.
        mix_adapters: whether requests to different adapters may stand in a batch. Those with several images never do:
            PEFT gives adapters to rows, and the projector's rows are images.
    """
    kinds: dict[tuple[object, ...], dict[tuple[int, ...], list[Request]]] = {}
    for request in requests:
        alone = None if mix_adapters and len(request.images) == 1 else request.adapter
        kind = (request.task, len(request.images), length_of(request) if length_of else 0, alone)
        kinds.setdefault(kind, {}).setdefault((*map(id, request.images),), []).append(request)
    for groups in kinds.values():
        ordered = [request for group in groups.values() for request in group]
        for start in range(0, len(ordered), rows_per_batch):
            yield ordered[start : start + rows_per_batch]


@torch.inference_mode()
def generate_answers(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    requests: Sequence[Request],
    *,
    rows_per_batch: int = 64,
    max_new_tokens: int | None = None,
    **generation: Any,
) -> Iterator[tuple[str, str]]:
    """Yield `(id, answer)` for each request, batch by batch; the order may differ from that of the requests.

    Args:
        rows_per_batch: requests decoded together.
        max_new_tokens: by default the task's, see `MAX_NEW_TOKENS`.
        generation: passed on to `generate`; greedy decoding by default.

    Raises:
        PeFoMedError: a request has no image.
    """
    if not all(request.images for request in requests):
        raise PeFoMedError("A request has no image; PeFoMed answers questions about images.")
    prompt_of = {id(r): processor.encode_prompt(r.instruction, r.task, num_images=len(r.images)) for r in requests}
    # Options that look at the prompt, such as a repetition penalty, must not see padding in it; in a sliding window it
    # would take up places.
    unpadded = bool(generation) or getattr(model.config.get_text_config(), "sliding_window", None) is not None
    length_of = (lambda request: len(prompt_of[id(request)])) if unpadded else None
    for batch in shared_prefix_batches(requests, rows_per_batch, length_of, can_mix(model)):
        prompts = [prompt_of[id(request)] for request in batch]
        limit = max_new_tokens or MAX_NEW_TOKENS[batch[0].task]
        with switched(model, [request.adapter for request in batch]) as mixed:
            padded_to = 1 if unpadded else 8
            output = _generate_batch(model, processor, batch, prompts, limit, generation, mixed, padded_to)
        for request, tokens in zip(batch, output, strict=True):
            yield request.id, processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _generate_batch(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    batch: Sequence[Request],
    prompts: list[list[int]],
    max_new_tokens: int,
    generation: dict[str, Any],
    mixed: bool,
    padded_to: int,
) -> torch.Tensor:
    """Return generated ids (rows, new tokens): prefill the distinct prefixes, fan them out, decode the questions."""

    def adapters_of(rows: Sequence[Request]) -> dict[str, Any]:
        return {"adapter_names": [row.adapter or model.active_adapter for row in rows]} if mixed else {}

    prefixes, row_of = _distinct_prefixes(batch)
    length = shared_prefix_length(prompts)
    images = [image for index in prefixes for image in batch[index].images]
    pixel_values = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device)
    cache = DynamicCache(config=model.config.get_text_config())
    prefix_ids = torch.tensor([prompts[index][:length] for index in prefixes], device=model.device)
    model(
        input_ids=prefix_ids,
        pixel_values=pixel_values,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **adapters_of([batch[index] for index in prefixes]),
    )
    cache.batch_select_indices(torch.tensor(row_of, device=model.device))

    # Questions are padded between the prefix and the answer, so that all answers start in the same column. Lengths are
    # rounded up, because on a CPU every new shape costs seconds once.
    longest = -(-max(len(prompt) - length for prompt in prompts) // padded_to) * padded_to
    pad = model.generation_config.pad_token_id
    rows, masks = [], []
    for prompt in prompts:
        own = prompt[length:]
        gap = longest - len(own)
        rows.append(prompt[:length] + [pad] * gap + own)
        masks.append([1] * length + [0] * gap + [1] * len(own))
    input_ids = torch.tensor(rows, device=model.device)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.tensor(masks, device=model.device),
        past_key_values=cache,
        max_new_tokens=max_new_tokens,
        **{"do_sample": False, **generation},
        **adapters_of(batch),
    )
    return output[:, input_ids.shape[1] :]


def _distinct_prefixes(batch: Sequence[Request]) -> tuple[list[int], list[int]]:
    """Return the index of the first request of each distinct image set and adapter, and for each request which of them
    it uses."""
    first: dict[tuple[object, ...], int] = {}
    indices: list[int] = []
    row_of: list[int] = []
    for index, request in enumerate(batch):
        key = (request.adapter, *map(id, request.images))
        if key not in first:
            first[key] = len(indices)
            indices.append(index)
        row_of.append(first[key])
    return indices, row_of

# SPDX-License-Identifier: Apache-2.0
"""Answers from a local model: each image is encoded and prefilled once for all its questions.

Source: greedy decoding, as the paper. Differs: the released code encodes the image again for every question; the
tokens are the same.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor, shared_prefix_length

from ..devices import default_dtype
from ..errors import PeFoMedError

# Longest answers in tokens, by task.
MAX_NEW_TOKENS = {"vqa": 32, "refer": 32, "caption": 128, "report": 300}


@dataclass
class Request:
    """One instruction about images: `images` are RGB pictures, the same objects for requests that share them."""

    id: str
    task: str
    instruction: str
    images: tuple[Image.Image, ...]


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
    folder: str | Path, dtype: torch.dtype | None = None
) -> tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]:
    """Return a model in evaluation mode and its processor, from an adapter or a base model: a folder or a Hub id.

    Raises:
        PeFoMedError: nothing loadable is there, or the base model that the adapter names is missing.
    """
    gc.collect()  # trainers refer to themselves: an earlier model would stay in memory beside this one
    processor = load_processor(folder)
    try:
        base = adapter_base(folder)
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise OSError(
                f"its base is not at {base} any more; put it back, or write its new place into "
                "base_model_name_or_path of adapter_config.json"
            )
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype or default_dtype())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise PeFoMedError(f"{folder}: cannot load an adapter or a base model ({_first_line(error)})") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), processor


def adapter_base(folder: str | Path) -> str:
    """Return the base model that an adapter's folder names; "" where the folder holds no adapter or names none."""
    settings = Path(folder) / "adapter_config.json"
    named = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return named.get("base_model_name_or_path") or ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def shared_prefix_batches(
    requests: Sequence[Request], rows_per_batch: int, length_of: Callable[[Request], int] | None = None
) -> Iterator[list[Request]]:
    """Yield batches of at most `rows_per_batch` requests of one task and one number of images, so that all prompts of
    a batch share their image tokens' places; requests about the same images stand together.

    Args:
        length_of: where given, only requests of equal length are put together.
    """
    kinds: dict[tuple[object, ...], dict[tuple[int, ...], list[Request]]] = {}
    for request in requests:
        kind = (request.task, len(request.images), length_of(request) if length_of else 0)
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
    # Options that look at the prompt, such as a repetition penalty, must not see padding in it.
    length_of = (lambda request: len(prompt_of[id(request)])) if generation else None
    for batch in shared_prefix_batches(requests, rows_per_batch, length_of):
        prompts = [prompt_of[id(request)] for request in batch]
        limit = max_new_tokens or MAX_NEW_TOKENS[batch[0].task]
        output = _generate_batch(model, processor, batch, prompts, limit, generation)
        for request, tokens in zip(batch, output, strict=True):
            yield request.id, processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _generate_batch(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    batch: Sequence[Request],
    prompts: list[list[int]],
    max_new_tokens: int,
    generation: dict[str, Any],
) -> torch.Tensor:
    """Return generated ids (rows, new tokens): prefill the distinct prefixes, fan them out, decode the questions."""
    prefixes, row_of = _distinct_prefixes(batch, prompts)
    length = shared_prefix_length(prompts)
    images = [image for index in prefixes for image in batch[index].images]
    pixel_values = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device)
    cache = DynamicCache(config=model.config.get_text_config())
    prefix_ids = torch.tensor([prompts[index][:length] for index in prefixes], device=model.device)
    model.model(input_ids=prefix_ids, pixel_values=pixel_values, past_key_values=cache, use_cache=True)
    cache.batch_select_indices(torch.tensor(row_of, device=model.device))

    # Questions are padded between the prefix and the answer, so that all answers start in the same column. Lengths are
    # rounded up, because on a CPU every new shape costs seconds once.
    longest = max(len(prompt) - length for prompt in prompts)
    if not generation:
        longest = -(-longest // 8) * 8
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
    )
    return output[:, input_ids.shape[1] :]


def _distinct_prefixes(batch: Sequence[Request], prompts: list[list[int]]) -> tuple[list[int], list[int]]:
    """Return the index of the first request of each distinct image set, and for each request which of them it uses."""
    first: dict[tuple[int, ...], int] = {}
    indices: list[int] = []
    row_of: list[int] = []
    for index, request in enumerate(batch):
        key = (*map(id, request.images),)
        if key not in first:
            first[key] = len(indices)
            indices.append(index)
        row_of.append(first[key])
    return indices, row_of

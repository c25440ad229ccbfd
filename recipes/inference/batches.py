# SPDX-License-Identifier: Apache-2.0
"""Answers by stock `generate`, for everything that [`rows`] does not do: sampling and other options, virtual tokens,
sliding windows. Each image is still prefilled once a batch for all its questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor, shared_prefix_length

from ..models.feature_cache import FeatureCache
from .prefixes import image_inputs
from .requests import Request, image_keys, longest_answer, prompt_ids, side_by_side
from .switching import can_mix, switched


def answers_by_generate(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    requests: Sequence[Request],
    rows_per_batch: int,
    max_new_tokens: int | None,
    features: FeatureCache | None,
    generation: dict[str, Any],
) -> Iterator[tuple[str, list[int]]]:
    """Yield the id and the answer's token ids of each request, batch by batch; padding may follow an answer."""
    prompts = {id(request): prompt_ids(processor, request) for request in requests}
    # Options that look at the prompt, such as a repetition penalty, must not see padding in it; in a sliding window it
    # would take up places.
    unpadded = bool(generation) or getattr(model.config.get_text_config(), "sliding_window", None) is not None
    for batch in shared_prefix_batches(requests, prompts, rows_per_batch, unpadded, can_mix(model)):
        with switched(model, [request.adapter for request in batch]) as mixed:
            options = {"max_new_tokens": longest_answer(batch[0], max_new_tokens), "do_sample": False, **generation}
            rows = [prompts[id(request)] for request in batch]
            answers = _generate_batch(model, processor, batch, rows, features, mixed, 1 if unpadded else 8, options)
        yield from zip([request.id for request in batch], answers.tolist(), strict=True)


def shared_prefix_batches(
    requests: Sequence[Request],
    prompts: dict[int, list[int]],
    rows_per_batch: int,
    equal_lengths: bool = False,
    mix_adapters: bool = False,
) -> Iterator[list[Request]]:
    """Yield batches of at most `rows_per_batch` requests of one task and one number of images, so that all prompts of
    a batch share their image tokens' places; requests about the same images stand together.

    Args:
        prompts: token ids by the request's `id()`.
        equal_lengths: whether only prompts of equal length are put together.
        mix_adapters: whether requests to different adapters may stand in a batch. Those with several images never do:
            PEFT gives adapters to rows, and the projector's rows are images.
    """
    kinds: dict[tuple[object, ...], list[Request]] = {}
    for request in side_by_side(requests):
        alone = None if mix_adapters and len(request.images) == 1 else request.adapter
        length = len(prompts[id(request)]) if equal_lengths else 0
        kind = (request.task, len(request.images), isinstance(request.images[0], str), length, alone)
        kinds.setdefault(kind, []).append(request)
    for ordered in kinds.values():
        for start in range(0, len(ordered), rows_per_batch):
            yield ordered[start : start + rows_per_batch]


def _generate_batch(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    batch: Sequence[Request],
    prompts: list[list[int]],
    features: FeatureCache | None,
    mixed: bool,
    padded_to: int,
    options: dict[str, Any],
) -> torch.Tensor:
    """Return generated ids (rows, new tokens): prefill the distinct prefixes, fan them out, decode the questions."""

    def adapters_of(rows: Sequence[Request]) -> dict[str, Any]:
        return {"adapter_names": [row.adapter or model.active_adapter for row in rows]} if mixed else {}

    prefixes, row_of = _distinct_prefixes(batch)
    length = shared_prefix_length(prompts)
    images = [image for index in prefixes for image in batch[index].images]
    cache = DynamicCache(config=model.config.get_text_config())
    prefix_ids = torch.tensor([prompts[index][:length] for index in prefixes], device=model.device)
    model(
        input_ids=prefix_ids,
        **image_inputs(model, processor, images, features),
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
        **options,
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
        key = (request.adapter, *image_keys(request))
        if key not in first:
            first[key] = len(indices)
            indices.append(index)
        row_of.append(first[key])
    return indices, row_of

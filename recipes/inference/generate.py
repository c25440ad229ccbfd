# SPDX-License-Identifier: Apache-2.0
"""Answers from a local model: each image is encoded and prefilled once for all its questions.

Source: greedy decoding, as the paper. Differs: the released code encodes the image again for every question; the
tokens are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import torch
from peft import PeftModel
from transformers import CompileConfig

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor, shared_prefix_length

from ..errors import PeFoMedError
from ..models.feature_cache import FeatureCache
from .batches import answers_by_generate
from .loading import load_adapters, load_model, load_processor
from .prefixes import Beginning, Prefix, prefill
from .requests import MAX_NEW_TOKENS, Request, about_the_same_images, longest_answer, prompt_ids, side_by_side
from .rows import Group, Row, RowDecoder, decode_rows, decodes_rows
from .switching import can_mix, check_loaded, switched

__all__ = ["MAX_NEW_TOKENS", "Request", "generate_answers", "load_adapters", "load_model", "load_processor"]


def generate_answers(
    model: PeFoMedForConditionalGeneration, processor: PeFoMedProcessor, requests: Iterable[Request], **options: Any
) -> Iterator[tuple[str, str]]:
    """Yield `(id, answer)` for each request as it ends; the order may differ from that of the requests.

    Args:
        options: see [`generate_tokens`].
    """
    for request_id, tokens in generate_tokens(model, processor, requests, **options):
        yield request_id, processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@torch.inference_mode()
def generate_tokens(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    requests: Iterable[Request],
    *,
    rows_per_batch: int = 64,
    max_new_tokens: int | None = None,
    features: FeatureCache | None = None,
    compile_config: CompileConfig | None = None,
    **generation: Any,
) -> Iterator[tuple[str, list[int]]]:
    """Yield the id and the answer's token ids of each request: those that `generate` gives to each alone.

    Args:
        requests: those about the same images are put side by side. What is no list or tuple is taken as it comes, a
            few at a time, so that not all pictures need to be in memory; there, they should stand so already.
        rows_per_batch: requests decoded together.
        max_new_tokens: by default the task's, see `MAX_NEW_TOKENS`.
        features: features of images that requests name by their paths.
        compile_config: compiles the decoding step, for GPUs.
        generation: passed on to `generate`; greedy decoding by default.

    Raises:
        PeFoMedError: a request has no image, names an adapter that is not loaded, or an image is not in the feature
            cache.
    """
    ready = checked(model, side_by_side(requests) if isinstance(requests, Sequence) else requests)
    if generation or not decodes_rows(model):
        at_once = len(requests) if isinstance(requests, Sequence) else rows_per_batch
        while some := list(islice(ready, at_once)):
            yield from answers_by_generate(
                model, processor, some, rows_per_batch, max_new_tokens, features, generation
            )
        return
    for part, adapters in _parts(model, ready):
        rows = _decode(model, processor, part, adapters, rows_per_batch, max_new_tokens, features, compile_config)
        yield from ((row.id, row.tokens) for row in rows)


def checked(model: Any, requests: Iterable[Request]) -> Iterator[Request]:
    """Pass requests on.

    Raises:
        PeFoMedError: a request has no image, or names an adapter that is not loaded.
    """
    for request in requests:
        if not request.images:
            raise PeFoMedError("A request has no image; PeFoMed answers questions about images.")
        check_loaded(model, [request.adapter])
        yield request


def _decode(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    requests: Iterable[Request],
    adapters: list[str | None],
    rows_per_batch: int,
    max_new_tokens: int | None,
    features: FeatureCache | None,
    compile_config: CompileConfig | None,
) -> Iterator[Row]:
    """Decode requests that may stand in one batch."""

    def context() -> AbstractContextManager[bool]:
        return switched(model, adapters)

    def prefill_all(beginnings: list[Beginning]) -> list[Prefix]:
        return prefill(model, processor, beginnings, features, context)

    def groups() -> Iterator[Group]:
        for same in about_the_same_images(requests):
            prompts = [prompt_ids(processor, request) for request in same]
            shared = Beginning(same[0].images, prompts[0][: shared_prefix_length(prompts)], same[0].adapter)
            rows = [
                Row(r.id, prompt, longest_answer(r, max_new_tokens), r.adapter)
                for r, prompt in zip(same, prompts, strict=True)
            ]
            yield Group(rows, shared)

    decoder = RowDecoder(model, rows_per_batch, context, compile_config)
    yield from decode_rows(decoder, groups(), prefill_all)


def _parts(model: Any, requests: Iterable[Request]) -> Iterator[tuple[Iterable[Request], list[str | None]]]:
    """Yield requests that may stand in one batch, and the adapters that they name.

    Requests to different adapters with several images never do: PEFT gives adapters to rows, and the projector's rows
    are images.
    """
    if not isinstance(model, PeftModel):
        yield requests, [None]
        return
    parts: dict[object, list[Request]] = {}
    for request in requests:
        mixed = can_mix(model) and len(request.images) == 1
        parts.setdefault(mixed or (request.adapter,), []).append(request)
    for part in parts.values():
        yield part, [request.adapter for request in part]

# SPDX-License-Identifier: Apache-2.0
"""An answer as it is decoded, word by word, for a page; further questions about an image start from its prefix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

from .generate import checked, generate_answers
from .prefixes import Beginning, PrefixMemory, prefill
from .requests import Request, longest_answer, prompt_ids
from .rows import Row, RowDecoder, decodes_rows
from .switching import switched


@torch.inference_mode()
def stream_answer(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    request: Request,
    *,
    memory: PrefixMemory | None = None,
    max_new_tokens: int | None = None,
) -> Iterator[str]:
    """Yield an answer in pieces of whole words; joined, they are what [`generate_answers`] gives.

    What [`rows.decodes_rows`] excludes comes in one piece.

    Args:
        memory: what earlier questions left; where it knows the images, they are neither encoded nor prefilled again.
        max_new_tokens: by default the task's.
    """
    if not decodes_rows(model):
        [(_, answer)] = generate_answers(model, processor, [request], max_new_tokens=max_new_tokens)
        yield answer
        return
    [request] = checked(model, [request])
    prompt = prompt_ids(processor, request)
    beginning = Beginning(request.images, prompt[:-1], request.adapter)

    def context() -> Any:
        return switched(model, [request.adapter])

    prefix = memory.recall(beginning, model.config.image_token_id) if memory else None
    if prefix is None:
        [prefix] = prefill(model, processor, [beginning], None, context)
        if memory:
            memory.keep(beginning, prefix)
    row = Row(request.id, prompt, longest_answer(request, max_new_tokens))
    decoder = RowDecoder(model, 1, context)
    ended = decoder.admit([([row], prefix)])
    said = ""
    while not ended:
        text = processor.tokenizer.decode(row.tokens, skip_special_tokens=True).lstrip()
        whole = text[: text.rfind(" ") + 1].rstrip()  # the last word may still grow
        if len(whole) > len(said):
            yield whole[len(said) :]
            said = whole
        ended = decoder.step()
    yield processor.tokenizer.decode(row.tokens, skip_special_tokens=True).strip()[len(said) :]

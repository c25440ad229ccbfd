# SPDX-License-Identifier: Apache-2.0
"""How likely the model finds a given text: p(yes) of a closed question, and what in a report its image supports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor, shared_prefix_length

from ..answers import YES_NO
from ..models.feature_cache import FeatureCache
from .generate import checked
from .prefixes import Beginning, image_inputs, prefill
from .requests import Request, about_the_same_images, prompt_ids, side_by_side
from .rows import Row, RowDecoder, decodes_rows
from .switching import switched

# Tokens whose logits are in memory together.
LOGITS_TOGETHER = 512
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass
class SentenceSupport:
    """A sentence of a report; `support` is log p(sentence | image, text before) - log p(sentence | blank image, text
    before), in nats: about 0 or less where the image did not support it. `log_probability` is the former term."""

    sentence: str
    log_probability: float
    support: float


def answer_probabilities(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    requests: Iterable[Request],
    options: Sequence[str] = YES_NO,
    *,
    features: FeatureCache | None = None,
) -> dict[str, dict[str, float]]:
    """Return p(option | one of the options) by request id and option: 0..1, 1 in sum.

    An option's probability is that of all its tokens and the end of the answer. Each image is prefilled once.

    Args:
        options: two or more different answers, as training spelt them.
        features: features of images that requests name by their paths.
    """
    encoded = [processor.encode_answer(option) for option in options]
    ordered = side_by_side(requests)
    found = {}
    for request, scored in zip(ordered, log_probabilities(model, processor, ordered, encoded, features), strict=True):
        shares = torch.stack([tokens.sum() for tokens in scored]).softmax(0).tolist()
        found[request.id] = dict(zip(options, shares, strict=True))
    return found


def sentence_support(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    request: Request,
    report: str,
    blank: Image.Image,
    *,
    features: FeatureCache | None = None,
) -> list[SentenceSupport]:
    """Return for each sentence of a report how much its images raise its probability.

    Args:
        request: what the report answers.
        report: the model's own, or any other; an empty one has no sentences.
        blank: see `controls.blank_image`. It is encoded live.
        features: features of images that the request names by their paths.
    """
    if not report.strip():
        return []
    ids = processor.encode_answer(report.strip())
    blind = replace(request, images=(blank,) * len(request.images))
    (seen,), (unseen,) = log_probabilities(model, processor, [request, blind], [ids], features)
    sentences = _SENTENCE_END.split(report.strip())
    of_token = _sentence_of_token(processor, ids, sentences)
    supports = []
    for number, sentence in enumerate(sentences):
        chosen = torch.tensor([place == number for place in of_token])
        with_image, without = seen[chosen].sum().item(), unseen[chosen].sum().item()
        supports.append(SentenceSupport(sentence, with_image, with_image - without))
    return supports


def _sentence_of_token(processor: PeFoMedProcessor, ids: list[int], sentences: list[str]) -> list[int]:
    """Return the sentence in which each token ends, -1 for the answer's end."""
    ends, length = [], 0
    for sentence in sentences:
        length += len(re.sub(r"\s", "", sentence))
        ends.append(length)
    places: list[int] = []
    before = 0
    for count in range(1, len(ids) + 1):
        text = processor.tokenizer.decode(ids[:count], skip_special_tokens=True)
        read = len(re.sub(r"\s", "", text))
        # a space alone belongs to what comes after it
        places.append(next((n for n, end in enumerate(ends) if before < read <= end or read == before < end), -1))
        before = read
    return places


@torch.inference_mode()
def log_probabilities(
    model: PeFoMedForConditionalGeneration,
    processor: PeFoMedProcessor,
    requests: Sequence[Request],
    texts: Sequence[list[int]],
    features: FeatureCache | None = None,
) -> list[list[torch.Tensor]]:
    """Return for each request and each text the log-probability of each of the text's tokens, given the prompt and the
    tokens before it: float32 on the CPU, in nats. Requests about the same images should stand side by side.

    Args:
        texts: token ids that might follow the prompts, alike for all requests.
    """
    found: list[list[torch.Tensor]] = []
    for same in about_the_same_images(checked(model, requests)):
        prompts = [prompt_ids(processor, request) for request in same]
        score = _behind_a_prefix if decodes_rows(model) else _one_by_one
        with switched(model, [same[0].adapter]):
            scored = score(model, processor, same[0].images, prompts, texts, features)
        found += [scored[start : start + len(texts)] for start in range(0, len(scored), len(texts))]
    return found


def _behind_a_prefix(
    model: Any,
    processor: PeFoMedProcessor,
    images: tuple[Any, ...],
    prompts: list[list[int]],
    texts: Sequence[list[int]],
    features: FeatureCache | None,
) -> list[torch.Tensor]:
    """Score every text behind every prompt; the images are prefilled once for all of them."""
    beginning = Beginning(images, prompts[0][: shared_prefix_length(prompts)])
    [prefix] = prefill(model, processor, [beginning], features, lambda: nullcontext(False))
    pairs = [(prompt, ids) for prompt in prompts for ids in texts]
    longest = max(map(len, texts))
    together = max(1, LOGITS_TOGETHER // longest)
    scored = []
    for start in range(0, len(pairs), together):
        some = pairs[start : start + together]
        decoder = RowDecoder(model, len(some), lambda: nullcontext(False))
        logits = decoder.place([([Row("", prompt + ids[:-1], 0) for prompt, ids in some], prefix)], keep=longest)
        scored += [_of_tokens(row[-len(ids) :], ids) for row, (_, ids) in zip(logits, some, strict=True)]
    return scored


def _one_by_one(
    model: Any,
    processor: PeFoMedProcessor,
    images: tuple[Any, ...],
    prompts: list[list[int]],
    texts: Sequence[list[int]],
    features: FeatureCache | None,
) -> list[torch.Tensor]:
    """Score each text in a pass of its own, where the model's prefixes cannot be shared."""
    scored = []
    for prompt in prompts:
        for ids in texts:
            inputs = {"input_ids": torch.tensor([prompt + ids[:-1]], device=model.device)}
            inputs |= image_inputs(model, processor, images, features)
            scored.append(_of_tokens(model(**inputs, logits_to_keep=len(ids)).logits[0], ids))
    return scored


def _of_tokens(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities of token ids from the logits `(tokens, vocabulary)` that predict them."""
    wanted = torch.tensor(ids, device=logits.device)
    return logits.float().log_softmax(-1).gather(-1, wanted[:, None])[:, 0].cpu()

# SPDX-License-Identifier: Apache-2.0
"""What a model is asked: one instruction about one or more images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from modeling_pefomed import PeFoMedProcessor

# Longest answers in tokens, by task.
MAX_NEW_TOKENS = {"vqa": 32, "refer": 32, "caption": 128, "report": 300}


@dataclass
class Request:
    """One instruction about images: RGB pictures, the same objects for requests that share them, or paths whose
    features are in a feature cache.

    `adapter` names which of several loaded adapters answers (see `switching.py`), `__base__` the base without any;
    `None` takes the model as it is. `prompt` holds the prompt's token ids where they are known already.
    """

    id: str
    task: str
    instruction: str
    images: tuple[Image.Image | str, ...]
    adapter: str | None = None
    prompt: Sequence[int] | None = None


def image_keys(request: Request) -> tuple[int | str, ...]:
    """Return what tells a request's images from others, as long as their pictures are in memory."""
    return tuple(image if isinstance(image, str) else id(image) for image in request.images)


def prompt_ids(processor: PeFoMedProcessor, request: Request) -> list[int]:
    """Return the token ids of a request's prompt."""
    if request.prompt is not None:
        return list(request.prompt)
    return processor.encode_prompt(request.instruction, request.task, num_images=len(request.images))


def longest_answer(request: Request, max_new_tokens: int | None) -> int:
    """Return the most tokens of an answer: what is asked for, or else the task's limit."""
    return max_new_tokens or MAX_NEW_TOKENS[request.task]


def side_by_side(requests: Iterable[Request]) -> list[Request]:
    """Return requests with those about the same images, to the same adapter, next to one another."""
    groups: dict[tuple[object, ...], list[Request]] = {}
    for request in requests:
        groups.setdefault((request.adapter, *image_keys(request)), []).append(request)
    return [request for group in groups.values() for request in group]


def about_the_same_images(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Yield runs of requests about the same images to the same adapter, reading one request ahead."""
    run: list[Request] = []  # keeps its pictures in memory, so that no other can have their identity
    for request in requests:
        if run and (request.adapter, image_keys(request)) != (run[0].adapter, image_keys(run[0])):
            yield run
            run = []
        run.append(request)
    if run:
        yield run

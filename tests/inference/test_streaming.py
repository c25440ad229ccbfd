# SPDX-License-Identifier: Apache-2.0
"""A streamed answer is the answer, and further questions about an image start from what is there already."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PIL import Image

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.inference.prefixes import PrefixMemory
from pefomed_recipes.inference.requests import Request
from pefomed_recipes.inference.streaming import stream_answer

from ..modeling.tiny import draw_image

pytestmark = pytest.mark.integration

Loaded = tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]
Plainly = Callable[..., tuple[list[int], str]]

QUESTIONS = ("Is there a mass?", "Which organ is shown, and what is wrong with it?", "Is there a mass or not?")
FIRST, SECOND = draw_image(0), draw_image(1)


def ask(question: int, *images: Image.Image, task: str = "vqa") -> Request:
    return Request(str(question), task, QUESTIONS[question], images)


def test_pieces_of_an_answer_make_up_the_answer(loaded: Loaded, plainly: Plainly) -> None:
    request = ask(1, FIRST, task="report")
    pieces = list(stream_answer(*loaded, request, max_new_tokens=60))
    assert "".join(pieces) == plainly(request, 60)[1]
    assert len(pieces) > 3


def test_an_answer_comes_as_it_is_decoded(loaded: Loaded) -> None:
    pieces = stream_answer(*loaded, ask(1, FIRST, task="report"), max_new_tokens=60)
    steps: list[int] = []
    hook = loaded[0].lm_head.register_forward_hook(lambda *call: steps.append(1))
    next(pieces)
    before = len(steps)
    list(pieces)
    hook.remove()
    assert before < len(steps)


def test_further_questions_about_an_image_do_not_encode_it_again(
    loaded: Loaded, plainly: Plainly, encoded: list[int]
) -> None:
    memory = PrefixMemory(limit=2)
    asked = [ask(0, FIRST), ask(1, FIRST.copy()), ask(2, FIRST), ask(0, FIRST, task="caption"), ask(0, FIRST, SECOND)]
    answers = ["".join(stream_answer(*loaded, request, memory=memory, max_new_tokens=8)) for request in asked]
    assert encoded == [1, 2]
    assert answers == [plainly(request, 8)[1] for request in asked]


def test_the_memory_forgets_what_was_used_longest_ago(loaded: Loaded, encoded: list[int]) -> None:
    memory = PrefixMemory(limit=2)
    for image in (FIRST, SECOND, FIRST, draw_image(2), SECOND, FIRST):
        list(stream_answer(*loaded, ask(0, image), memory=memory, max_new_tokens=2))
    assert len(encoded) == 5  # the third question found its image, the others did not


def test_an_adapter_that_is_not_loaded_is_refused(loaded: Loaded) -> None:
    request = Request("r", "vqa", "why", (FIRST,), "chest")
    with pytest.raises(PeFoMedError, match="no adapter 'chest'"):
        list(stream_answer(*loaded, request))

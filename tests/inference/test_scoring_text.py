# SPDX-License-Identifier: Apache-2.0
"""Probabilities of given texts are those of plain forward passes, one text at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.inference import scoring_text
from pefomed_recipes.inference.controls import blank_image
from pefomed_recipes.inference.requests import Request
from pefomed_recipes.inference.scoring_text import answer_probabilities, log_probabilities, sentence_support

from ..modeling.tiny import ask, draw_image, encode

pytestmark = pytest.mark.integration

Loaded = tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]

FIRST, SECOND = draw_image(0), draw_image(1)
QUESTIONS = ("Is there a mass?", "Is the heart normal? Say yes or no.")


def plain_log_probability(loaded: Loaded, request: Request, ids: list[int]) -> torch.Tensor:
    """Of each token, from a pass over one prompt and one text."""
    model, processor = loaded
    inputs = encode(processor, ask(request.instruction, *request.images), task=request.task)
    length = inputs["input_ids"].shape[1]
    whole = torch.cat([inputs.pop("input_ids"), torch.tensor([ids])], dim=1)
    inputs.pop("attention_mask")
    with torch.no_grad():
        logits = model(input_ids=whole, **inputs).logits[0, length - 1 : -1]
    return logits.log_softmax(-1)[range(len(ids)), ids]


@pytest.fixture
def requests() -> list[Request]:
    """Two questions about one image, one about another, one about two images."""
    images = [(FIRST,), (SECOND,), (FIRST,), (FIRST, SECOND)]
    return [Request(f"r{n}", "vqa", QUESTIONS[n % 2], shown) for n, shown in enumerate(images)]


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "one by one"])
def test_probabilities_are_those_of_whole_answers_with_their_end(
    loaded: Loaded, requests: list[Request], encoded: list[int], monkeypatch: pytest.MonkeyPatch, rows: bool
) -> None:
    options = ("yes", "no", "it cannot be said")
    if not rows:
        monkeypatch.setattr(scoring_text, "decodes_rows", lambda model: False)
    found = answer_probabilities(*loaded, requests, options)
    if rows:
        assert encoded == [1, 1, 2]  # each image set once
    assert found.keys() == {request.id for request in requests}
    for request in requests:
        texts = [loaded[1].encode_answer(option) for option in options]
        sums = [plain_log_probability(loaded, request, ids).sum().item() for ids in texts]
        total = sum(map(math.exp, sums))
        expected = {option: math.exp(one) / total for option, one in zip(options, sums, strict=True)}
        assert found[request.id] == pytest.approx(expected, abs=1e-5)
        assert sum(found[request.id].values()) == pytest.approx(1)
    assert found["r0"] != found["r1"]


def test_the_likelier_of_two_answers_is_the_one_that_greedy_decoding_gives(
    loaded: Loaded, plainly: Callable[..., Any], requests: list[Request]
) -> None:
    model, processor = loaded
    for request in requests:
        tokens, _ = plainly(request, 3)
        [(greedy, other)] = log_probabilities(model, processor, [request], [tokens, processor.encode_answer("yes")])
        assert greedy[0] >= other[0]


REPORT = "The heart is normal. No effusion!  Is there a mass? An axial slice of 3.5 cm"


def test_the_support_of_sentences_is_what_the_image_adds_to_their_probability(loaded: Loaded) -> None:
    model, processor = loaded
    blank = blank_image(processor)
    request = Request("r", "report", "write the report", (FIRST,))
    found = sentence_support(model, processor, request, REPORT, blank)
    assert [one.sentence for one in found] == [
        "The heart is normal.", "No effusion!", "Is there a mass?", "An axial slice of 3.5 cm"
    ]  # fmt: skip
    ids = processor.encode_answer(REPORT)
    with_image = plain_log_probability(loaded, request, ids)
    without = plain_log_probability(loaded, Request("r", "report", "write the report", (blank,)), ids)
    # all tokens but the end of the answer belong to a sentence
    assert sum(one.log_probability for one in found) == pytest.approx(with_image[:-1].sum().item(), abs=1e-3)
    assert sum(one.support for one in found) == pytest.approx((with_image - without)[:-1].sum().item(), abs=1e-3)
    first = len(processor.encode_answer("The heart is normal.")) - 1
    assert found[0].log_probability == pytest.approx(with_image[:first].sum().item(), abs=1e-3)
    assert any(abs(one.support) > 0.01 for one in found)


def test_a_blank_image_supports_nothing(loaded: Loaded) -> None:
    blank = blank_image(loaded[1])
    request = Request("r", "report", "write the report", (blank,))
    assert [one.support for one in sentence_support(*loaded, request, REPORT, blank)] == pytest.approx(
        [0] * 4, abs=1e-4
    )


def test_an_empty_report_has_no_sentences(loaded: Loaded) -> None:
    assert sentence_support(*loaded, Request("r", "report", "", (FIRST,)), " ", blank_image(loaded[1])) == []

# SPDX-License-Identifier: Apache-2.0
"""The loss at labelled positions against the cross entropy of all logits, written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

from .tiny import ask, draw_image

BuildModel = Callable[..., PeFoMedForConditionalGeneration]


@pytest.fixture(scope="module")
def supervised(processor: PeFoMedProcessor) -> dict[str, Any]:
    """Two answered questions, padded on the right, with labels on the answers and their end tokens."""
    rows = []
    for question, answer in (("Is there a mass?", "yes"), ("Which organ is shown in the left image?", "liver, left")):
        prompt, target = processor.encode_prompt(question, "vqa"), processor.encode_answer(answer)
        rows.append((prompt + target, [-100] * len(prompt) + target))
    length = max(len(ids) for ids, _ in rows)
    pad = processor.tokenizer.pad_token_id
    images = [draw_image(seed) for seed in (0, 1)]
    return {
        "input_ids": torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]),
        "pixel_values": processor.image_processor(images, return_tensors="pt")["pixel_values"],
    }


def cross_entropies(model: PeFoMedForConditionalGeneration, supervised: dict[str, Any]) -> list[float]:
    """Minus the log probability of each labelled token given all before it, one by one, in float64."""
    inputs = {name: value for name, value in supervised.items() if name != "labels"}
    logits = model(**inputs).logits.double()
    losses = []
    for row, labels in enumerate(supervised["labels"].tolist()):
        for position, label in enumerate(labels):
            if label != -100:
                scores = logits[row, position - 1].tolist()
                top = max(scores)
                log_sum = top + math.log(sum(math.exp(score - top) for score in scores))
                losses.append(log_sum - scores[label])
    return losses


def test_loss_is_the_mean_cross_entropy_of_the_labelled_tokens(
    model: PeFoMedForConditionalGeneration, supervised: dict[str, Any]
) -> None:
    expected = cross_entropies(model, supervised)
    assert len(expected) == int((supervised["labels"] != -100).sum())
    assert model(**supervised).loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_loss_over_an_accumulated_batch_is_the_sum_over_its_items(
    model: PeFoMedForConditionalGeneration, supervised: dict[str, Any]
) -> None:
    expected = sum(cross_entropies(model, supervised))
    loss = model(**supervised, num_items_in_batch=torch.tensor(100)).loss
    assert loss.item() == pytest.approx(expected / 100, rel=1e-5)


def test_logits_are_computed_at_labelled_positions_only(
    model: PeFoMedForConditionalGeneration, supervised: dict[str, Any]
) -> None:
    inputs = {name: value for name, value in supervised.items() if name != "labels"}
    labelled = supervised["labels"][:, 1:] != -100
    got = model(**supervised).logits
    assert got.shape == (int(labelled.sum()), model.config.text_config.vocab_size)
    torch.testing.assert_close(got, model(**inputs).logits[:, :-1][labelled], rtol=1e-4, atol=1e-4)


def test_a_label_at_the_first_position_has_nothing_to_predict_it(
    model: PeFoMedForConditionalGeneration, supervised: dict[str, Any]
) -> None:
    labels = supervised["labels"].clone()
    labels[:, 0] = 5
    assert torch.equal(model(**dict(supervised) | {"labels": labels}).loss, model(**supervised).loss)


def gradients(model: PeFoMedForConditionalGeneration, supervised: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    model.zero_grad()
    loss = model(**supervised).loss
    loss.backward()
    found = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return loss.item(), found


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(
    own_model: BuildModel, supervised: dict[str, Any], use_reentrant: bool
) -> None:
    model = own_model().train()
    model.enable_input_require_grads()
    plain_loss, plain = gradients(model, supervised)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert model.is_activation_checkpointing
    recomputed = []
    model.model.language_model.layers[0].input_layernorm.register_forward_hook(lambda *_: recomputed.append(1))
    loss, checkpointed = gradients(model, supervised)
    assert len(recomputed) == 2, "the layer must run again in the backward pass, or nothing is checkpointed"
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert checkpointed.keys() == plain.keys()
    assert any("multi_modal_projector" in name for name in plain)
    for name, expected in plain.items():
        torch.testing.assert_close(checkpointed[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_conversation_masks_and_prompt_answer_pairs_give_the_same_loss(
    model: PeFoMedForConditionalGeneration, processor: PeFoMedProcessor, supervised: dict[str, Any]
) -> None:
    """What a chat trainer supervises (the assistant's tokens) is what our rows supervise."""
    encoded = processor.apply_chat_template(
        ask("Is there a mass?", draw_image(0), answer="yes"),
        task="vqa",
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
    )
    mask = torch.as_tensor(encoded.pop("assistant_masks")).bool()
    chat = model(**encoded, labels=encoded["input_ids"].masked_fill(~mask, -100)).loss
    row = {name: value[:1] for name, value in supervised.items()}
    assert chat.item() == pytest.approx(model(**row).loss.item(), rel=1e-5)

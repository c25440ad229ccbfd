# SPDX-License-Identifier: Apache-2.0
"""What the tower gave once takes the place of pixels: the same bits in training and generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from modeling_pefomed import PeFoMedForConditionalGeneration
from pefomed_recipes.models.adapter_models import VirtualTokensPeftModel

Inputs = dict[str, Any]
BuildModel = Callable[..., PeFoMedForConditionalGeneration]


def cached(model: Any, batch: Inputs, extra_tokens: bool = False) -> Inputs:
    """The batch with the tower's output in place of its pixels, as a data loader's plain dictionaries."""
    features = model.get_image_features(batch["pixel_values"], return_dict=True).last_hidden_state
    if not extra_tokens:
        features = features[:, -model.config.num_patches :]
    rest = {name: value for name, value in batch.items() if name != "pixel_values"}
    return rest | {"mm_encoder_outputs": {"image": {"last_hidden_state": features.clone()}}}


def answer_labels(model: Any, batch: Inputs) -> torch.Tensor:
    labels = batch["input_ids"].clone()
    labels[(labels == model.config.image_token_id) | (batch["attention_mask"] == 0)] = -100
    return labels


@pytest.mark.parametrize("extra_tokens", [True, False], ids=["with_cls", "patches_only"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_cached_features_give_the_live_loss_and_gradients_bit_for_bit(
    own_model: BuildModel, batch: Inputs, dtype: torch.dtype, autocast: bool, extra_tokens: bool
) -> None:
    """Also with a projector that PEFT has wrapped."""
    settings = LoraConfig(
        target_modules=r".*language_model.*\.(q_proj|v_proj)",
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )
    base = own_model()
    for part in (base.model.vision_tower, base.model.language_model, base.lm_head):
        part.to(dtype)
    model = get_peft_model(base, settings)
    labels = answer_labels(base, batch)
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for inputs in (batch, cached(base, batch, extra_tokens)):
            model.zero_grad()
            loss = model(**inputs, labels=labels).loss
            loss.backward()
            projector = base.model.multi_modal_projector.modules_to_save["default"].weight.grad
            lora = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
            found.append((loss.detach(), projector, *lora.values()))
    assert found[0][1].abs().max() > 0
    assert all(torch.equal(live, reused) for live, reused in zip(*found, strict=True))


def test_a_tower_in_16_bits_gives_the_same_features_under_autocast(own_model: BuildModel, batch: Inputs) -> None:
    """Training runs under autocast and prediction does not: one cache serves both."""
    model = own_model().eval()
    model.model.vision_tower.to(torch.bfloat16)
    plain = model.get_image_features(batch["pixel_values"], return_dict=True).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.get_image_features(batch["pixel_values"], return_dict=True).last_hidden_state
    assert plain.dtype == mixed.dtype == torch.bfloat16
    assert torch.equal(plain, mixed)


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {"prefill_chunk_size": 5}],
    ids=lambda settings: next(iter(settings), "greedy"),
)
def test_generation_from_cached_features_gives_the_live_tokens(
    model: PeFoMedForConditionalGeneration, batch: Inputs, settings: dict[str, Any]
) -> None:
    answers = []
    for inputs in (dict(batch), cached(model, batch)):
        torch.manual_seed(0)
        answers.append(model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, **settings))
    assert torch.equal(*answers)


def test_generation_leaves_the_callers_features_as_they_were(
    model: PeFoMedForConditionalGeneration, batch: Inputs
) -> None:
    inputs = cached(model, batch)
    given = inputs["mm_encoder_outputs"]["image"]
    before = given["last_hidden_state"].clone()
    model.generate(**inputs, max_new_tokens=2, num_beams=2)
    assert list(given) == ["last_hidden_state"] and torch.equal(given["last_hidden_state"], before)


def test_virtual_tokens_stand_in_front_of_cached_features(own_model: BuildModel, batch: Inputs) -> None:
    base = own_model()
    model = VirtualTokensPeftModel(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    labels = answer_labels(base, batch)
    assert torch.equal(model(**cached(base, batch), labels=labels).loss, model(**batch, labels=labels).loss)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ({}, "nothing"),
        ({"last_hidden_state": torch.zeros(2, 16, 31)}, r"shape \(2, 16, 31\)"),
        ({"last_hidden_state": torch.zeros(16, 32)}, r"shape \(16, 32\)"),
    ],
    ids=["nothing", "other_width", "no_batch"],
)
def test_features_that_are_none_of_this_tower_are_refused(
    model: PeFoMedForConditionalGeneration, batch: Inputs, image: dict[str, torch.Tensor], found: str
) -> None:
    rest = {name: value for name, value in batch.items() if name != "pixel_values"}
    with pytest.raises(ValueError, match=f"holds .*{found}; expected pooler_output, or last_hidden_state"):
        model(**rest, mm_encoder_outputs={"image": image})

# SPDX-License-Identifier: Apache-2.0
"""Packed rows train exactly as one row per question: the same loss and, weight by weight, the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from modeling_pefomed import PeFoMedProcessor
from pefomed_recipes.records import Sample
from pefomed_recipes.training.adapters import add_adapter
from pefomed_recipes.training.collator import PackedRowCollator
from pefomed_recipes.training.packing import IGNORED, pack_samples

from ..modeling.tiny import build_config, build_model, build_processor, draw_image

TOLERANCE = 5e-6  # of a tensor's norm, in float32
IMAGES = {f"{name}.png": draw_image(seed) for seed, name in enumerate("abc")}
QUESTIONS = {
    "a.png": [
        ("Is there a mass?", "yes"),
        ("Which organ is shown?", "liver"),
        ("Is it left?", "no"),
        ("Where is it?", "in the right lung"),
        ("Is there a mass?", "maybe"),
    ],
    "b.png": [("Is there a mass?", "no"), ("Which slice is it?", "axial")],
    "c.png": [("Describe the image.", "the heart is normal, no effusion")],
}


def open_image(path: Any) -> Image.Image:
    return IMAGES[str(path)]


def instruction(sample: Sample) -> str:
    return sample.instruction


@pytest.fixture(scope="module")
def processor() -> PeFoMedProcessor:
    """The tiny model's processor."""
    return build_processor()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Eight questions about three images."""
    return [
        Sample(f"{image}/{number}", "vqa", [image], question, [answer])
        for image, pairs in QUESTIONS.items()
        for number, (question, answer) in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def rows(processor: PeFoMedProcessor, samples: list[Sample]) -> list[dict[str, Any]]:
    """One packed row an image."""
    packed = pack_samples(samples, processor, instruction, max_length=512, max_questions_per_image=16, seed=0)
    assert len(packed) == len(QUESTIONS)
    return list(packed)


def build_adapted(processor: PeFoMedProcessor, attention: str = "sdpa") -> PeftModel:
    """The tiny model with an adapter that has left its start: LoRA's B is no zero, so that A gets gradients too."""
    base = build_model(processor, build_config(processor), attn_implementation=attention)
    adapted = add_adapter(base, r=4, alpha=8, dropout=0.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return adapted.train()


@pytest.fixture(scope="module")
def adapted(processor: PeFoMedProcessor) -> PeftModel:
    """The model of the tests that leave it as it is."""
    return build_adapted(processor)


def one_row_per_question(processor: PeFoMedProcessor, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """The plain way, by hand: each prompt with its own image, padded on the right; no segments, no positions."""
    encoded = [
        (processor.encode_prompt(sample.instruction, "vqa"), processor.encode_answer(sample.answers[0]))
        for sample in samples
    ]
    length = max(len(prompt) + len(answer) for prompt, answer in encoded)
    pad = processor.tokenizer.pad_token_id
    ids, labels, mask = [], [], []
    for prompt, answer in encoded:
        padding = length - len(prompt) - len(answer)
        ids.append(prompt + answer + [pad] * padding)
        labels.append([IGNORED] * len(prompt) + answer + [IGNORED] * padding)
        mask.append([1] * (length - padding) + [0] * padding)
    images = [open_image(sample.image_paths[0]) for sample in samples]
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "attention_mask": torch.tensor(mask),
        "pixel_values": processor.image_processor(images, return_tensors="pt")["pixel_values"],
    }


def several_images_in_one_row(
    processor: PeFoMedProcessor, rows: list[dict[str, Any]], row_tokens: int = 10**6
) -> dict[str, Any]:
    """The same rows as the collator puts them behind one another, each image and its questions a group."""
    return PackedRowCollator(processor, open_image, pad_to_multiple_of=16, row_tokens=row_tokens)(rows)


def loss_and_gradients(model: PeftModel, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return loss.item(), {name: parameter.grad.clone() for name, parameter in trained.items()}


def worst_difference(
    got: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]]
) -> float:
    """The largest relative difference of the loss and of any gradient's tensor. No gradient may be zero."""
    assert got[1].keys() == expected[1].keys()
    assert len(expected[1]) == 2 * 2 * 2 + 2  # layers x (q, v) x (A, B), projector weight and bias
    assert all(gradient.norm() > 1e-4 for gradient in expected[1].values())
    differences = [(got[1][name] - gradient).norm() / gradient.norm() for name, gradient in expected[1].items()]
    return max(abs(got[0] - expected[0]) / abs(expected[0]), *(float(difference) for difference in differences))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_equal_one_row_per_question(
    processor: PeFoMedProcessor, samples: list[Sample], rows: list[dict[str, Any]], attention: str
) -> None:
    model = build_adapted(processor, attention)
    expected = loss_and_gradients(model, one_row_per_question(processor, samples))
    packed = PackedRowCollator(processor, open_image, pad_to_multiple_of=16)(rows)
    assert packed["input_ids"].shape[0] == len(QUESTIONS)
    assert worst_difference(loss_and_gradients(model, packed), expected) <= TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("row_tokens", [10**6, 150], ids=["one row", "two rows, one of them padded"])
def test_several_images_in_one_row_equal_one_row_per_question(
    processor: PeFoMedProcessor, samples: list[Sample], rows: list[dict[str, Any]], attention: str, row_tokens: int
) -> None:
    model = build_adapted(processor, attention)
    expected = loss_and_gradients(model, one_row_per_question(processor, samples))
    whole = several_images_in_one_row(processor, rows, row_tokens)
    assert len(whole["input_ids"]) == (1 if row_tokens > 1000 else 2) < len(rows)
    assert worst_difference(loss_and_gradients(model, whole), expected) <= TOLERANCE


def test_captions_in_one_row_equal_one_row_each(adapted: PeftModel, processor: PeFoMedProcessor) -> None:
    texts = ("an axial slice", "the heart is normal, no effusion, and the left lung is clear", "liver")
    samples = [
        Sample(image, "caption", [image], "Describe it.", [text]) for image, text in zip(IMAGES, texts, strict=True)
    ]
    rows = list(pack_samples(samples, processor, instruction, max_length=512, max_questions_per_image=16, seed=0))
    apart = PackedRowCollator(processor, open_image, pad_to_multiple_of=64)(rows)
    together = several_images_in_one_row(processor, rows)
    assert (len(apart["input_ids"]), len(together["input_ids"])) == (3, 1)
    assert worst_difference(loss_and_gradients(adapted, together), loss_and_gradients(adapted, apart)) <= TOLERANCE


def test_in_double_precision_all_ways_are_equal(
    processor: PeFoMedProcessor, samples: list[Sample], rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers computes norms and the loss in float32, whatever the model's format
    monkeypatch.setattr(
        LlamaRMSNorm,
        "forward",
        lambda self, x: self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon),
    )
    model = build_adapted(processor).double()
    model.get_base_model().loss_function = lambda logits, shift_labels, **kwargs: cross_entropy(logits, shift_labels)
    expected = loss_and_gradients(model, one_row_per_question(processor, samples))
    for batch in (
        PackedRowCollator(processor, open_image, pad_to_multiple_of=16)(rows),
        several_images_in_one_row(processor, rows),
        several_images_in_one_row(processor, rows, row_tokens=150),
    ):
        assert worst_difference(loss_and_gradients(model, batch), expected) <= 1e-12


def test_packed_rows_equal_one_row_per_question_with_checkpointing(
    processor: PeFoMedProcessor, samples: list[Sample], rows: list[dict[str, Any]]
) -> None:
    model = build_adapted(processor)
    expected = loss_and_gradients(model, one_row_per_question(processor, samples))
    model.base_model.model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    packed = PackedRowCollator(processor, open_image, pad_to_multiple_of=16)(rows)
    assert worst_difference(loss_and_gradients(model, packed), expected) <= TOLERANCE


def test_how_questions_are_spread_over_rows_changes_nothing(
    adapted: PeftModel, processor: PeFoMedProcessor, samples: list[Sample], rows: list[dict[str, Any]]
) -> None:
    collate = PackedRowCollator(processor, open_image, pad_to_multiple_of=16)
    expected = loss_and_gradients(adapted, collate(rows))
    for most in (1, 2, 3):
        spread = pack_samples(samples, processor, instruction, max_length=512, max_questions_per_image=most, seed=7)
        assert len(spread) > len(rows)
        assert worst_difference(loss_and_gradients(adapted, collate(list(spread))), expected) <= TOLERANCE


def test_padding_and_the_order_of_rows_change_nothing(
    adapted: PeftModel, processor: PeFoMedProcessor, rows: list[dict[str, Any]]
) -> None:
    expected = loss_and_gradients(adapted, PackedRowCollator(processor, open_image, pad_to_multiple_of=1)(rows))
    padded = PackedRowCollator(processor, open_image, pad_to_multiple_of=256)(rows[::-1])
    assert padded["input_ids"].shape[1] == 256
    assert worst_difference(loss_and_gradients(adapted, padded), expected) <= TOLERANCE


def test_accumulated_rows_equal_one_batch(
    adapted: PeftModel, processor: PeFoMedProcessor, rows: list[dict[str, Any]]
) -> None:
    collate = PackedRowCollator(processor, open_image, pad_to_multiple_of=16)
    batch = collate(rows)
    expected = loss_and_gradients(adapted, batch)
    items = (batch["labels"] != IGNORED).sum()
    adapted.zero_grad()
    total = 0.0
    for row in rows:
        loss = adapted(**collate([row]), num_items_in_batch=items).loss
        loss.backward()
        total += loss.item()
    gradients = {name: weight.grad for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert worst_difference((total, gradients), expected) <= TOLERANCE


@pytest.mark.parametrize("missing", ["mask", "positions", "groups"])
def test_a_wrong_mask_or_wrong_positions_would_be_noticed(
    adapted: PeftModel, processor: PeFoMedProcessor, rows: list[dict[str, Any]], missing: str
) -> None:
    """Each of the silently wrong ways differs from the right one by far more than the tolerance."""
    if missing == "groups":
        whole = several_images_in_one_row(processor, rows)
        expected = loss_and_gradients(adapted, whole)
        wrong = {name: value for name, value in whole.items() if name != "image_group_ids"}
    else:
        right = PackedRowCollator(processor, open_image, pad_to_multiple_of=16)(rows)
        expected = loss_and_gradients(adapted, right)
        running = torch.arange(right["input_ids"].shape[1]).expand(len(rows), -1)
        wrong = right | {"position_ids": running}
        if missing == "mask":
            wrong = {name: value for name, value in wrong.items() if name != "segment_ids"}
    assert worst_difference(loss_and_gradients(adapted, wrong), expected) > 1000 * TOLERANCE

# SPDX-License-Identifier: Apache-2.0
"""Rows that pack several questions behind one image: who sees whom, and the silently wrong ways that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from modeling_pefomed.modeling_pefomed import shared_prefix_mask_function

from .tiny import ask, build_config, draw_image, encode

BuildModel = Callable[..., PeFoMedForConditionalGeneration]
QUESTIONS = ("Is there a mass?", "Which organ is shown?", "Is it left?")


@pytest.fixture(scope="module")
def packed(processor: PeFoMedProcessor) -> dict[str, Any]:
    """Three questions behind one image, written out by hand, as `segment_ids` and `position_ids` say."""
    prompts = [processor.encode_prompt(question, "vqa") for question in QUESTIONS]
    opening = processor.tokenizer.encode("[INST] <Img></Img> [vqa]", add_special_tokens=False)
    prefix = 1 + len(opening) + 4
    assert len({tuple(prompt[:prefix]) for prompt in prompts}) == 1
    row: dict[str, list[int]] = {
        "input_ids": prompts[0][:prefix],
        "segment_ids": [0] * prefix,
        "position_ids": list(range(prefix)),
    }
    for number, prompt in enumerate(prompts, start=1):
        own = prompt[prefix:]
        row["input_ids"] = row["input_ids"] + own
        row["segment_ids"] += [number] * len(own)
        row["position_ids"] += range(prefix, prefix + len(own))
    batch: dict[str, Any] = {name: torch.tensor([value]) for name, value in row.items()}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["pixel_values"] = processor.image_processor([draw_image(0)], return_tensors="pt")["pixel_values"]
    return batch


@pytest.fixture(scope="module")
def labelled(packed: dict[str, Any]) -> dict[str, Any]:
    """The packed row with a label at the last two tokens of each segment."""
    segments = packed["segment_ids"]
    ends = [int((segments[0] == number).nonzero().max()) for number in (1, 2, 3)]
    labels = torch.full_like(segments, -100)
    for end in ends:
        labels[0, end - 1 : end + 1] = packed["input_ids"][0, end - 1 : end + 1]
    return packed | {"labels": labels}


def without(inputs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in names}


def test_mask_shows_the_shared_prefix_and_the_own_segment() -> None:
    mask = shared_prefix_mask_function(torch.tensor([[0, 0, 1, 1, 2, -1]]))
    seen = [{key for key in range(6) if bool(mask(0, 0, query, key))} for query in range(6)]
    assert seen == [{0, 1}, {0, 1}, {0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 4}, {0, 1, 5}]


def test_mask_never_shows_another_images_group() -> None:
    segments = torch.tensor([[0, 1, 2, 0, 1, 2]])
    groups = torch.tensor([[0, 0, 0, 1, 1, 1]])
    mask = shared_prefix_mask_function(segments, groups)
    seen = [{key for key in range(6) if bool(mask(0, 0, query, key))} for query in range(6)]
    assert seen == [{0}, {0, 1}, {0, 2}, {3}, {3, 4}, {3, 5}]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_packed_question_has_the_logits_that_it_has_alone(
    processor: PeFoMedProcessor, own_model: BuildModel, packed: dict[str, Any], attention: str
) -> None:
    model = own_model(build_config(processor), attn_implementation=attention)
    logits = model(**packed).logits[0]
    for number, question in enumerate(QUESTIONS, start=1):
        alone = model(**encode(processor, ask(question, draw_image(0)))).logits[0]
        own = logits[packed["segment_ids"][0] == number]
        torch.testing.assert_close(own, alone[-len(own) :], rtol=1e-4, atol=1e-4)


def test_mask_of_real_tokens_is_taken_from_the_segments_when_missing(
    model: PeFoMedForConditionalGeneration, packed: dict[str, Any]
) -> None:
    assert torch.equal(model(**without(packed, "attention_mask")).logits, model(**packed).logits)


def test_padding_changes_nothing(model: PeFoMedForConditionalGeneration, labelled: dict[str, Any]) -> None:
    """More columns, a second row, and whatever ids stand in the padding."""
    expected = model(**labelled).loss
    length = labelled["input_ids"].shape[1]
    fill = {"input_ids": 7, "segment_ids": -1, "position_ids": 0, "attention_mask": 0, "labels": -100}
    padded = {name: pad(labelled[name].repeat(2, 1), (0, 11), value=value) for name, value in fill.items()}
    padded["pixel_values"] = labelled["pixel_values"].repeat(2, 1, 1, 1)
    torch.testing.assert_close(model(**padded).loss, expected, rtol=1e-5, atol=1e-6)
    other = padded | {"input_ids": padded["input_ids"].clone()}
    other["input_ids"][:, length:] = 9
    assert torch.equal(model(**other).loss, model(**padded).loss)


def test_segments_without_positions_are_refused(
    model: PeFoMedForConditionalGeneration, packed: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="segment_ids without position_ids"):
        model(**without(packed, "position_ids"))


def test_positions_that_jump_back_without_segments_are_refused_in_training(
    model: PeFoMedForConditionalGeneration, labelled: dict[str, Any]
) -> None:
    """transformers would cut the row at each jump and train every question but the first without its image."""
    for names in (("segment_ids",), ("segment_ids", "attention_mask")):
        with pytest.raises(ValueError, match="position_ids jump back"):
            model(**without(labelled, *names))


def test_positions_of_padded_rows_without_segments_are_accepted(
    model: PeFoMedForConditionalGeneration, batch: dict[str, Any]
) -> None:
    """Left and right padding at position 0 or 1 jumps back too, but no real token does."""
    mask = batch["attention_mask"]
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, -100)
    labels = labels.masked_fill(mask == 0, -100)
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    assert model(**batch, labels=labels, position_ids=positions).loss.isfinite()
    width = batch["input_ids"].shape[1]
    right = {name: pad(batch[name], (0, 3)) for name in ("input_ids", "attention_mask")}
    right["position_ids"] = pad(torch.arange(width).expand(2, -1), (0, 3))
    right["labels"] = pad(labels, (0, 3), value=-100)
    assert model(**right, pixel_values=batch["pixel_values"]).loss.isfinite()


def test_plain_concatenation_gives_another_loss(
    model: PeFoMedForConditionalGeneration, labelled: dict[str, Any]
) -> None:
    """Otherwise no test here could tell the right mask from a missing one."""
    right = model(**labelled).loss
    concatenated = model(**without(labelled, "segment_ids", "position_ids")).loss
    assert abs(concatenated - right) > 1e-3 * right


def test_running_positions_give_another_loss(model: PeFoMedForConditionalGeneration, labelled: dict[str, Any]) -> None:
    right = model(**labelled).loss
    running = torch.arange(labelled["input_ids"].shape[1])[None]
    assert abs(model(**labelled | {"position_ids": running}).loss - right) > 1e-3 * right


def test_segments_with_a_filled_cache_are_refused(
    model: PeFoMedForConditionalGeneration, packed: dict[str, Any], inputs: dict[str, Any]
) -> None:
    cache = DynamicCache(config=model.config.text_config)
    assert model(**packed, past_key_values=cache).logits.isfinite().all(), "an empty cache is welcome"
    assert cache.get_seq_length() == packed["input_ids"].shape[1]
    with pytest.raises(ValueError, match="cannot be combined with a filled cache"):
        model(**packed, past_key_values=cache)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "paged|sdpa"])
def test_attention_that_cannot_express_the_mask_is_refused(
    processor: PeFoMedProcessor, own_model: BuildModel, packed: dict[str, Any], attention: str
) -> None:
    model = own_model(build_config(processor))
    model.model.language_model.config._attn_implementation_internal = attention
    assert model.model.language_model.config._attn_implementation == attention
    with pytest.raises(ValueError, match=f"segment_ids need sdpa, eager or flex_attention; {attention.split('|')[0]}"):
        model(**packed)


def test_image_groups_without_segments_are_refused(
    model: PeFoMedForConditionalGeneration, inputs: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="image_group_ids need segment_ids"):
        model(**inputs, image_group_ids=torch.zeros_like(inputs["input_ids"]))

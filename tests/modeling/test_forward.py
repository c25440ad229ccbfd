# SPDX-License-Identifier: Apache-2.0
"""The forward pass: images reach the right places, padding and attention kernels change nothing, parts stay frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import GPT2Config, GPTNeoXConfig, PreTrainedConfig, Qwen2Config

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

from .tiny import IMAGE_TOKENS, ask, build_config, encode, text_config

Inputs = dict[str, Any]
BuildModel = Callable[..., PeFoMedForConditionalGeneration]


def test_images_stand_where_their_placeholders_are(model: PeFoMedForConditionalGeneration, batch: Inputs) -> None:
    """Text embeddings, with the features of image n at the placeholders of row n, give the same logits."""
    features = model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
    table = model.get_input_embeddings().weight
    image_token = model.config.image_token_id
    rows = []
    for ids, feature in zip(batch["input_ids"].tolist(), features, strict=True):
        left = list(feature)
        rows.append(torch.stack([left.pop(0) if token == image_token else table[token] for token in ids]))
        assert left == []
    embedded = model(inputs_embeds=torch.stack(rows), attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(embedded, model(**batch).logits, rtol=1e-4, atol=1e-4)


def test_several_images_in_one_prompt_keep_their_order(
    model: PeFoMedForConditionalGeneration, processor: PeFoMedProcessor, images: list[Image.Image]
) -> None:
    inputs = encode(processor, ask("Compare.", images[0], images[1]))
    hidden = model(**inputs).image_hidden_states
    assert hidden.shape[0] == 2 * IMAGE_TOKENS
    single = [model.get_image_features(inputs["pixel_values"][[at]]).pooler_output[0] for at in (0, 1)]
    torch.testing.assert_close(hidden, torch.cat(single), rtol=1e-4, atol=1e-4)
    swapped = model(**dict(inputs) | {"pixel_values": inputs["pixel_values"].flip(0)})
    assert not torch.allclose(swapped.logits[:, -1], model(**inputs).logits[:, -1], atol=1e-3)


def test_rows_with_different_numbers_of_images_share_a_batch(
    model: PeFoMedForConditionalGeneration, processor: PeFoMedProcessor, images: list[Image.Image]
) -> None:
    conversations = [ask("Compare.", images[0], images[1]), ask("Is there a mass?", images[2])]
    together = model(**encode(processor, *conversations)).logits[:, -1]
    alone = torch.cat([model(**encode(processor, conversation)).logits[:, -1] for conversation in conversations])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_left_padding_changes_no_logits(
    model: PeFoMedForConditionalGeneration, processor: PeFoMedProcessor, images: list[Image.Image], batch: Inputs
) -> None:
    together = model(**batch).logits
    single = model(**encode(processor, ask("Is there a mass?", images[0]))).logits[0]
    assert single.shape[0] < together.shape[1]
    torch.testing.assert_close(together[0, -single.shape[0] :], single, rtol=1e-4, atol=1e-4)


def test_text_alone_needs_no_image(model: PeFoMedForConditionalGeneration, processor: PeFoMedProcessor) -> None:
    output = model(**encode(processor, ask("Is there a mass?")))
    assert output.image_hidden_states is None
    assert output.logits.isfinite().all()


@pytest.mark.parametrize("tokens", [1, 3, 5])
def test_images_and_placeholders_that_do_not_match_are_refused(
    model: PeFoMedForConditionalGeneration, inputs: Inputs, tokens: int
) -> None:
    placeholders = torch.full((1, tokens), model.config.image_token_id)
    ids = torch.cat([inputs["input_ids"][:, :1], placeholders, inputs["input_ids"][:, -4:]], dim=1)
    with pytest.raises(
        ValueError, match=f"Image features and image tokens do not match, tokens: {tokens}, features: 4"
    ):
        model(input_ids=ids, pixel_values=inputs["pixel_values"])


def test_a_missing_or_surplus_image_is_refused(model: PeFoMedForConditionalGeneration, batch: Inputs) -> None:
    for pixel_values in (batch["pixel_values"][:1], batch["pixel_values"][[0, 1, 1]]):
        with pytest.raises(ValueError, match="Image features and image tokens do not match"):
            model(**dict(batch) | {"pixel_values": pixel_values})


def test_placeholders_without_any_image_are_refused(model: PeFoMedForConditionalGeneration, inputs: Inputs) -> None:
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])


def test_precomputed_image_features_equal_pixels(model: PeFoMedForConditionalGeneration, batch: Inputs) -> None:
    features = model.get_image_features(batch["pixel_values"], return_dict=True)
    without_pixels = {name: value for name, value in batch.items() if name != "pixel_values"}
    reused = model(**without_pixels, mm_encoder_outputs={"image": features})
    assert torch.equal(reused.logits, model(**batch).logits)


def test_pixels_and_precomputed_features_together_are_refused(
    model: PeFoMedForConditionalGeneration, inputs: Inputs
) -> None:
    features = model.get_image_features(inputs["pixel_values"], return_dict=True)
    with pytest.raises(ValueError, match="either pixel_values or mm_encoder_outputs"):
        model(**inputs, mm_encoder_outputs={"image": features})


def test_ids_and_embeddings_together_or_neither_are_refused(
    model: PeFoMedForConditionalGeneration, inputs: Inputs
) -> None:
    embeds = torch.zeros(1, 3, 48)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**inputs, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="already hold the image tokens"):
        model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"])


def test_sdpa_equals_eager(processor: PeFoMedProcessor, own_model: BuildModel, batch: Inputs) -> None:
    eager, sdpa = (own_model(build_config(processor), attn_implementation=name) for name in ("eager", "sdpa"))
    for model, name in ((eager, "eager"), (sdpa, "sdpa")):
        assert model.model.vision_tower.config._attn_implementation == name
        assert model.model.language_model.config._attn_implementation == name
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(eager(**batch).logits[real], sdpa(**batch).logits[real], rtol=1e-4, atol=1e-4)


def test_placeholder_is_masked_before_the_embedding_lookup(
    processor: PeFoMedProcessor, own_model: BuildModel, inputs: Inputs
) -> None:
    """Where the vocabulary has a row for the image token, what stands in it does not matter."""
    bigger = text_config(processor, vocab_size=processor.image_token_id + 5)
    model = own_model(build_config(processor, text=bigger))
    before = model(**inputs).logits
    with torch.no_grad():
        model.get_input_embeddings().weight[processor.image_token_id] = float("nan")
    assert torch.equal(model(**inputs).logits, before)


def test_logits_to_keep_gives_the_last_positions(model: PeFoMedForConditionalGeneration, batch: Inputs) -> None:
    everything = model(**batch).logits
    torch.testing.assert_close(model(**batch, logits_to_keep=2).logits, everything[:, -2:], rtol=1e-4, atol=1e-4)
    chosen = torch.tensor([0, 5])
    torch.testing.assert_close(
        model(**batch, logits_to_keep=chosen).logits, everything[:, chosen], rtol=1e-4, atol=1e-4
    )


def test_hidden_states_and_tuples_are_returned_on_request(
    model: PeFoMedForConditionalGeneration, inputs: Inputs
) -> None:
    output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(model(**inputs, return_dict=False)[0], output.logits)


def test_projector_stays_in_float32_in_a_bfloat16_model(
    model: PeFoMedForConditionalGeneration, base_folder: Path, inputs: Inputs
) -> None:
    loaded = PeFoMedForConditionalGeneration.from_pretrained(base_folder, dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    projector = {name for name in dtypes if "multi_modal_projector" in name}
    assert projector == {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert torch.equal(loaded.model.multi_modal_projector.weight, model.model.multi_modal_projector.weight)
    logits = loaded(**inputs).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(**inputs).logits, rtol=0.1, atol=0.2)


def test_tower_stays_in_evaluation_mode(own_model: BuildModel) -> None:
    model = own_model().train()
    assert model.model.language_model.training and model.model.multi_modal_projector.training
    assert not any(module.training for module in model.model.vision_tower.modules())


@pytest.mark.parametrize("require_input_gradients", [False, True])
def test_tower_gets_no_gradients_and_no_graph(
    own_model: BuildModel, inputs: Inputs, require_input_gradients: bool
) -> None:
    """Also where a trainer asks for gradients of every embedding, as it does with gradient checkpointing."""
    model = own_model().train()
    if require_input_gradients:
        model.enable_input_require_grads()
    output = model.get_image_features(inputs["pixel_values"], return_dict=True)
    assert not output.last_hidden_state.requires_grad
    assert output.pooler_output[0].requires_grad
    model(
        **inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    ).loss.backward()
    assert all(parameter.grad is None for parameter in model.model.vision_tower.parameters())
    assert model.model.multi_modal_projector.weight.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in model.model.language_model.parameters())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", [Qwen2Config, GPT2Config, GPTNeoXConfig], ids=lambda kind: kind.model_type)
def test_other_language_models_work(
    processor: PeFoMedProcessor, own_model: BuildModel, inputs: Inputs, kind: type[PreTrainedConfig], tied: bool
) -> None:
    """Also those that call their embedding matrix by another name than LLaMA does."""
    names = {"n_embd": 48, "n_layer": 1, "n_head": 4} if kind is GPT2Config else {}
    text = kind(**text_config(processor, num_key_value_heads=4).to_diff_dict() | names | {"tie_word_embeddings": tied})
    model = own_model(build_config(processor, text=text))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    assert model.get_input_embeddings().weight.shape[0] == processor.image_token_id
    answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3
    mirrored = dict(inputs) | {"pixel_values": -inputs["pixel_values"]}
    assert not torch.allclose(model(**mirrored).logits, model(**inputs).logits, atol=1e-3)

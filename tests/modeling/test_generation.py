# SPDX-License-Identifier: Apache-2.0
"""Generation: padding, caches and beams change no answer, an image is encoded once, prompts may hold image tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import DynamicCache, set_seed

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

from .tiny import ask, encode

Inputs = dict[str, Any]
NEW = 8
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}


@pytest.fixture
def tower_calls(model: PeFoMedForConditionalGeneration) -> Iterator[list[int]]:
    """Grows by the number of images at each call of the vision tower."""
    calls: list[int] = []
    hook = model.model.vision_tower.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    yield calls
    hook.remove()


@pytest.fixture(scope="module")
def single_inputs(processor: PeFoMedProcessor, images: list[Image.Image]) -> list[Inputs]:
    """The rows of `batch`, each alone and without padding."""
    questions = ["Is there a mass?", "Which organ is shown in the left image?"]
    return [encode(processor, ask(text, image)) for text, image in zip(questions, images, strict=False)]


def new_tokens(model: PeFoMedForConditionalGeneration, inputs: Inputs, **settings: Any) -> list[list[int]]:
    output = model.generate(**inputs, **settings)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def next_scores(model: PeFoMedForConditionalGeneration, inputs: Inputs, so_far: list[int]) -> torch.Tensor:
    """Logits of the next token by one full forward pass, without any cache."""
    ids = torch.cat([inputs["input_ids"], torch.tensor([so_far], dtype=torch.long)], dim=1)
    return model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]


def decode_greedily(
    model: PeFoMedForConditionalGeneration,
    inputs: Inputs,
    change_scores: Callable[[torch.Tensor, list[int]], None] = lambda scores, so_far: None,
) -> list[int]:
    """Take the best token by hand, `NEW` times, never the end token; `change_scores` edits the logits in place."""
    so_far: list[int] = []
    for _ in range(NEW):
        scores = next_scores(model, inputs, so_far).clone()
        change_scores(scores, so_far)
        scores[model.generation_config.eos_token_id] = float("-inf")
        so_far.append(int(scores.argmax()))
    return so_far


def test_greedy_answer_equals_a_loop_of_full_forward_passes(
    model: PeFoMedForConditionalGeneration, inputs: Inputs, tower_calls: list[int]
) -> None:
    answer = new_tokens(model, inputs, **GREEDY)
    assert tower_calls == [1]
    assert answer == [decode_greedily(model, inputs)]


def test_answers_depend_on_the_image(model: PeFoMedForConditionalGeneration, inputs: Inputs) -> None:
    other = dict(inputs) | {"pixel_values": -inputs["pixel_values"]}
    assert new_tokens(model, inputs, **GREEDY) != new_tokens(model, other, **GREEDY)


@pytest.mark.parametrize("settings", [GREEDY, GREEDY | {"num_beams": 3}], ids=["greedy", "beams"])
def test_left_padded_batch_equals_single_prompts(
    model: PeFoMedForConditionalGeneration,
    batch: Inputs,
    single_inputs: list[Inputs],
    tower_calls: list[int],
    settings: dict[str, Any],
) -> None:
    together = new_tokens(model, batch, **settings)
    assert tower_calls == [2], "all images of a batch are encoded in one call, beams or not"
    assert together == [new_tokens(model, inputs, **settings)[0] for inputs in single_inputs]
    assert together[0] != together[1]


@pytest.mark.parametrize(
    "cache", [{"use_cache": False}, {"cache_implementation": "static"}], ids=["no cache", "static cache"]
)
def test_caches_change_no_answer(model: PeFoMedForConditionalGeneration, batch: Inputs, cache: dict[str, Any]) -> None:
    assert new_tokens(model, batch, **GREEDY, **cache) == new_tokens(model, batch, **GREEDY)


def test_cached_steps_give_the_logits_of_one_pass(model: PeFoMedForConditionalGeneration, inputs: Inputs) -> None:
    whole = model(**inputs).logits
    cut = inputs["input_ids"].shape[1] - 5
    cache = DynamicCache(config=model.config.text_config)
    first = model(
        input_ids=inputs["input_ids"][:, :cut], pixel_values=inputs["pixel_values"], past_key_values=cache
    ).logits
    rest = [
        model(input_ids=inputs["input_ids"][:, [at]], past_key_values=cache).logits
        for at in range(cut, inputs["input_ids"].shape[1])
    ]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole, rtol=1e-4, atol=1e-4)


def test_an_encoded_image_prefix_is_reused_without_its_pixels(
    model: PeFoMedForConditionalGeneration, inputs: Inputs, tower_calls: list[int]
) -> None:
    expected = new_tokens(model, inputs, **GREEDY)
    prefix = inputs["input_ids"][:, :-6]
    cache = DynamicCache(config=model.config.text_config)
    model(input_ids=prefix, pixel_values=inputs["pixel_values"], past_key_values=cache, logits_to_keep=1)
    tower_calls.clear()
    text_only = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    assert new_tokens(model, text_only, past_key_values=cache, **GREEDY) == expected
    assert tower_calls == []


def test_beam_scores_are_the_mean_log_probabilities_of_their_answers(
    model: PeFoMedForConditionalGeneration, inputs: Inputs, tower_calls: list[int]
) -> None:
    output = model.generate(
        **inputs, **GREEDY, num_beams=4, num_return_sequences=4, return_dict_in_generate=True, output_scores=True
    )
    assert tower_calls == [1], "beams share one encoding of the image"
    prompt = inputs["input_ids"].shape[1]
    for sequence, score in zip(output.sequences, output.sequences_scores, strict=True):
        logits = model(input_ids=sequence[None], pixel_values=inputs["pixel_values"]).logits[0]
        # The end token is forbidden for all of the answer, which leaves the others' log probabilities as they are.
        log_probabilities = logits.log_softmax(-1)[prompt - 1 : -1].gather(1, sequence[prompt:, None])
        assert score.item() == pytest.approx(log_probabilities.mean().item(), rel=1e-4)
    answers = output.sequences[:, prompt:].tolist()
    assert len({tuple(answer) for answer in answers}) == 4
    assert output.sequences_scores.tolist() == sorted(output.sequences_scores.tolist(), reverse=True)


def test_several_samples_of_one_prompt_share_one_encoding(
    model: PeFoMedForConditionalGeneration, batch: Inputs, tower_calls: list[int]
) -> None:
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": True, "num_return_sequences": 3}
    set_seed(0)
    sampled = new_tokens(model, batch, **settings)
    assert len(sampled) == 6 and tower_calls == [2]
    set_seed(0)
    assert new_tokens(model, batch, **settings) == sampled
    # With one candidate a sample is the greedy answer: each image then stands beside its own question.
    greedy = new_tokens(model, batch, **GREEDY)
    assert new_tokens(model, batch, **settings, top_k=1) == [answer for answer in greedy for _ in range(3)]


def test_precomputed_features_generate_the_same_answers(
    model: PeFoMedForConditionalGeneration, batch: Inputs, tower_calls: list[int]
) -> None:
    expected = new_tokens(model, batch, **GREEDY, num_beams=2)
    features = model.get_image_features(batch["pixel_values"], return_dict=True)
    tower_calls.clear()
    without_pixels = {name: value for name, value in batch.items() if name != "pixel_values"}
    reused = new_tokens(model, without_pixels, mm_encoder_outputs={"image": features}, **GREEDY, num_beams=2)
    assert reused == expected
    assert tower_calls == []


def test_repetition_penalty_counts_prompt_and_answer_but_no_image_token(
    model: PeFoMedForConditionalGeneration, inputs: Inputs
) -> None:
    penalty = 3.0
    prompt = set(inputs["input_ids"][0].tolist()) - {model.config.image_token_id}

    def penalise(scores: torch.Tensor, so_far: list[int]) -> None:
        for token in prompt | set(so_far):
            scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty

    expected = decode_greedily(model, inputs, penalise)
    assert expected != decode_greedily(model, inputs)
    assert new_tokens(model, inputs, **GREEDY, repetition_penalty=penalty) == [expected]


def test_encoder_repetition_penalty_raises_what_stood_in_the_prompt(
    model: PeFoMedForConditionalGeneration, inputs: Inputs
) -> None:
    penalty = 4.0
    prompt = set(inputs["input_ids"][0].tolist()) - {model.config.image_token_id}

    def favour(scores: torch.Tensor, so_far: list[int]) -> None:
        for token in prompt:
            scores[token] = scores[token] * penalty if scores[token] > 0 else scores[token] / penalty

    expected = decode_greedily(model, inputs, favour)
    assert expected != decode_greedily(model, inputs)
    assert new_tokens(model, inputs, **GREEDY, encoder_repetition_penalty=penalty) == [expected]


def test_bad_words_never_appear(model: PeFoMedForConditionalGeneration, inputs: Inputs) -> None:
    first, second, third, *_ = new_tokens(model, inputs, **GREEDY)[0]

    def forbid(scores: torch.Tensor, so_far: list[int]) -> None:
        scores[first] = float("-inf")
        if so_far[-1:] == [second]:
            scores[third] = float("-inf")

    answer = new_tokens(model, inputs, **GREEDY, bad_words_ids=[[first], [second, third]])
    assert answer == [decode_greedily(model, inputs, forbid)]


@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"encoder_no_repeat_ngram_size": 2},
        {"num_beams": 3, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"do_sample": True, "top_p": 0.9, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.5},
        {"do_sample": True, "min_p": 0.05, "typical_p": 0.9},
        {"suppress_tokens": [5, 6]},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 1.5},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_generation_options_accept_prompts_with_image_tokens(
    model: PeFoMedForConditionalGeneration, inputs: Inputs, settings: dict[str, Any]
) -> None:
    set_seed(0)
    answer = new_tokens(model, inputs, **GREEDY | settings)[0]
    assert len(answer) == NEW
    assert max(answer) < model.config.text_config.vocab_size
    size = settings.get("no_repeat_ngram_size")
    if size:
        pieces = [tuple(answer[at : at + size]) for at in range(NEW - size + 1)]
        assert len(set(pieces)) == len(pieces)


def test_transition_scores_are_the_log_probabilities_of_the_answer(
    model: PeFoMedForConditionalGeneration, inputs: Inputs
) -> None:
    settings = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    output = model.generate(**inputs, **settings)
    scores = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    prompt = inputs["input_ids"].shape[1]
    logits = model(input_ids=output.sequences, pixel_values=inputs["pixel_values"]).logits.log_softmax(-1)
    expected = logits[:, prompt - 1 : -1].gather(2, output.sequences[:, prompt:, None])[..., 0]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)

    beams = model.generate(**inputs, **settings, num_beams=3)
    scores = model.compute_transition_scores(beams.sequences, beams.scores, beams.beam_indices)
    assert scores.isfinite().all() and (scores <= 0).all()

# SPDX-License-Identifier: Apache-2.0
"""Every PEFT method: what it trains, that packed rows train it exactly, and that all it has learnt is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, Phi3Config

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.models.adapter_folders import load_adapter
from pefomed_recipes.records import Sample
from pefomed_recipes.training.adapters import add_adapter
from pefomed_recipes.training.callbacks import frozen_fingerprint
from pefomed_recipes.training.collator import PackedRowCollator
from pefomed_recipes.training.packing import pack_samples
from pefomed_recipes.training.peft_methods import METHODS

from ..modeling.tiny import ask, build_config, build_model, build_processor, draw_image, encode, text_config

pytestmark = pytest.mark.integration

IMAGES = {f"{name}.png": draw_image(seed) for seed, name in enumerate("ab")}
QUESTIONS = {
    "a.png": [("Is there a mass?", "yes"), ("Which organ is shown?", "liver"), ("Where is it?", "in the right lung")],
    "b.png": [("Is there a mass?", "no")],
}
TOLERANCE = 5e-6  # of a tensor's norm, in float32
# Methods whose PEFT classes do not carry the projector.
OWN_CLASS = ("llama_adapter", "prompt_tuning", "prefix_tuning", "p_tuning")
VIRTUAL_TOKENS = ("prompt_tuning", "prefix_tuning", "p_tuning")


@pytest.fixture(scope="module")
def processor() -> PeFoMedProcessor:
    """The tiny model's processor."""
    return build_processor()


@pytest.fixture(scope="module")
def tiny(processor: PeFoMedProcessor) -> Callable[[], PeFoMedForConditionalGeneration]:
    """`tiny()`: the tiny base, the same each time."""
    model = build_model(processor)
    return lambda: copy.deepcopy(model)


@pytest.fixture(scope="module")
def batch_of(processor: PeFoMedProcessor) -> Callable[[int], dict[str, Any]]:
    """`batch_of(most)`: the questions as packed rows of at most `most` questions."""
    samples = [
        Sample(f"{image}/{number}", "vqa", [image], question, [answer])
        for image, pairs in QUESTIONS.items()
        for number, (question, answer) in enumerate(pairs)
    ]

    def build(most: int) -> dict[str, Any]:
        rows = pack_samples(
            samples, processor, lambda s: s.instruction, max_length=512, max_questions_per_image=most, seed=0
        )
        return PackedRowCollator(processor, lambda path: IMAGES[str(path)], pad_to_multiple_of=16)(list(rows))

    return build


@pytest.fixture(scope="module")
def prompt(processor: PeFoMedProcessor) -> dict[str, Any]:
    """One image and one question."""
    return encode(processor, ask("Is there a mass?", draw_image(0)))


def add(base: PeFoMedForConditionalGeneration, method: str, **changes: Any) -> PeftModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0, "virtual_tokens": 5, **changes}
    return add_adapter(base, method=method, **settings)


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def nudge(model: PeftModel) -> PeftModel:
    """Move every trained weight away from its start, where many methods are zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def take_a_step(model: PeftModel, batch: dict[str, Any], mixed_precision: bool = False) -> tuple[float, float]:
    """The loss before and after one step of AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    model.zero_grad()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
        return loss.item(), model(**batch).loss.item()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_trains_the_method_and_the_projector_and_all_of_it_is_saved(
    tiny: Callable[[], PeFoMedForConditionalGeneration],
    batch_of: Callable[[int], dict[str, Any]],
    prompt: dict[str, Any],
    tmp_path: Path,
    method: str,
) -> None:
    model, batch = add(tiny(), method), batch_of(16)
    own = {name: tensor.clone() for name, tensor in trained(model).items()}
    assert any("multi_modal_projector" in name for name in own)
    assert not all("multi_modal_projector" in name for name in own)
    assert not any("vision_tower" in name or "lm_head" in name for name in own)
    frozen = frozen_fingerprint(model)
    before, after = take_a_step(model, batch)
    assert after != pytest.approx(before, abs=1e-4)
    assert frozen_fingerprint(model) == frozen
    moved = {name for name, tensor in trained(model).items() if not torch.equal(tensor, own[name])}
    assert {name for name in own if "multi_modal_projector" in name} <= moved
    assert any("multi_modal_projector" not in name for name in moved)

    nudge(model).save_pretrained(tmp_path)
    model.eval()
    loaded = load_adapter(tiny(), tmp_path, trainable=False)
    assert trained(loaded) == {}
    assert torch.equal(loaded(**prompt).logits, model(**prompt).logits)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(loaded.generate(**prompt, **options), model.generate(**prompt, **options))

    continued = load_adapter(tiny(), tmp_path, trainable=True)
    assert set(trained(continued)) == set(own)
    start, end = take_a_step(continued, batch)
    with torch.no_grad():
        assert start == pytest.approx(model(**batch).loss.item(), abs=1e-5)
    assert end != pytest.approx(start, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_packed_rows_train_each_method_as_one_row_per_question(
    tiny: Callable[[], PeFoMedForConditionalGeneration], batch_of: Callable[[int], dict[str, Any]], method: str
) -> None:
    model = nudge(add(tiny(), method)).train()
    results = []
    for most in (16, 1):
        model.zero_grad()
        loss = model(**batch_of(most)).loss
        loss.backward()
        results.append((loss.item(), {name: p.grad.clone() for name, p in trained(model).items()}))
    (packed, packed_gradients), (plain, gradients) = results
    assert packed == pytest.approx(plain, rel=TOLERANCE)
    for name, gradient in gradients.items():
        assert gradient.norm() > 0, name
        assert (packed_gradients[name] - gradient).norm() <= TOLERANCE * gradient.norm(), name


@pytest.mark.parametrize("method", VIRTUAL_TOKENS)
def test_virtual_tokens_are_before_the_image_and_seen_by_every_question(
    tiny: Callable[[], PeFoMedForConditionalGeneration],
    batch_of: Callable[[int], dict[str, Any]],
    processor: PeFoMedProcessor,
    method: str,
) -> None:
    """Against the plain way: no segments, no positions, one question a row, and eager attention."""
    model = nudge(add(tiny(), method)).eval()
    single = {name: value for name, value in batch_of(1).items() if name not in ("segment_ids", "position_ids")}
    with torch.no_grad():
        expected = model(**single).loss.item()
        assert model(**batch_of(16)).loss.item() == pytest.approx(expected, rel=1e-5)
        model.base_model.set_attn_implementation("eager")
        assert model(**batch_of(16)).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", VIRTUAL_TOKENS)
def test_virtual_tokens_generate_as_whole_forward_passes_say(
    tiny: Callable[[], PeFoMedForConditionalGeneration], processor: PeFoMedProcessor, method: str
) -> None:
    model = nudge(add(tiny(), method)).eval()
    asked = [ask("Is there a mass?", draw_image(0)), ask("Which organ is shown, and where?", draw_image(1))]
    inputs = encode(processor, *asked)
    together = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    for row, conversation in enumerate(asked):
        one = encode(processor, conversation)
        ids = one["input_ids"]
        for _ in range(4):
            with torch.no_grad():
                logits = model(input_ids=ids, pixel_values=one["pixel_values"]).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        assert together[row].tolist() == ids[0, -4:].tolist()


@pytest.mark.parametrize("method", OWN_CLASS)
def test_without_the_adapter_the_base_answers_with_its_own_projector(
    tiny: Callable[[], PeFoMedForConditionalGeneration], prompt: dict[str, Any], method: str
) -> None:
    base = tiny()
    with torch.no_grad():
        expected = base(**prompt).logits
        model = nudge(add(base, method)).eval()
        adapted = model(**prompt).logits[:, -1]
        assert not torch.allclose(adapted, expected[:, -1], atol=1e-2)
        with model.disable_adapter():
            assert torch.equal(model(**prompt).logits, expected)
        assert torch.equal(model(**prompt).logits[:, -1], adapted)


@pytest.mark.parametrize("method", OWN_CLASS)
def test_no_loader_leaves_the_projector_out_silently(tiny_base: Path, tmp_path: Path, method: str) -> None:
    base = PeFoMedForConditionalGeneration.from_pretrained(tiny_base)
    add(base, method).save_pretrained(tmp_path)
    with pytest.raises((KeyError, ValueError)):
        PeftModel.from_pretrained(PeFoMedForConditionalGeneration.from_pretrained(tiny_base), tmp_path)
    with pytest.raises(ValueError, match="prompt"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_everything_trained_is_in_float32_on_a_bfloat16_base(
    tiny_base: Path,
    batch_of: Callable[[int], dict[str, Any]],
    prompt: dict[str, Any],
    tmp_path: Path,
    method: str,
) -> None:
    def bfloat16_base() -> PeFoMedForConditionalGeneration:
        return PeFoMedForConditionalGeneration.from_pretrained(tiny_base, dtype=torch.bfloat16)

    model = add(bfloat16_base(), method)
    assert model.get_base_model().model.language_model.embed_tokens.weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in trained(model).values()} == {torch.float32}
    before, after = take_a_step(model, batch_of(16), mixed_precision=True)
    assert after != before
    model.save_pretrained(tmp_path)
    loaded = load_adapter(bfloat16_base(), tmp_path, trainable=False)
    assert loaded.get_base_model().model.multi_modal_projector.weight.dtype == torch.float32
    assert loaded.generate(**prompt, max_new_tokens=2, do_sample=False).shape[0] == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_adapter_answers_as_the_base_where_the_method_starts_from_it(
    tiny: Callable[[], PeFoMedForConditionalGeneration], prompt: dict[str, Any], method: str
) -> None:
    base = tiny()
    with torch.no_grad():
        expected = base(**prompt).logits[:, -1]
        fresh = add(base, method).eval()(**prompt).logits[:, -1]
    assert torch.allclose(fresh, expected, atol=1e-5) == (method not in VIRTUAL_TOKENS)


@pytest.fixture(scope="module")
def phi(processor: PeFoMedProcessor) -> Callable[[], PeFoMedForConditionalGeneration]:
    """`phi()`: a base whose language model has q, k and v in one layer."""
    fused = Phi3Config(**text_config(processor).to_diff_dict() | {"model_type": "phi3"})
    return lambda: build_model(processor, build_config(processor, text=fused))


def test_target_modules_name_other_layers_of_the_language_model(
    phi: Callable[[], PeFoMedForConditionalGeneration],
) -> None:
    model = add(phi(), "lora", target_modules=["qkv_proj", "down_proj"])
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in trained(model) if ".lora_" in name}
    assert adapted == {"qkv_proj", "down_proj"}


@pytest.mark.parametrize("target_modules", [["q_proj", "v_proj"], ["qkv_proj", "v_prj"], [""]])
def test_layers_that_do_not_exist_are_refused_with_those_that_do(
    phi: Callable[[], PeFoMedForConditionalGeneration], target_modules: list[str]
) -> None:
    with pytest.raises(PeFoMedError, match="qkv_proj, o_proj, gate_up_proj, down_proj.*--target_modules qkv_proj|"
                                           "o_proj, qkv_proj, .*--target_modules o_proj"):  # fmt: skip
        add(phi(), "lora", target_modules=target_modules)


def test_llama_adapter_names_the_language_models_that_it_knows(
    phi: Callable[[], PeFoMedForConditionalGeneration],
) -> None:
    with pytest.raises(PeFoMedError, match="llama and mistral.*found phi3"):
        add(phi(), "llama_adapter")


def test_an_unknown_method_is_refused_with_the_nearest_one(
    tiny: Callable[[], PeFoMedForConditionalGeneration],
) -> None:
    with pytest.raises(PeFoMedError, match="lorra.*did you mean lora"):
        add(tiny(), "lorra")

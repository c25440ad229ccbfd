# SPDX-License-Identifier: Apache-2.0
"""QLoRA: only the language model's linear layers are in 4 bits, and the adapter fits the base in both forms."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Params4bit
from transformers import AutoProcessor

from modeling_pefomed import PeFoMedForConditionalGeneration
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.inference.generate import Request, generate_answers, load_model
from pefomed_recipes.models import bases
from pefomed_recipes.models.adapter_folders import load_adapter
from pefomed_recipes.training.adapters import add_adapter
from pefomed_recipes.training.callbacks import frozen_fingerprint
from pefomed_recipes.training.peft_methods import METHODS
from pefomed_recipes.training.stages import load_base

from ..modeling.tiny import ask, draw_image, encode

pytestmark = pytest.mark.integration

# Of two layers: q, k, v, o of the attention and gate, up, down behind it.
QUANTIZED = 2 * 7
NOT_IN_4_BITS = ("pissa", "olora", "loha", "lokr")
METHODS_IN_4_BITS = [method for method in METHODS if method not in NOT_IN_4_BITS]


def in_4_bits(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if isinstance(parameter, Params4bit)}


@pytest.fixture
def nf4_base(tiny_base: Path, float32: None) -> PeFoMedForConditionalGeneration:
    """The tiny base with its language model in 4 bits."""
    return load_base(str(tiny_base), "nf4")[0]


@pytest.fixture
def prompt(tiny_base: Path) -> dict[str, Any]:
    """One image and one question."""
    return encode(AutoProcessor.from_pretrained(tiny_base), ask("Is there a mass?", draw_image(0)))


def test_the_language_models_linear_layers_alone_are_in_4_bits(nf4_base: PeFoMedForConditionalGeneration) -> None:
    names = in_4_bits(nf4_base)
    assert len(names) == QUANTIZED
    assert all(".language_model.layers." in name for name in names)
    assert nf4_base.model.multi_modal_projector.weight.dtype == torch.float32
    assert nf4_base.model.vision_tower.dtype == torch.float32
    assert nf4_base.lm_head.weight.dtype == torch.float32


def test_a_4_bit_base_is_saved_and_loaded_exactly(
    nf4_base: PeFoMedForConditionalGeneration, prompt: dict[str, Any], tmp_path: Path
) -> None:
    nf4_base.save_pretrained(tmp_path)
    loaded = bases.load_base_model(tmp_path, torch.float32)
    assert in_4_bits(loaded) == in_4_bits(nf4_base)
    with torch.no_grad():
        assert torch.equal(loaded(**prompt).logits, nf4_base(**prompt).logits)


@pytest.mark.parametrize("method", METHODS_IN_4_BITS)
def test_methods_train_on_a_4_bit_base_and_leave_its_bits_alone(
    nf4_base: PeFoMedForConditionalGeneration, prompt: dict[str, Any], method: str
) -> None:
    torch.manual_seed(0)
    model = add_adapter(nf4_base, r=4, alpha=8, dropout=0.0, method=method).train()
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in own.values()} == {torch.float32}
    frozen = frozen_fingerprint(model)
    optimizer = torch.optim.SGD(own.values(), lr=0.5)
    labels = prompt["input_ids"].clone()
    labels[:, :-3] = -100
    losses = []
    for _ in range(2):
        loss = model(**prompt, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] != losses[0]
    assert frozen_fingerprint(model) == frozen


def test_a_changed_scale_of_a_4_bit_weight_is_noticed(nf4_base: PeFoMedForConditionalGeneration) -> None:
    nf4_base.requires_grad_(False)
    before = frozen_fingerprint(nf4_base)
    name = next(iter(in_4_bits(nf4_base)))
    state = nf4_base.get_parameter(name).quant_state
    state.state2.absmax[0] += 1
    after = frozen_fingerprint(nf4_base)
    assert [key for key in before if before[key] != after[key]] == [name]


@pytest.mark.parametrize("method", NOT_IN_4_BITS)
def test_methods_that_cannot_work_in_4_bits_are_refused(
    nf4_base: PeFoMedForConditionalGeneration, method: str
) -> None:
    with pytest.raises(PeFoMedError, match=f"{method} does not work on a base in 4 bits"):
        add_adapter(nf4_base, r=4, alpha=8, dropout=0.0, method=method)


def test_without_bitsandbytes_the_extra_is_named(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PeFoMedError, match=r'pip install "pefomed\[quantization\]"'):
        load_base(str(tiny_base), "nf4")


def test_an_adapter_trained_in_4_bits_answers_on_both_forms_of_its_base(run: Any, tmp_path: Path) -> None:
    record = run(tmp_path / "out", "--quantization=nf4", "--learning_rate=0.003", "--max_steps=6")
    assert record["quantization"] == "nf4"
    assert record["settings"]["quantization"] == "nf4"
    assert record["frozen_weights_bit_identical"]
    assert record["validation_loss_after"] < record["validation_loss_before"]
    assert "language_model linear layers" not in json.loads((tmp_path / "out" / bases.FINGERPRINT).read_text())
    logits = {}
    for quantization in bases.QUANTIZATIONS:
        model, processor = load_model(tmp_path / "out", dtype=torch.float32, quantization=quantization)
        assert len(in_4_bits(model)) == (QUANTIZED if quantization == "nf4" else 0)
        request = Request("r", "vqa", "Is there a mass?", (draw_image(0),))
        assert len(list(generate_answers(model, processor, [request], max_new_tokens=3))) == 1
        with torch.no_grad():
            logits[quantization] = model(**encode(processor, ask("why", draw_image(0)))).logits
    assert 0 < (logits["nf4"] - logits["none"]).abs().max() < torch.inf
    # training goes on, in 4 bits or not
    for quantization in bases.QUANTIZATIONS:
        base, _ = load_base(str(run.base), quantization)
        load_adapter(base, tmp_path / "out", trainable=True)

# SPDX-License-Identifier: Apache-2.0
"""`compile_layers` compiles the language model's layers in place, and changes nothing of what is trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pefomed_recipes.training import stages

pytestmark = pytest.mark.integration


def test_compiled_layers_train_and_are_saved_as_others(
    run: Callable[..., dict[str, Any]],
    weights_of: Callable[[Path], dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--max_steps=2", "--eval_steps=2", "--save_steps=2", "--lora_dropout=0")
    before = run(tmp_path / "plain", *options)
    compiled: list[str] = []

    def note(layer: torch.nn.Module, **settings: Any) -> None:
        compiled.append(type(layer).__name__)
        compile_module(layer, **settings)

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", note)
    # The compiler of the real backend is not everywhere; this one traces the layers and runs what it has traced.
    monkeypatch.setattr(stages, "compile_layers", partial(stages.compile_layers, backend="eager"))
    after = run(tmp_path / "compiled", *options, "--compile_layers=true")
    assert compiled == ["LlamaDecoderLayer"] * 2
    assert after["train_loss"] == before["train_loss"]
    expected, found = weights_of(tmp_path / "plain"), weights_of(tmp_path / "compiled")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)

# SPDX-License-Identifier: Apache-2.0
"""A merged model answers as base and adapter together, in a folder that needs no PEFT."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.inference.merging import merge_adapter
from pefomed_recipes.models.adapter_folders import load_adapter
from pefomed_recipes.training.adapters import add_adapter

from ..modeling.tiny import ask, draw_image, encode

pytestmark = pytest.mark.integration

MERGED = ("rslora", "dora", "pissa", "olora", "adalora", "ia3", "vera", "loha", "lokr", "oft")
NOT_MERGED = ("llama_adapter", "prompt_tuning", "prefix_tuning", "p_tuning")
RunPython = Callable[..., CompletedProcess[str]]


def make_adapter(base_folder: Path, folder: Path, method: str, dtype: torch.dtype = torch.float32) -> Path:
    base = PeFoMedForConditionalGeneration.from_pretrained(base_folder, dtype=dtype)
    model = add_adapter(base, r=4, alpha=8, dropout=0.0, method=method)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    PeFoMedProcessor.from_pretrained(base_folder).save_pretrained(folder)
    return folder


@pytest.fixture
def prompt(base_folder: Path) -> dict[str, Any]:
    """One image and one question."""
    return encode(PeFoMedProcessor.from_pretrained(base_folder), ask("Is there a mass?", draw_image(0)))


@pytest.fixture(scope="module")
def bfloat16_base(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, saved in bfloat16."""
    folder = tmp_path_factory.mktemp("merging") / "base"
    PeFoMedForConditionalGeneration.from_pretrained(base_folder, dtype=torch.bfloat16).save_pretrained(folder)
    AutoProcessor.from_pretrained(base_folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", *(pytest.param(name, marks=pytest.mark.integration) for name in MERGED)])
def test_merged_weights_answer_as_base_and_adapter(
    base_folder: Path, prompt: dict[str, Any], tmp_path: Path, method: str
) -> None:
    adapter = make_adapter(base_folder, tmp_path / "adapter", method)
    merge_adapter(adapter, tmp_path / "merged")
    base = PeFoMedForConditionalGeneration.from_pretrained(base_folder)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        plain = base(**prompt).logits
        adapted = load_adapter(base, adapter, trainable=False)(**prompt).logits
        logits = merged(**prompt).logits
    assert (logits - adapted).abs().max() <= 1e-5 * adapted.abs().max()
    assert (logits - plain).abs().max() > 1e-2
    assert (
        merged.state_dict().keys() == PeFoMedForConditionalGeneration.from_pretrained(base_folder).state_dict().keys()
    )


def test_bfloat16_weights_are_merged_in_float32_and_rounded_once(bfloat16_base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(bfloat16_base, tmp_path / "adapter", "lora", torch.bfloat16)
    merge_adapter(adapter, tmp_path / "merged")
    merge_adapter(adapter, tmp_path / "wide", torch.float32)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    wide = AutoModelForImageTextToText.from_pretrained(tmp_path / "wide")
    assert merged.dtype == torch.bfloat16
    assert wide.dtype == torch.float32
    for name, exact in wide.state_dict().items():
        weight = merged.state_dict()[name]
        assert weight.dtype == (torch.float32 if "multi_modal_projector" in name else torch.bfloat16), name
        assert torch.equal(weight, exact.to(weight.dtype)), name


@pytest.mark.parametrize("method", NOT_MERGED)
def test_methods_that_cannot_be_merged_are_refused_by_name(base_folder: Path, tmp_path: Path, method: str) -> None:
    adapter = make_adapter(base_folder, tmp_path / "adapter", method)
    kind = "ADAPTION_PROMPT" if method == "llama_adapter" else method.upper()
    with pytest.raises(PeFoMedError, match=f"{kind} cannot be merged"):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_is_not_empty_and_a_base_are_refused(
    adapter_folder: Path, base_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(PeFoMedError, match="not empty"):
        merge_adapter(adapter_folder, tmp_path / "merged")
    with pytest.raises(PeFoMedError, match="found a base model, expected an adapter"):
        merge_adapter(base_folder, tmp_path / "other")
    assert [path.name for path in tmp_path.rglob("*")] == ["merged", "notes.txt"]


def test_nothing_is_left_when_saving_fails(
    adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(PeFoMedProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space"):
        merge_adapter(adapter_folder, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_folder_that_loads_with_and_without_the_package(
    repo: Path, adapter_folder: Path, base_folder: Path, prompt: dict[str, Any], run_python: RunPython, tmp_path: Path
) -> None:
    process = run_python(repo / "recipes" / "merge.py", adapter_folder, "--out", tmp_path / "merged")
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""
    shutil.move(tmp_path / "merged", tmp_path / "elsewhere")
    torch.save(dict(prompt), tmp_path / "prompt.pt")
    base = PeFoMedForConditionalGeneration.from_pretrained(base_folder)
    with torch.no_grad():
        expected = load_adapter(base, adapter_folder, trainable=False)(**prompt).logits
    code = (
        "import sys; sys.path = [p for p in sys.path if 'pefomed' not in p.lower()]\n"
        "for name in ('modeling_pefomed', 'peft'): sys.modules[name] = None\n"
        "import torch\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "model = AutoModelForImageTextToText.from_pretrained('elsewhere', trust_remote_code=True)\n"
        "AutoProcessor.from_pretrained('elsewhere', trust_remote_code=True)\n"
        "torch.save(model(**torch.load('prompt.pt', weights_only=True)).logits.detach(), 'logits.pt')\n"
    )
    process = run_python("-c", code, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert torch.allclose(torch.load(tmp_path / "logits.pt", weights_only=True), expected, rtol=0, atol=1e-5)

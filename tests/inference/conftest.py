# SPDX-License-Identifier: Apache-2.0
"""What the inference tests share: tiny adapters whose weights are all moved away from their start, and phantoms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.data.datasets_index import load_samples
from pefomed_recipes.data.phantoms import write_phantoms
from pefomed_recipes.inference import predicting
from pefomed_recipes.inference.generate import Request, load_model
from pefomed_recipes.records import TASKS, Sample
from pefomed_recipes.training.adapters import add_adapter

from ..modeling.tiny import save_tiny_base

Loaded = tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model folder."""
    return save_tiny_base(tmp_path_factory.mktemp("inference") / "base")


@pytest.fixture(scope="session")
def make_adapter(base_folder: Path) -> Callable[[Path, int], Path]:
    """`make_adapter(folder, seed)` saves an adapter with random LoRA and projector weights, and its processor."""

    def make(folder: Path, seed: int) -> Path:
        adapted = add_adapter(PeFoMedForConditionalGeneration.from_pretrained(base_folder), r=4, alpha=8, dropout=0.0)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.2)
        adapted.save_pretrained(folder)
        PeFoMedProcessor.from_pretrained(base_folder).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def adapter_folder(base_folder: Path, make_adapter: Callable[[Path, int], Path]) -> Path:
    """An adapter of the base."""
    return make_adapter(base_folder.with_name("adapter"), 1)


@pytest.fixture(scope="session")
def loaded(adapter_folder: Path) -> Loaded:
    """The adapted model in float32 and its processor. Read only."""
    return load_model(adapter_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three test phantoms of 32 px."""
    folder = tmp_path_factory.mktemp("inference") / "data"
    return write_phantoms(folder, tasks=TASKS, cases_per_split={"test": 3}, size_px=32)


@pytest.fixture(scope="session")
def samples(data_folder: Path) -> list[Sample]:
    """Four questions about each of three images, the images taking turns."""
    found = load_samples("phantoms", data_folder, "test", "vqa")
    by_image = [[s for s in found if s.image_id == image][:4] for image in sorted({s.image_id for s in found})]
    return [sample for turn in zip(*by_image, strict=True) for sample in turn]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of what `predict` has asked the model, as the answers come."""
    ids: list[str] = []
    real = predicting.generate_answers

    def generate_answers(*args: Any, **options: Any) -> Iterator[tuple[str, str]]:
        for request_id, answer in real(*args, **options):
            ids.append(request_id)
            yield request_id, answer

    monkeypatch.setattr(predicting, "generate_answers", generate_answers)
    return ids


@pytest.fixture
def encoded(loaded: Loaded) -> Iterator[list[int]]:
    """How many images the vision tower encodes in each of its calls, as they come."""
    counts: list[int] = []

    def count(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        counts.append(len(output[0]))

    hook = loaded[0].model.vision_tower.register_forward_hook(count, with_kwargs=True)
    yield counts
    hook.remove()


def plain_answer(loaded: Loaded, request: Request, max_new_tokens: int, **generation: Any) -> tuple[list[int], str]:
    """Token ids up to the end token, and text, of stock `generate` on one request alone."""
    model, processor = loaded
    content = [{"type": "image", "image": image} for image in request.images]
    content.append({"type": "text", "text": request.instruction})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        task=request.task,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = type(model).generate(model, **inputs, do_sample=False, max_new_tokens=max_new_tokens, **generation)
    tokens = output[0, inputs["input_ids"].shape[1] :]
    return tokens.tolist(), processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.fixture(scope="session")
def plainly(loaded: Loaded) -> Callable[..., tuple[list[int], str]]:
    """`plainly(request, max_new_tokens)`: what stock `generate` says to one request alone, as ids and as text."""

    def answer(request: Request, max_new_tokens: int, **generation: Any) -> tuple[list[int], str]:
        return plain_answer(loaded, request, max_new_tokens, **generation)

    return answer

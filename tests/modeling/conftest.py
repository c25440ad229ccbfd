# SPDX-License-Identifier: Apache-2.0
"""What the model's tests share. Session-wide fixtures are read only; a test that changes a model builds its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

from .released import Released, release
from .tiny import ask, build_model, build_processor, draw_image, encode

BuildModel = Callable[..., PeFoMedForConditionalGeneration]


@pytest.fixture(scope="session")
def processor() -> PeFoMedProcessor:
    """The tiny model's processor."""
    return build_processor()


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Three different images."""
    return [draw_image(seed) for seed in range(3)]


@pytest.fixture(scope="session")
def model(processor: PeFoMedProcessor) -> PeFoMedForConditionalGeneration:
    """The tiny model, for tests that leave it as it is."""
    return build_model(processor).requires_grad_(False)


@pytest.fixture
def own_model(processor: PeFoMedProcessor) -> BuildModel:
    """`own_model(config=None, seed=0, ...)` builds a tiny model that the test may change."""

    def build(*args: Any, **kwargs: Any) -> PeFoMedForConditionalGeneration:
        return build_model(processor, *args, **kwargs)

    return build


@pytest.fixture(scope="session")
def inputs(processor: PeFoMedProcessor, images: list[Image.Image]) -> dict[str, Any]:
    """One image and one question."""
    return encode(processor, ask("Is there a mass?", images[0]))


@pytest.fixture(scope="session")
def batch(processor: PeFoMedProcessor, images: list[Image.Image]) -> dict[str, Any]:
    """Two images with questions of different lengths, padded on the left."""
    return encode(
        processor, ask("Is there a mass?", images[0]), ask("Which organ is shown in the left image?", images[1])
    )


@pytest.fixture(scope="session")
def base_folder(
    tmp_path_factory: pytest.TempPathFactory, model: PeFoMedForConditionalGeneration, processor: PeFoMedProcessor
) -> Path:
    """The tiny model and its processor, saved as a base model."""
    folder = tmp_path_factory.mktemp("saved") / "base"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(base_folder: Path, processor: PeFoMedProcessor) -> Path:
    """An adapter (LoRA and projector, all moved away from their start) of the base, saved beside it."""
    base = PeFoMedForConditionalGeneration.from_pretrained(base_folder)
    settings = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r".*language_model.*\.(q_proj|v_proj)",
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(base, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    folder = base_folder.with_name("adapter")
    adapted.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A tiny reference of the released model, and its files."""
    return release(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session")
def converted(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the converted `base` and `adapter`, for tests that leave them as they are."""
    folder = tmp_path_factory.mktemp("converted")
    released.convert(folder)
    return folder


@pytest.fixture
def own(released: Released, tmp_path: Path) -> Released:
    """A copy of the released files that the test may change."""
    copy = Released(tmp_path / "own", released.processor, released.sizes, released.reference)
    shutil.copytree(released.folder, copy.folder)
    return copy

# SPDX-License-Identifier: Apache-2.0
"""A base without its tower in memory trains and answers from cached features, and its adapters are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, Dinov2Config, PreTrainedConfig, SiglipVisionConfig

from modeling_pefomed import PeFoMedProcessor
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.models.adapter_folders import load_adapter
from pefomed_recipes.models.bases import base_fingerprint, load_base_model
from pefomed_recipes.models.feature_cache import FeatureCache
from pefomed_recipes.models.towers import AbsentTower, describe_tower, load_tower
from pefomed_recipes.training.adapters import add_adapter

from ..modeling.tiny import build_config, build_model, build_processor, vision_config

pytestmark = pytest.mark.integration

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture
def with_and_without(base_folder: Path) -> list[Any]:
    """The base in float32, whole and without its tower."""
    return [load_base_model(base_folder, torch.float32, without_tower=absent).eval() for absent in (False, True)]


@pytest.fixture
def question(processor: PeFoMedProcessor) -> dict[str, torch.Tensor]:
    """A question about one image and its answer."""
    prompt = processor.encode_prompt("Is there a mass?", "vqa", num_images=1)
    answer = processor.encode_answer("yes")
    labels = [-100] * len(prompt) + answer
    return {"input_ids": torch.tensor([prompt + answer] * 2), "labels": torch.tensor([labels] * 2)}


@DTYPES
def test_a_model_without_its_tower_has_no_tower_weights_and_the_same_fingerprint(
    base_folder: Path, dtype: torch.dtype
) -> None:
    whole, without = (load_base_model(base_folder, dtype, without_tower=absent) for absent in (False, True))
    assert isinstance(without.model.vision_tower, AbsentTower)
    assert sum(parameter.numel() for parameter in without.model.vision_tower.parameters()) == 0
    theirs = {name: p for name, p in whole.named_parameters() if "vision_tower" not in name}
    own = dict(without.named_parameters())
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], p) for name, p in theirs.items())
    assert base_fingerprint(without) == base_fingerprint(whole)
    assert describe_tower(without) == describe_tower(whole)


@pytest.mark.parametrize(
    "kind", [CLIPVisionConfig, SiglipVisionConfig, Dinov2Config], ids=lambda kind: kind.model_type
)
def test_towers_of_other_kinds_are_taken_out_and_loaded_alone(tmp_path: Path, kind: type[PreTrainedConfig]) -> None:
    processor = build_processor()
    sizes = {key: value for key, value in vision_config().to_dict().items() if key in kind().to_dict()}
    vision = kind(**sizes | {"model_type": kind.model_type, "num_hidden_layers": 2})
    model = build_model(processor, build_config(processor, vision=vision))
    model.save_pretrained(tmp_path)
    without = load_base_model(tmp_path, torch.float32, without_tower=True)
    alone = load_tower(tmp_path, torch.float32)
    assert base_fingerprint(without) == base_fingerprint(load_base_model(tmp_path, torch.float32))
    pixels = torch.randn(2, 3, 32, 32)
    expected = model.get_image_features(pixels, return_dict=True).last_hidden_state
    assert torch.equal(alone.model.get_tower_output(pixels), expected)


def test_training_and_answers_from_the_cache_need_no_tower(
    with_and_without: list[Any],
    processor: PeFoMedProcessor,
    cache_folder: Path,
    images: list[str],
    question: dict[str, Any],
    tmp_path: Path,
) -> None:
    """The adapters that both train are the same, and load on the whole base."""
    trained = []
    for name, base in zip(("whole", "without"), with_and_without, strict=True):
        cache = FeatureCache.open(cache_folder, base, processor.image_processor)
        assert cache.missing(images) == []
        torch.manual_seed(0)
        model = add_adapter(base, r=4, alpha=8, dropout=0.0)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        for _ in range(2):
            features = {"image": {"last_hidden_state": cache.features(images[:2])}}
            model(**question, mm_encoder_outputs=features).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(tmp_path / name)
        trained.append(load_file(tmp_path / name / "adapter_model.safetensors"))
        trained.append(json.loads((tmp_path / name / "adapter_config.json").read_text(encoding="utf-8")))
    assert trained[1] == trained[3]
    assert trained[0].keys() == trained[2].keys()
    assert all(torch.equal(trained[0][name], tensor) for name, tensor in trained[2].items())
    whole = load_base_model(with_and_without[0].name_or_path, torch.float32)
    answers = [
        load_adapter(base, tmp_path / "without", trainable=False)
        .eval()
        .generate(
            input_ids=question["input_ids"][:, :-2],
            mm_encoder_outputs={"image": {"last_hidden_state": cache.features(images[:2])}},
            max_new_tokens=6,
            do_sample=False,
        )
        for base in (whole, load_base_model(whole.name_or_path, torch.float32, without_tower=True))
    ]
    assert torch.equal(*answers)


def test_without_a_tower_pixels_and_saving_are_refused(
    with_and_without: list[Any], question: dict[str, Any], tmp_path: Path
) -> None:
    [_, without] = with_and_without
    with pytest.raises(PeFoMedError, match="tower is not in memory.*Load the model with its tower, or pass cached"):
        without(**question, pixel_values=torch.zeros(2, 3, 32, 32))
    with pytest.raises(PeFoMedError, match="cannot be saved as a base"):
        without.save_pretrained(tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_model_of_another_kind_has_no_tower_to_leave_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ValueError, match="found a llama model, expected a PeFoMed base model"):
        load_base_model(tmp_path, torch.float32, without_tower=True)

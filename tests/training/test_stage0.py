# SPDX-License-Identifier: Apache-2.0
"""Stage 0 of the embedded default: whole or not there, the same every time, measured on phantoms it never saw."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Blip2VisionModel, LlamaForCausalLM

from modeling_pefomed import PeFoMedImageProcessor, group_patch_tokens
from pefomed_recipes.data.phantom_truth import SEED_STREAMS
from pefomed_recipes.data.phantoms import case_seed, draw_phantom, facts, render_phantom
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.training import embedded, stage0
from pefomed_recipes.training.stage0 import (
    GROUP_SIZE,
    StageZeroSettings,
    VisualWords,
    draw_cases,
    fact_embeddings,
    fact_vocabulary,
    linear_probe,
    load_projector,
    normalised,
    pretrain_tower,
)

from ..modeling.tiny import build_processor, build_tokenizer, text_config

SETTINGS = StageZeroSettings(
    hidden_size=32,
    intermediate_size=64,
    layers=1,
    heads=2,
    image_size=32,
    patch_size=8,
    cases=64,
    steps=60,
    batch_size=16,
    warmup_steps=2,
)
FILES = ["config.json", "model.safetensors", "projector.safetensors", "stage0.json"]


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A language model with its tokenizer, as its makers publish it."""
    folder = tmp_path_factory.mktemp("stage0") / "llm"
    torch.manual_seed(0)
    LlamaForCausalLM(text_config(build_processor())).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def pretrained(tiny_llm: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[int]]:
    """A finished stage 0: its folder, its record, and the seeds of the phantoms that it drew."""
    folder, seeds = tmp_path_factory.mktemp("stage0") / "tower", []

    def noting(seed: int, difficulty: str) -> Any:
        seeds.append(seed)
        return draw_phantom(seed, difficulty)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage0, "draw_phantom", noting)
        record = pretrain_tower(folder, tiny_llm, SETTINGS)
    return folder, record, seeds


Pretrained = tuple[Path, dict[str, Any], list[int]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_linear_probe_recovers_a_linear_map() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3000, 16, generator=generator) * torch.linspace(0.1, 5, 16) + 3
    weight, bias = torch.randn(16, 4, generator=generator), torch.randn(4, generator=generator)
    targets = features @ weight + bias
    told = linear_probe(features[1000:], targets[1000:], features[:1000])
    assert told.shape == (1000, 4)
    assert (told - targets[:1000]).abs().max() < 0.01 * targets.std()


def test_a_linear_probe_finds_nothing_in_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(3000, 16, generator=generator), torch.randn(3000, 4, generator=generator)
    told = linear_probe(features[1000:], targets[1000:], features[:1000])
    assert (told - targets[:1000]).square().mean() > 0.9 * targets[:1000].square().mean()


def test_no_stage_of_training_and_no_split_shares_a_case() -> None:
    seeds = {(seed, stream): {case_seed(seed, stream, n) for n in (0, 1, 30_000)} for seed in (0, 1, 2) for stream in
             SEED_STREAMS}  # fmt: skip
    assert {"train", "validation", "test", "tower_train", "tower_heldout"} <= set(SEED_STREAMS)
    assert len(set().union(*seeds.values())) == sum(map(len, seeds.values()))


def test_stage_0_prepares_pixels_as_the_image_processor_does() -> None:
    pixels = render_phantom(draw_phantom(5, "easy"), 32)
    processor = PeFoMedImageProcessor(size={"height": 32, "width": 32})
    image = Image.fromarray(pixels).convert("RGB")
    expected = processor([image], return_tensors="pt")["pixel_values"]
    assert torch.allclose(normalised(torch.from_numpy(pixels)[None]), expected, atol=1e-6)


def test_a_case_states_exactly_the_facts_of_its_phantom() -> None:
    vocabulary = fact_vocabulary(SETTINGS, cases=200)
    cases = draw_cases("tower_train", 5, vocabulary, SETTINGS)
    for index in range(5):
        phantom = draw_phantom(case_seed(SETTINGS.seed, "tower_train", index), "easy")
        stated = {fact for fact, value in zip(vocabulary, cases.stated[index], strict=True) if value}
        assert stated == set(facts(phantom))
        assert torch.equal(cases.pixels[index], torch.from_numpy(render_phantom(phantom, 32)))


def test_each_fact_has_the_mean_embedding_of_its_words_and_no_two_the_same(tiny_llm: str) -> None:
    vocabulary = fact_vocabulary(SETTINGS, cases=200)
    words, mean = fact_embeddings(tiny_llm, vocabulary)
    assert torch.allclose(mean, LlamaForCausalLM.from_pretrained(tiny_llm).get_input_embeddings().weight.mean(0))
    assert words.shape == (len(vocabulary), 48)
    apart = torch.cdist(words, words) + torch.eye(len(vocabulary))
    assert apart.min() > 0.01 * words.norm(dim=1).mean()
    weight = LlamaForCausalLM.from_pretrained(tiny_llm).get_input_embeddings().weight
    spoken = build_tokenizer().encode(" left effusion", add_special_tokens=False)
    assert torch.allclose(words[vocabulary.index("effusion=left")], weight[spoken].mean(0), atol=1e-6)


def test_shorter_tokens_point_at_the_same_words(tiny_llm: str) -> None:
    torch.manual_seed(0)
    model = VisualWords(SETTINGS, *fact_embeddings(tiny_llm, fact_vocabulary(SETTINGS, cases=200))).eval()
    pixel_values = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        model.projector.weight.mul_(7)
        _, before = model(pixel_values)
        model.shorten(pixel_values)
        tokens, after = model(pixel_values)
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-4)
    own = (model.words - model.origin).norm(dim=-1).mean()
    assert (tokens - model.origin).norm(dim=-1).mean().item() == pytest.approx(own.item(), rel=1e-3)


def test_wording_is_free_where_each_word_is_said_once_and_costs_where_words_are_mixed(tiny_llm: str) -> None:
    model = VisualWords(SETTINGS, *fact_embeddings(tiny_llm, fact_vocabulary(SETTINGS, cases=200)))
    model.log_scale.data.fill_(8.0)  # sure of what it says
    stated = torch.zeros(1, len(model.words))
    stated[0, [3, 5]] = 1

    def loss(*tokens: torch.Tensor) -> float:
        said = torch.stack(tokens)[None]
        pointing = (said - model.origin) @ model.directions.T * model.log_scale.exp()
        model.forward = lambda pixel_values: (said, pointing)  # type: ignore[method-assign]
        return model.wording_loss(torch.empty(0), stated).item()

    exact = loss(model.words[3], model.words[5], model.origin)
    assert exact < 0.2
    assert loss(model.words[3], model.words[3], model.origin) > exact + 0.05  # one is missing
    assert loss(model.words[3], model.words[5], model.words[7]) > exact + 0.05  # one too many
    assert loss(model.words[3], 3 * model.words[5] - 2 * model.origin, model.origin) > exact + 0.1  # too long


@pytest.mark.integration
def test_the_folder_holds_tower_projector_and_record_and_nothing_else(pretrained: Pretrained) -> None:
    folder, record, _ = pretrained
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert json.loads((folder / "stage0.json").read_text(encoding="utf-8")) == record
    assert record["settings"]["steps"] == SETTINGS.steps
    assert record["parameters"] == sum(p.numel() for p in Blip2VisionModel.from_pretrained(folder).parameters())


@pytest.mark.integration
def test_a_finished_folder_is_reused(pretrained: Pretrained, tiny_llm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, record, _ = pretrained
    before = contents(folder)
    monkeypatch.setattr(stage0, "draw_cases", None)  # drawing a case would fail
    assert pretrain_tower(folder, tiny_llm, SETTINGS) == record
    assert contents(folder) == before


@pytest.mark.integration
def test_a_folder_of_other_settings_is_not_passed_off_as_this_one(pretrained: Pretrained, tiny_llm: str) -> None:
    folder, _, _ = pretrained
    before = contents(folder)
    with pytest.raises(PeFoMedError, match="other settings"):
        pretrain_tower(folder, tiny_llm, replace(SETTINGS, steps=61))
    assert contents(folder) == before


@pytest.mark.integration
def test_the_folder_appears_only_when_it_is_whole_and_is_the_same_every_time(
    pretrained: Pretrained, tiny_llm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record, _ = pretrained
    with monkeypatch.context() as patch:
        patch.setattr(stage0, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain_tower(tmp_path / "tower", tiny_llm, SETTINGS)
    assert not (tmp_path / "tower").exists()
    torch.manual_seed(123)  # whatever was drawn before
    again = pretrain_tower(tmp_path / "tower", tiny_llm, SETTINGS)
    assert {key: value for key, value in again.items() if key != "seconds"} == {
        key: value for key, value in record.items() if key != "seconds"
    }
    for name in ("model.safetensors", "projector.safetensors"):
        first, second = load_file(folder / name), load_file(tmp_path / "tower" / name)
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert [path.name for path in tmp_path.iterdir()] == ["tower"]


def interrupt(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.integration
def test_image_tokens_lie_near_words(pretrained: Pretrained, tiny_llm: str) -> None:
    folder, _, _ = pretrained
    vocabulary = fact_vocabulary(SETTINGS)
    words, origin = fact_embeddings(tiny_llm, vocabulary)
    tower = Blip2VisionModel.from_pretrained(folder).eval()
    tower.post_layernorm.eps = 1e-5
    projector = load_projector(folder)
    pixel_values = normalised(draw_cases("tower_heldout", 200, vocabulary, SETTINGS).pixels)
    with torch.inference_mode():
        grouped = group_patch_tokens(tower(pixel_values).last_hidden_state, 16, GROUP_SIZE)
        tokens = grouped @ projector["weight"].T + projector["bias"]
    length = (tokens - origin).norm(dim=-1).mean() / (words - origin).norm(dim=-1).mean()
    assert 0.3 < length < 1.5


@pytest.mark.integration
def test_training_learns_something_and_is_measured_for_every_kind_of_fact(pretrained: Pretrained) -> None:
    _, record, _ = pretrained
    kinds = {fact.partition("=")[0] for fact in fact_vocabulary(SETTINGS)}
    for measure in ("accuracy", "probe_accuracy"):
        assert set(record[measure]) == kinds
        assert [kind for kind, value in record[measure].items() if not 0 <= value <= 100 or math.isnan(value)] == []
    # the best single guess at the modality is right for less than half of the phantoms
    assert record["probe_accuracy"]["modality"] > 80
    assert record["accuracy"]["modality"] > 50


@pytest.mark.integration
def test_it_trains_and_measures_on_cases_of_no_split(pretrained: Pretrained) -> None:
    _, _, seeds = pretrained
    streams = {stream: case_seed(SETTINGS.seed, stream, 0) for stream in SEED_STREAMS}
    drawn = {stream: {seed for seed in seeds if 0 <= seed - first < 2**32} for stream, first in streams.items()}
    assert sorted(stream for stream, found in drawn.items() if found) == ["tower_heldout", "tower_train"]
    assert len(drawn["tower_train"]) >= SETTINGS.cases
    assert len(drawn["tower_heldout"]) >= 1000
    assert len(set(seeds)) == sum(map(len, drawn.values()))


@pytest.mark.integration
def test_a_base_of_other_parts_is_not_passed_off_as_the_one_asked_for(
    pretrained: Pretrained, tiny_llm: str, tmp_path: Path
) -> None:
    folder = embedded.quickstart_base(tmp_path, llm=tiny_llm, settings=SETTINGS, pretrained=False)
    assert embedded.quickstart_base(tmp_path, llm=tiny_llm, settings=SETTINGS, pretrained=False) == folder
    for changes in ({"pretrained": True}, {"vision_tower": str(pretrained[0])}):
        with pytest.raises(PeFoMedError, match="base"):
            embedded.quickstart_base(tmp_path, llm=tiny_llm, settings=SETTINGS, **changes)

# SPDX-License-Identifier: Apache-2.0
"""Each image is prefilled once for all its questions, and the answers are those of plain generation one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from transformers import CompileConfig

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.data.images import load_image
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.inference.generate import (
    MAX_NEW_TOKENS,
    Request,
    generate_answers,
    generate_tokens,
    load_model,
)
from pefomed_recipes.inference.rows import decodes_rows
from pefomed_recipes.models.feature_building import build_features
from pefomed_recipes.models.feature_cache import FeatureCache
from pefomed_recipes.records import TASKS, Sample

from ..modeling.tiny import draw_image

Loaded = tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]
Plainly = Callable[..., tuple[list[int], str]]

QUESTIONS = (
    "Is there a mass?",
    "Which organ is shown in the image, and what is wrong with it?",
    "why",
    "Is the heart normal? Say yes or no.",
)
NEW_TOKENS = 10
FIRST, SECOND, THIRD = (draw_image(seed) for seed in range(3))
# The images of each request; requests about the same images do not stand together.
IMAGE_SETS: dict[str, list[tuple[Image.Image, ...]]] = {
    "one image": [(FIRST,), (SECOND,), (FIRST,), (THIRD,), (SECOND,), (FIRST,), (FIRST,)],
    "two images": [(FIRST, SECOND), (SECOND, FIRST), (FIRST, SECOND), (FIRST, THIRD), (FIRST, SECOND)],
    "one or two images": [(FIRST,), (FIRST, SECOND), (FIRST,), (THIRD, SECOND), (THIRD,)],
}


def requests_about(image_sets: list[tuple[Image.Image, ...]], tasks: tuple[str, ...] = ("vqa",)) -> list[Request]:
    return [
        Request(f"r{index}", tasks[index % len(tasks)], QUESTIONS[index % len(QUESTIONS)], images)
        for index, images in enumerate(image_sets)
    ]


@pytest.mark.parametrize("rows_per_batch", [1, 3, 64])
@pytest.mark.parametrize("kind", IMAGE_SETS)
def test_answers_are_those_of_plain_generation_one_by_one(
    loaded: Loaded, plainly: Plainly, kind: str, rows_per_batch: int
) -> None:
    requests = requests_about(IMAGE_SETS[kind])
    options = {"rows_per_batch": rows_per_batch, "max_new_tokens": NEW_TOKENS}
    assert decodes_rows(loaded[0])
    tokens = dict(generate_tokens(*loaded, requests, **options))
    answers = dict(generate_answers(*loaded, requests, **options))
    for request in requests:
        assert (tokens[request.id], answers[request.id]) == plainly(request, NEW_TOKENS), request.id
    assert len(tokens) == len(answers) == len(requests)
    assert len(set(answers.values())) > 2  # images and questions make a difference


@pytest.fixture
def ends(loaded: Loaded, plainly: Plainly, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """While it lasts, these tokens end an answer: after one token or several, up to the limit."""
    free = [plainly(request, NEW_TOKENS)[0] for request in requests_about(IMAGE_SETS["one image"])]
    ids = [free[0][2], free[1][5], free[3][8]]
    monkeypatch.setattr(loaded[0].generation_config, "eos_token_id", ids)
    return ids


@pytest.mark.parametrize("as_they_come", [False, True])
@pytest.mark.parametrize("rows_per_batch", [1, 2, 5])
def test_rows_that_end_make_room_for_others_and_answers_stay_those_of_plain_generation(
    loaded: Loaded, plainly: Plainly, ends: list[int], rows_per_batch: int, as_they_come: bool
) -> None:
    requests = requests_about(IMAGE_SETS["one image"] + IMAGE_SETS["one or two images"], tasks=("vqa", "report"))
    given = iter(requests) if as_they_come else requests
    tokens = dict(generate_tokens(*loaded, given, rows_per_batch=rows_per_batch, max_new_tokens=NEW_TOKENS))
    expected = {request.id: plainly(request, NEW_TOKENS)[0] for request in requests}
    assert tokens == expected
    assert len({len(answer) for answer in expected.values()}) > 2


def test_no_more_rows_than_asked_for_are_held_and_requests_are_taken_as_places_become_free(
    loaded: Loaded, ends: list[int]
) -> None:
    taken: list[str] = []
    images = [(draw_image(seed),) for seed in range(12)]

    def as_they_come() -> Iterator[Request]:
        for request in requests_about(images):
            taken.append(request.id)
            yield request

    answers = generate_answers(*loaded, as_they_come(), rows_per_batch=3, max_new_tokens=NEW_TOKENS)
    for answered, _ in enumerate(answers):
        assert len(taken) - answered <= 3 + 1  # one is read ahead, to see whether it is about the same image
    assert len(taken) == answered + 1 == 12


def test_options_of_generate_and_rows_end_answers_alike(loaded: Loaded, plainly: Plainly, ends: list[int]) -> None:
    requests = requests_about(IMAGE_SETS["one image"])
    by_generate = dict(generate_answers(*loaded, requests, max_new_tokens=NEW_TOKENS, eos_token_id=ends))
    assert by_generate == dict(generate_answers(*loaded, requests, max_new_tokens=NEW_TOKENS))


def test_suppressed_tokens_are_never_said(loaded: Loaded, plainly: Plainly, monkeypatch: pytest.MonkeyPatch) -> None:
    [request] = requests_about([(FIRST,)])
    unwanted = plainly(request, NEW_TOKENS)[0][:2]
    monkeypatch.setattr(loaded[0].generation_config, "suppress_tokens", unwanted)
    [(_, tokens)] = generate_tokens(*loaded, [request], max_new_tokens=NEW_TOKENS)
    assert tokens == plainly(request, NEW_TOKENS)[0]
    assert not set(tokens) & set(unwanted)


@pytest.mark.integration
def test_a_compiled_step_of_one_shape_gives_the_same_tokens(loaded: Loaded, plainly: Plainly, ends: list[int]) -> None:
    """As on a GPU, but for the compiler behind torch.compile."""
    requests = requests_about(IMAGE_SETS["one image"])
    compiled = CompileConfig(backend="eager", mode=None, fullgraph=True)
    options = {"rows_per_batch": 3, "max_new_tokens": NEW_TOKENS, "compile_config": compiled}
    tokens = dict(generate_tokens(*loaded, requests, **options))
    assert tokens == {request.id: plainly(request, NEW_TOKENS)[0] for request in requests}


@pytest.mark.parametrize("change", ["repetition_penalty", "sliding window", "eager attention"])
def test_what_rows_do_not_do_is_left_to_generate(loaded: Loaded, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    model, text = loaded[0], loaded[0].model.language_model.config
    if change == "repetition_penalty":
        monkeypatch.setattr(model.generation_config, change, 1.5)
    elif change == "sliding window":
        monkeypatch.setattr(text, "layer_types", ["sliding_attention", "full_attention"], raising=False)
        monkeypatch.setattr(text, "sliding_window", 8, raising=False)
    else:
        monkeypatch.setattr(text, "_attn_implementation", "eager")
    assert not decodes_rows(model)


@pytest.mark.integration
def test_an_adapter_merged_in_memory_answers_as_beside_its_base(
    loaded: Loaded, adapter_folder: Path, base_folder: Path
) -> None:
    requests = requests_about(IMAGE_SETS["one image"])
    merged, processor = load_model(adapter_folder, dtype=torch.float32, merge=True)
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    answers = dict(generate_answers(merged, processor, requests, max_new_tokens=NEW_TOKENS))
    assert answers == dict(generate_answers(*loaded, requests, max_new_tokens=NEW_TOKENS))
    assert isinstance(load_model(base_folder, merge=True)[0], PeFoMedForConditionalGeneration)


@pytest.mark.integration
@pytest.mark.parametrize("options", [{}, {"suppress_tokens": [5]}], ids=["rows", "generate"])
def test_cached_features_give_the_answers_of_live_ones_and_no_image_is_encoded(
    loaded: Loaded, encoded: list[int], adapter_folder: Path, samples: list[Sample], tmp_path: Path, options: Any
) -> None:
    build_features(adapter_folder, samples, tmp_path / "features", dtype=torch.float32)
    features = FeatureCache.open(tmp_path / "features", loaded[0], loaded[1].image_processor)
    options |= {"max_new_tokens": NEW_TOKENS, "rows_per_batch": 3}
    pictures = {path: load_image(path) for sample in samples for path in sample.image_paths}
    live, cached = (
        [Request(s.id, s.task, s.instruction, tuple(map(see, s.image_paths))) for s in samples]
        for see in (pictures.__getitem__, str)
    )
    expected = dict(generate_answers(*loaded, live, **options))
    assert len(set(expected.values())) > 2
    encoded.clear()
    assert dict(generate_answers(*loaded, cached, features=features, **options)) == expected
    assert encoded == []


def test_each_task_keeps_its_own_limit_whatever_stands_beside_it(loaded: Loaded, plainly: Plainly) -> None:
    assert set(MAX_NEW_TOKENS) == set(TASKS)
    requests = requests_about(IMAGE_SETS["one image"][:3], tasks=("vqa", "caption"))
    answers = dict(generate_answers(*loaded, requests))
    for request in requests:
        assert answers[request.id] == plainly(request, MAX_NEW_TOKENS[request.task])[1], request.task


def test_options_that_look_at_the_prompt_do_not_see_its_padding(loaded: Loaded, plainly: Plainly) -> None:
    # where the padding token is the end token, a penalty on it would keep answers from ending
    [request] = requests_about([(FIRST,)])
    [(_, answer)] = generate_answers(*loaded, [request], max_new_tokens=NEW_TOKENS, repetition_penalty=5.0)
    assert answer == plainly(request, NEW_TOKENS, repetition_penalty=5.0)[1]


def test_options_reach_generate(loaded: Loaded, plainly: Plainly) -> None:
    [request] = requests_about([(FIRST,)])
    unwanted = plainly(request, NEW_TOKENS)[0][0]
    [(_, answer)] = generate_answers(*loaded, [request], max_new_tokens=NEW_TOKENS, suppress_tokens=[unwanted])
    assert answer == plainly(request, NEW_TOKENS, suppress_tokens=[unwanted])[1]
    assert answer != plainly(request, NEW_TOKENS)[1]


@pytest.mark.parametrize("rows_per_batch", [1, 2, 4, 64])
def test_each_image_is_encoded_once_however_many_batches_its_questions_take(
    loaded: Loaded, encoded: list[int], rows_per_batch: int
) -> None:
    requests = requests_about(IMAGE_SETS["one image"])
    list(generate_answers(*loaded, requests, rows_per_batch=rows_per_batch, max_new_tokens=3))
    assert sum(encoded) == 3


def test_the_adapter_makes_a_difference(loaded: Loaded, base_folder: Path) -> None:
    requests = requests_about(IMAGE_SETS["one image"])
    base = load_model(base_folder, dtype=torch.float32)
    adapted = dict(generate_answers(*loaded, requests, max_new_tokens=NEW_TOKENS))
    assert dict(generate_answers(*base, requests, max_new_tokens=NEW_TOKENS)) != adapted


def test_a_request_without_an_image_is_refused(loaded: Loaded) -> None:
    with pytest.raises(PeFoMedError, match="no image"):
        list(generate_answers(*loaded, [Request("r", "vqa", "why?", ())]))


def test_no_requests_give_no_answers(loaded: Loaded) -> None:
    assert list(generate_answers(*loaded, [])) == []


def test_a_loaded_model_is_in_evaluation_mode(loaded: Loaded) -> None:
    assert not any(module.training for module in loaded[0].modules())


def test_what_cannot_be_loaded_is_named_in_one_line(adapter_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    lonely = Path(shutil.copytree(adapter_folder, tmp_path / "lonely"))
    config = json.loads((lonely / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (lonely / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    for folder in ("missing", "empty", "lonely"):
        with pytest.raises(PeFoMedError, match=f"{folder}: cannot load an adapter or a base model") as refused:
            load_model(tmp_path / folder)
        assert "\n" not in str(refused.value)
    with pytest.raises(PeFoMedError, match="gone"):
        load_model(lonely)


def test_a_cut_weight_file_is_refused_in_one_line(adapter_folder: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(adapter_folder, tmp_path / "cut"))
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(PeFoMedError, match="cut: cannot load") as refused:
        load_model(cut)
    assert "\n" not in str(refused.value)

# SPDX-License-Identifier: Apache-2.0
"""Each image is prefilled once for all its questions, and the answers are those of plain generation one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.inference.generate import (
    MAX_NEW_TOKENS,
    Request,
    generate_answers,
    load_model,
)
from pefomed_recipes.records import TASKS

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
    loaded: Loaded, plainly: Plainly, generated: list[torch.Tensor], kind: str, rows_per_batch: int
) -> None:
    requests = requests_about(IMAGE_SETS[kind])
    options = {"rows_per_batch": rows_per_batch, "max_new_tokens": NEW_TOKENS}
    answers = list(generate_answers(*loaded, requests, **options))
    rows = [row.tolist() for call in generated for row in call]
    assert sorted(request_id for request_id, _ in answers) == [request.id for request in requests]
    by_id = {request.id: request for request in requests}
    for (request_id, text), tokens in zip(answers, rows, strict=True):
        expected_tokens, expected_text = plainly(by_id[request_id], NEW_TOKENS)
        assert tokens == expected_tokens, request_id
        assert text == expected_text, request_id
    assert len({text for _, text in answers}) > 2  # images and questions make a difference


def test_answers_that_end_at_different_steps_are_those_of_plain_generation(loaded: Loaded, plainly: Plainly) -> None:
    requests = requests_about(IMAGE_SETS["one image"])
    free = [plainly(request, NEW_TOKENS)[0] for request in requests]
    ends = [free[0][2], free[1][5], free[3][8]]
    stopped = {request.id: plainly(request, NEW_TOKENS, eos_token_id=ends)[1] for request in requests}
    assert len({len(plainly(request, NEW_TOKENS, eos_token_id=ends)[0]) for request in requests}) > 1
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": ends}
    assert dict(generate_answers(*loaded, requests, **options)) == stopped


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


# Of seven requests, four are about the first image, two about the second and one about the third.
@pytest.mark.parametrize(("rows_per_batch", "expected"), [(2, [1, 1, 1, 1]), (4, [1, 2]), (64, [3])])
def test_each_image_is_encoded_once_a_batch(loaded: Loaded, rows_per_batch: int, expected: list[int]) -> None:
    requests = requests_about(IMAGE_SETS["one image"])
    encoded: list[int] = []
    tower = loaded[0].model.vision_tower
    hook = tower.register_forward_hook(lambda module, args, kwargs, output: encoded.append(len(output[0])),
                                       with_kwargs=True)  # fmt: skip
    try:
        list(generate_answers(*loaded, requests, rows_per_batch=rows_per_batch, max_new_tokens=3))
    finally:
        hook.remove()
    assert encoded == expected


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

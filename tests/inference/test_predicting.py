# SPDX-License-Identifier: Apache-2.0
"""One prediction a sample, in the samples' order; nothing is asked twice, and nothing stale is passed on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.data.images import load_image
from pefomed_recipes.data.instructions import render_instruction
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.inference.generate import Request
from pefomed_recipes.inference.predicting import blank_image, model_identity, predict
from pefomed_recipes.records import Prediction, Sample, read_records

Loaded = tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]
Plainly = Callable[..., tuple[list[int], str]]
Ask = Callable[..., list[Prediction]]


@pytest.fixture
def ask(adapter_folder: Path, loaded: Loaded, tmp_path: Path) -> Ask:
    """`ask(samples, ...)` predicts with the loaded adapter to `tmp_path/predictions.jsonl` and returns the records."""

    def run(samples: list[Sample], out: str = "predictions.jsonl", **options: Any) -> list[Prediction]:
        path = predict(adapter_folder, samples, tmp_path / out, model_and_processor=loaded, **options)
        assert path == tmp_path / out
        return read_records(path, Prediction)

    return run


def rows(generated: list[torch.Tensor]) -> int:
    """How many questions were asked."""
    return sum(len(call) for call in generated)


@pytest.mark.parametrize("rows_per_batch", [5, 64])
def test_predictions_are_one_a_sample_in_the_samples_order(
    ask: Ask, samples: list[Sample], tmp_path: Path, rows_per_batch: int
) -> None:
    predictions = ask(samples, rows_per_batch=rows_per_batch)
    assert [p.id for p in predictions] == [s.id for s in samples]
    for prediction, sample in zip(predictions, samples, strict=True):
        shared = set(asdict(prediction)) & set(asdict(sample))
        assert {key: getattr(prediction, key) for key in shared} == {key: getattr(sample, key) for key in shared}
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_an_answer_is_the_models_to_the_samples_image_and_instruction(
    ask: Ask, samples: list[Sample], plainly: Plainly
) -> None:
    predictions = ask(samples[:6], instruction="plain")
    for prediction, sample in zip(predictions, samples, strict=False):
        instruction = render_instruction(sample, training=False, instruction="plain")
        request = Request(sample.id, "vqa", instruction, (load_image(sample.image_paths[0]),))
        assert prediction.prediction == plainly(request, 32)[1]


def test_several_images_of_a_sample_are_all_seen(ask: Ask, samples: list[Sample], plainly: Plainly) -> None:
    paths = [samples[0].image_paths[0], samples[1].image_paths[0]]
    [prediction] = ask([replace(samples[0], image_paths=paths)], instruction="plain")
    images = tuple(load_image(path) for path in paths)
    assert prediction.prediction == plainly(Request("", "vqa", samples[0].instruction, images), 32)[1]


def test_predicting_twice_gives_the_same_bytes(ask: Ask, samples: list[Sample], tmp_path: Path) -> None:
    ask(samples, out="first.jsonl")
    ask(samples, out="second.jsonl")
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()


def test_no_record_holds_a_path_of_this_machine(
    ask: Ask, samples: list[Sample], adapter_folder: Path, data_folder: Path
) -> None:
    for prediction in ask(samples[:3]):
        text = json.dumps(asdict(prediction))
        for place in (adapter_folder.parent, data_folder, Path.home(), Path.cwd()):
            assert str(place) not in text
        assert [value for value in asdict(prediction).values() if str(value).startswith("/")] == []
        assert prediction.model == "base"
        assert prediction.adapter.startswith("adapter@")


def test_the_prompt_is_told_by_its_fingerprint(ask: Ask, samples: list[Sample]) -> None:
    plain = ask(samples[:4], out="plain.jsonl", instruction="plain")
    short = ask(samples[:4], out="short.jsonl", instruction="short_answer")
    fingerprints = {p.prompt_sha256 for p in plain + short}
    assert len(fingerprints) == len({(s.instruction, t) for s in samples[:4] for t in ("plain", "short")})


# ------------------------------------------------------------------------------------------------------- going on


def interrupt_in_call(number: int, loaded: Loaded, patch: pytest.MonkeyPatch) -> None:
    """Let `generate` be interrupted, as by Ctrl-C, in its call of that number."""
    real, calls = loaded[0].generate, []

    def generate(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    patch.setattr(loaded[0], "generate", generate)


# What a killed process may leave behind the last whole line; the last one ends inside of a character.
TORN = {"nothing": b"", "half a line": b'{"id": "test-0', "half a character": b'{"id": "x", "prediction": "\xc3'}


@pytest.mark.parametrize("torn", TORN)
def test_an_interrupted_run_goes_on_without_asking_again(
    ask: Ask,
    samples: list[Sample],
    loaded: Loaded,
    generated: list[torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    torn: str,
) -> None:
    whole = ask(samples, out="whole.jsonl", rows_per_batch=4)
    with monkeypatch.context() as patch:
        interrupt_in_call(2, loaded, patch)
        with pytest.raises(KeyboardInterrupt):
            ask(samples, rows_per_batch=4)
    partial = tmp_path / "predictions.jsonl.partial"
    assert not (tmp_path / "predictions.jsonl").exists()
    assert len(partial.read_text(encoding="utf-8").splitlines()) == 4
    with partial.open("ab") as lines:
        lines.write(TORN[torn])
    generated.clear()
    assert ask(samples, rows_per_batch=4) == whole
    assert rows(generated) == len(samples) - 4
    assert not partial.exists()


def test_answers_of_an_interrupted_run_in_other_words_or_by_another_model_are_asked_again(
    ask: Ask, samples: list[Sample], loaded: Loaded, generated: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for before, now in (
        ({"instruction": "plain"}, {"instruction": "short_answer"}),
        ({"control": "blank_image"}, {"control": ""}),
    ):
        out = f"{now}.jsonl"
        with monkeypatch.context() as patch:
            interrupt_in_call(2, loaded, patch)
            with pytest.raises(KeyboardInterrupt):
                ask(samples, out=out, rows_per_batch=4, **before)
        generated.clear()
        assert ask(samples, out=out, rows_per_batch=4, **now) == ask(samples, out="whole.jsonl", **now)
        assert rows(generated) >= len(samples)


def test_a_finished_file_is_left_as_it_is_and_nothing_is_asked(
    ask: Ask, samples: list[Sample], generated: list[torch.Tensor], tmp_path: Path
) -> None:
    first = ask(samples[:4])
    before = (tmp_path / "predictions.jsonl").stat()
    generated.clear()
    assert ask(samples[:4]) == first
    assert generated == []
    after = (tmp_path / "predictions.jsonl").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize(
    "change", ["adapter", "base", "control", "instruction", "fewer samples", "other order", "other question"]
)
def test_a_finished_file_of_something_else_is_refused_and_kept(
    ask: Ask,
    samples: list[Sample],
    base_folder: Path,
    make_adapter: Callable[[Path, int], Path],
    adapter_folder: Path,
    tmp_path: Path,
    change: str,
) -> None:
    ask(samples[:4], instruction="plain")
    out = tmp_path / "predictions.jsonl"
    before = out.read_bytes()
    folder: Path = adapter_folder
    asked, options = samples[:4], {"instruction": "plain", "control": ""}
    if change == "adapter":
        folder = make_adapter(tmp_path / "elsewhere" / adapter_folder.name, 2)
    elif change == "base":
        folder = base_folder
    elif change == "control":
        options["control"] = "blank_image"
    elif change == "instruction":
        options["instruction"] = "short_answer"
    elif change == "fewer samples":
        asked = samples[:3]
    elif change == "other order":
        asked = samples[3::-1]
    else:
        asked = [*samples[:3], replace(samples[3], instruction="Is this the same question as before?")]
    with pytest.raises(PeFoMedError, match="another model or data set|delete it") as refused:
        predict(folder, asked, out, **options)
    assert "\n" not in str(refused.value)
    assert out.read_bytes() == before


def test_models_are_told_apart_by_their_weights(
    base_folder: Path, adapter_folder: Path, make_adapter: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    base, adapter = model_identity(adapter_folder)
    assert (base, adapter.partition("@")[0]) == ("base", "adapter")
    twin = model_identity(make_adapter(tmp_path / "adapter", 2))
    assert twin[0] == "base"
    assert twin[1] != adapter
    moved = shutil.copytree(adapter_folder, tmp_path / "moved" / "adapter")
    assert model_identity(moved) == (base, adapter)
    assert model_identity(base_folder) == ("base", "")


# ------------------------------------------------------------------------------------------------------- controls


def test_a_blank_image_says_nothing(loaded: Loaded) -> None:
    processor = loaded[1]
    pixel_values = processor.image_processor([blank_image(processor)], return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 32, 32)
    # 8 bits a channel come no nearer to the mean than half a step of about 0.015
    assert pixel_values.abs().max() < 0.01


def test_the_blank_image_control_gives_one_answer_to_a_question_whatever_the_image(
    ask: Ask, samples: list[Sample]
) -> None:
    question = samples[0].instruction
    paths = {sample.image_paths[0] for sample in samples}
    assert len(paths) == 3
    asked = [
        replace(sample, id=f"{text}/{path}", instruction=text, image_paths=[path])
        for sample in samples[:1]
        for text in (question, "Which organ is shown?")
        for path in sorted(paths)
    ]
    seeing, blind = ask(asked), ask(asked, out="blank.jsonl", control="blank_image", rows_per_batch=2)
    assert {p.control for p in blind} == {"blank_image"}
    for start in (0, 3):
        assert len({p.prediction for p in blind[start : start + 3]}) == 1
        assert len({p.prediction for p in seeing[start : start + 3]}) == 3


def test_the_blank_image_control_takes_the_place_of_every_image(
    ask: Ask, samples: list[Sample], loaded: Loaded, plainly: Plainly
) -> None:
    path = samples[0].image_paths[0]
    [prediction] = ask([replace(samples[0], image_paths=[path, path])], control="blank_image", instruction="plain")
    blank = blank_image(loaded[1])
    assert prediction.prediction == plainly(Request("", "vqa", samples[0].instruction, (blank, blank)), 32)[1]


def test_an_unknown_control_is_refused(ask: Ask, samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown control 'blank_picture'; expected blank_image"):
        ask(samples, control="blank_picture")
    assert list(tmp_path.iterdir()) == []


def test_no_samples_are_refused(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(PeFoMedError, match="found 0 samples"):
        ask([])
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_cannot_be_decoded_is_named_and_no_prediction_file_appears(
    ask: Ask, samples: list[Sample], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(PeFoMedError, match=r"broken\.png") as refused:
        ask([*samples[:2], replace(samples[2], image_paths=[str(tmp_path / "broken.png")])])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "predictions.jsonl").exists()

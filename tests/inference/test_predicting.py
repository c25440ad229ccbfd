# SPDX-License-Identifier: Apache-2.0
"""One prediction a sample, in the samples' order; nothing is asked twice, and nothing stale is passed on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Blip2VisionModel

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.data.images import load_image
from pefomed_recipes.data.instructions import render_instruction
from pefomed_recipes.devices import default_dtype
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.inference import asking, predicting
from pefomed_recipes.inference.controls import blank_image, images_of_others
from pefomed_recipes.inference.generate import Request
from pefomed_recipes.inference.predicting import model_identity, predict
from pefomed_recipes.inference.scoring_text import answer_probabilities, sentence_support
from pefomed_recipes.models.feature_building import build_features
from pefomed_recipes.records import CONTROLS, Prediction, Sample, read_records

pytestmark = pytest.mark.integration

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


def interrupt_after(number: int, patch: pytest.MonkeyPatch) -> None:
    """Let the model be interrupted, as by Ctrl-C, after that many answers."""
    real = predicting.generate_answers

    def generate_answers(*args: Any, **options: Any) -> Iterator[tuple[str, str]]:
        yield from islice(real(*args, **options), number)
        raise KeyboardInterrupt

    patch.setattr(predicting, "generate_answers", generate_answers)


# What a killed process may leave behind the last whole line; the last one ends inside of a character.
TORN = {"nothing": b"", "half a line": b'{"id": "test-0', "half a character": b'{"id": "x", "prediction": "\xc3'}


@pytest.mark.parametrize("torn", TORN)
def test_an_interrupted_run_goes_on_without_asking_again(
    ask: Ask,
    samples: list[Sample],
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    torn: str,
) -> None:
    whole = ask(samples, out="whole.jsonl", rows_per_batch=4)
    with monkeypatch.context() as patch:
        interrupt_after(4, patch)
        with pytest.raises(KeyboardInterrupt):
            ask(samples, rows_per_batch=4)
    partial = tmp_path / "predictions.jsonl.partial"
    assert not (tmp_path / "predictions.jsonl").exists()
    assert len(partial.read_text(encoding="utf-8").splitlines()) == 4
    with partial.open("ab") as lines:
        lines.write(TORN[torn])
    asked.clear()
    assert ask(samples, rows_per_batch=4) == whole
    assert len(asked) == len(samples) - 4
    assert not partial.exists()


def test_answers_of_an_interrupted_run_in_other_words_or_by_another_model_are_asked_again(
    ask: Ask, samples: list[Sample], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for before, now in (
        ({"instruction": "plain"}, {"instruction": "short_answer"}),
        ({"control": "blank_image"}, {"control": ""}),
    ):
        out = f"{now}.jsonl"
        with monkeypatch.context() as patch:
            interrupt_after(4, patch)
            with pytest.raises(KeyboardInterrupt):
                ask(samples, out=out, rows_per_batch=4, **before)
        asked.clear()
        assert ask(samples, out=out, rows_per_batch=4, **now) == ask(samples, out="whole.jsonl", **now)
        assert len(asked) >= len(samples)


def test_a_finished_file_is_left_as_it_is_and_nothing_is_asked(
    ask: Ask, samples: list[Sample], asked: list[str], tmp_path: Path
) -> None:
    first = ask(samples[:4])
    before = (tmp_path / "predictions.jsonl").stat()
    asked.clear()
    assert ask(samples[:4]) == first
    assert asked == []
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
    with pytest.raises(ConfigError, match="unknown control 'blank_picture'.*expected blank, shuffle, mirror"):
        ask(samples, control="blank_picture")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("short", "kept"), CONTROLS.items())
def test_a_control_has_a_short_name_and_records_keep_the_long_one(
    ask: Ask, samples: list[Sample], tmp_path: Path, short: str, kept: str
) -> None:
    assert {p.control for p in ask(samples, out="short.jsonl", control=short)} == {kept}
    ask(samples, out="long.jsonl", control=kept)
    assert (tmp_path / "short.jsonl").read_bytes() == (tmp_path / "long.jsonl").read_bytes()


def test_mirrored_images_have_left_and_right_exchanged(ask: Ask, samples: list[Sample], plainly: Plainly) -> None:
    predictions = ask(samples[:3], control="mirrored_images", instruction="plain")
    for prediction, sample in zip(predictions, samples, strict=False):
        image = load_image(sample.image_paths[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert prediction.prediction == plainly(Request("", "vqa", sample.instruction, (image,)), 32)[1]
        assert prediction.control == "mirrored_images"


def test_shuffled_images_are_those_of_another_study(ask: Ask, samples: list[Sample], plainly: Plainly) -> None:
    others = images_of_others(samples)
    predictions = ask(samples, control="shuffled_images", instruction="plain")
    for prediction, sample in list(zip(predictions, samples, strict=True))[:3]:
        [shown] = others[tuple(sample.image_paths)]
        assert shown != sample.image_paths[0]
        assert prediction.prediction == plainly(Request("", "vqa", sample.instruction, (load_image(shown),)), 32)[1]


def test_every_image_is_given_to_one_other_study_with_as_many_images() -> None:
    def sample(study: int, *names: str) -> Sample:
        return Sample(f"{study}{names}", "vqa", list(names), "why", ["x"], study_id=f"study{study}")

    samples = [sample(n // 2, f"{n}.png") for n in range(10)] + [sample(n, f"{n}a.png", f"{n}b.png") for n in range(3)]
    others = images_of_others(samples)
    study_of = {tuple(s.image_paths): s.study_id for s in samples}
    assert sorted(others.values()) == sorted(others) == sorted(study_of)
    for own, other in others.items():
        assert len(own) == len(other)
        assert study_of[own] != study_of[other]
    assert images_of_others(list(reversed(samples))) == others
    with pytest.raises(PeFoMedError, match="one study has 2 of the 2 sets of 1 image"):
        images_of_others(samples[:2])


# --------------------------------------------------------------------------------- cached features, probabilities


@pytest.mark.parametrize("control", ["", "shuffled_images"])
def test_with_a_feature_cache_no_image_is_decoded_and_no_tower_is_loaded(
    ask: Ask,
    samples: list[Sample],
    adapter_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    control: str,
) -> None:
    dtype = default_dtype()
    live = predict(adapter_folder, samples, tmp_path / "live.jsonl", control=control)
    build_features(adapter_folder, samples, tmp_path / "features", dtype=dtype)
    monkeypatch.setattr(asking, "load_image", None)
    monkeypatch.setattr(Blip2VisionModel, "forward", None)
    options: dict[str, Any] = {"control": control, "feature_cache": tmp_path / "features"}
    cached = predict(adapter_folder, samples, tmp_path / "cached.jsonl", **options)
    assert cached.read_bytes() == live.read_bytes()


def test_an_image_that_is_missing_is_an_error_although_its_features_are_cached(
    ask: Ask, samples: list[Sample], adapter_folder: Path, tmp_path: Path
) -> None:
    image = Path(shutil.copy(samples[0].image_paths[0], tmp_path / "image.png"))
    sample = replace(samples[0], image_paths=[str(image)])
    build_features(adapter_folder, [sample], tmp_path / "features", dtype=torch.float32)
    image.unlink()
    with pytest.raises(PeFoMedError, match=r"image\.png: no such file"):
        ask([sample], feature_cache=tmp_path / "features")


def test_p_yes_is_written_for_yes_no_questions_only_and_only_when_asked_for(
    ask: Ask, samples: list[Sample], loaded: Loaded
) -> None:
    closed = replace(samples[0], id="closed", instruction="Is there a mass?", answers=["Yes"])
    open_ = replace(samples[0], id="open", instruction="Which organ is shown?", answers=["liver"])
    assert {p.p_yes for p in ask([closed, open_], out="plain.jsonl")} == {None}
    first, second = ask([closed, open_], probabilities=True, instruction="plain")
    request = Request("", "vqa", closed.instruction, (load_image(closed.image_paths[0]),))
    assert first.p_yes == pytest.approx(answer_probabilities(*loaded, [request])[""]["yes"], abs=1e-6)
    assert 0 < first.p_yes < 1
    assert second.p_yes is None
    with pytest.raises(PeFoMedError, match="lacks probabilities"):
        ask([closed, open_], out="plain.jsonl", probabilities=True)


def test_the_support_of_a_reports_sentences_is_written_when_asked_for(
    ask: Ask, samples: list[Sample], loaded: Loaded
) -> None:
    reports = [replace(samples[n], id=f"report{n}", task="report", instruction="", answers=["x"]) for n in range(2)]
    assert {p.sentence_support for p in ask(reports, out="plain.jsonl")} == {None}
    for sample, prediction in zip(reports, ask(reports, probabilities=True), strict=True):
        request = Request(
            "", "report", render_instruction(sample, training=False), (load_image(sample.image_paths[0]),)
        )
        scored = sentence_support(*loaded, request, prediction.prediction, blank_image(loaded[1]))
        assert prediction.sentence_support == pytest.approx([one.support for one in scored], abs=1e-4)
        assert prediction.sentence_support


def test_no_samples_are_refused(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(PeFoMedError, match="found 0 samples"):
        ask([])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["a folder", "below a file"])
def test_a_file_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    samples: list[Sample], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("kept")
    out = tmp_path if place == "a folder" else tmp_path / "file" / "predictions.jsonl"
    with pytest.raises(PeFoMedError, match="cannot be written .*name another file with --out") as refused:
        predict(tmp_path / "no model", samples, out)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_image_that_cannot_be_decoded_is_named_and_no_prediction_file_appears(
    ask: Ask, samples: list[Sample], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(PeFoMedError, match=r"broken\.png") as refused:
        ask([*samples[:2], replace(samples[2], image_paths=[str(tmp_path / "broken.png")])])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "predictions.jsonl").exists()

# SPDX-License-Identifier: Apache-2.0
"""A model behind an endpoint answers as the local one does, is paid for once, and sees nothing but the picture."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from pefomed_recipes import chat_api, cli
from pefomed_recipes.chat_api import Endpoint
from pefomed_recipes.data.images import load_image
from pefomed_recipes.data.instructions import render_instruction
from pefomed_recipes.data.phantoms import write_phantoms
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.evaluation.boxes import parse_box
from pefomed_recipes.inference import api
from pefomed_recipes.inference.api import SYSTEM_PROMPTS, predict_with_api
from pefomed_recipes.inference.controls import images_of_others
from pefomed_recipes.ledger import Ledger
from pefomed_recipes.records import TASKS, Prediction, Sample, read_records

from ..data.fixtures.dicom_files import RAMP, dicom_of, encoded
from ..stub_chat import StubChat, stub_chat

SECRET = "sk-a-secret-key"
PATIENT = "Doe^Jane"
SIDE = 40
Predict = Callable[..., list[Prediction]]


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][1]["content"][-1]["text"])


def pictures_of(body: dict[str, Any]) -> list[Image.Image]:
    urls = [part["image_url"]["url"] for part in body["messages"][1]["content"][:-1]]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def says(body: dict[str, Any]) -> str:
    """An answer that tells what was seen and asked."""
    return f" {len(pictures_of(body))} seen: {text_of(body)}\n"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_api, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def asked_samples(tmp_path: Path) -> list[Sample]:
    """Two questions about each of four patients' images, whose files name the patient in every way that they can."""
    samples = []
    for number in range(4):
        path = tmp_path / f"{PATIENT}-{number}.{'jpg' if number % 2 else 'png'}"
        shades = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE + 8, 3), dtype=np.uint8)
        exif, chunks = Image.Exif(), PngImagePlugin.PngInfo()
        exif[0x010E], exif[0x9286] = f"{PATIENT} description", f"{PATIENT} comment"
        exif[0x0112] = 6  # lies on its side
        chunks.add_text("Patient", PATIENT)
        name = PATIENT.encode()
        Image.fromarray(shades).save(path, exif=exif, comment=name, pnginfo=chunks, icc_profile=name * 50)
        assert PATIENT.encode() in path.read_bytes()
        for question in ("Is there a mass?", "Which organ is shown?"):
            samples.append(
                Sample(f"{len(samples)}", "vqa", [str(path)], question, ["yes"], image_id=f"image {number}")
            )
    return samples


@pytest.fixture
def predict(tmp_path: Path) -> Predict:
    """`predict(server, samples, ...)` asks the stub, with settings of the endpoint or options of the function."""

    def run(server: StubChat, samples: list[Sample], out: str = "out.jsonl", **options: Any) -> list[Prediction]:
        names = {
            "concurrency",
            "attempts",
            "input_price",
            "output_price",
            "api_key",
            "model",
            "timeout_seconds",
        } & set(options)
        settings = {"model": "gpt", "timeout_seconds": 1.0, **{name: options.pop(name) for name in names}}
        path = predict_with_api(
            Endpoint(server.url, **settings), Ledger(tmp_path / "ledger.jsonl"), samples, tmp_path / out, **options
        )
        return read_records(path, Prediction) if path else []

    return run


def test_predictions_are_one_a_sample_in_order_and_say_who_answered_what(
    predict: Predict, asked_samples: list[Sample], tmp_path: Path
) -> None:
    with stub_chat(says) as server:
        predictions = predict(server, asked_samples)
    assert [p.id for p in predictions] == [s.id for s in asked_samples]
    for prediction, sample in zip(predictions, asked_samples, strict=True):
        assert prediction.prediction == f"1 seen: {render_instruction(sample, training=False)}"
        shared = set(asdict(prediction)) & set(asdict(sample))
        assert {key: getattr(prediction, key) for key in shared} == {key: getattr(sample, key) for key in shared}
        assert (prediction.model, prediction.adapter, prediction.control) == ("gpt", "", "")
    assert len({p.prompt_sha256 for p in predictions}) == 2
    assert str(tmp_path) not in (tmp_path / "out.jsonl").read_text()


def test_of_an_image_its_pixels_are_sent_and_nothing_else(predict: Predict, asked_samples: list[Sample]) -> None:
    with stub_chat(says) as server:
        predict(server, asked_samples)
    bodies = {(text_of(body), pictures_of(body)[0].tobytes()) for body in server.bodies}
    assert bodies == {
        (render_instruction(sample, training=False), load_image(sample.image_paths[0]).tobytes())
        for sample in asked_samples
    }
    for body in server.bodies:
        [picture] = pictures_of(body)
        assert (picture.mode, picture.size, picture.info) == ("RGB", (SIDE, SIDE + 8), {})
        data = base64.b64decode(body["messages"][1]["content"][0]["image_url"]["url"].partition(",")[2])
        assert PATIENT.encode() not in data and PATIENT not in json.dumps(body)


def test_the_ledger_and_the_log_hold_no_picture_no_path_and_no_key(
    predict: Predict, asked_samples: list[Sample], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with stub_chat(lambda body: "yes") as server:
        predict(server, asked_samples, api_key=SECRET)
        assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
    said = "".join(capfd.readouterr()) + "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))
    for private in (SECRET, PATIENT, "base64", str(tmp_path)):
        assert private not in said


def test_larger_pictures_are_scaled_down_and_smaller_ones_are_not(
    predict: Predict, asked_samples: list[Sample]
) -> None:
    with stub_chat(says) as server:
        predict(server, asked_samples[:2], longest_side=12)
        assert {pictures_of(body)[0].size for body in server.bodies} == {(10, 12)}
        with pytest.raises(PeFoMedError, match="to other prompts"):
            predict(server, asked_samples[:2], longest_side=24)


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_its_words(predict: Predict, asked_samples: list[Sample], task: str) -> None:
    paths = asked_samples[0].image_paths * 2
    sample = replace(asked_samples[0], task=task, instruction="the heart", image_paths=paths)
    with stub_chat(says) as server:
        [prediction] = predict(server, [sample])
    [body] = server.bodies
    assert body["messages"][0] == {"role": "system", "content": SYSTEM_PROMPTS[task]}
    assert text_of(body) == render_instruction(sample, training=False) and len(pictures_of(body)) == 2
    assert body["temperature"] == 0 and prediction.task == task


def test_the_form_of_a_box_that_is_asked_for_is_the_one_that_is_scored() -> None:
    numbers = {"<x1>": "<10>", "<y1>": "<20>", "<x2>": "<30>", "<y2>": "<40>"}
    form = SYSTEM_PROMPTS["refer"].partition("{")[2].partition("}")[0]
    for name, number in numbers.items():
        form = form.replace(name, number)
    assert parse_box(f"{{{form}}}") == (10, 20, 30, 40)


# ------------------------------------------------------------------------------------------------------- controls


def test_blank_pictures_are_all_the_same_and_are_asked_about_once(
    predict: Predict, asked_samples: list[Sample]
) -> None:
    with stub_chat(says) as server:
        predictions = predict(server, asked_samples, control="blank_image")
    assert {p.control for p in predictions} == {"blank_image"} and len(predictions) == 8
    assert len(server.bodies) == 2  # two questions
    for body in server.bodies:
        assert len(pictures_of(body)[0].getcolors()) == 1


def test_shuffled_pictures_are_those_of_another_patient(predict: Predict, asked_samples: list[Sample]) -> None:
    others = images_of_others(asked_samples)
    with stub_chat(lambda body: str(hash(pictures_of(body)[0].tobytes()))) as server:
        predictions = predict(server, asked_samples, control="shuffled_images")
    for prediction, sample in zip(predictions, asked_samples, strict=True):
        [path] = others[tuple(sample.image_paths)]
        assert path != sample.image_paths[0]
        assert prediction.prediction == str(hash(load_image(path).tobytes()))


def test_mirrored_pictures_have_left_and_right_exchanged(predict: Predict, asked_samples: list[Sample]) -> None:
    with stub_chat(says) as server:
        predict(server, asked_samples[:1], control="mirrored_images")
    shown = np.asarray(pictures_of(server.bodies[0])[0])
    assert (shown == np.asarray(load_image(asked_samples[0].image_paths[0]))[:, ::-1]).all()


def test_an_unknown_control_is_refused(predict: Predict, asked_samples: list[Sample]) -> None:
    with stub_chat(says) as server, pytest.raises(ConfigError, match="did you mean blank_image"):
        predict(server, asked_samples, control="blank_imag")


# ------------------------------------------------------------------------------------- faults, going on, and cost


def test_busy_torn_and_slow_replies_are_asked_again_and_none_is_lost(
    predict: Predict, asked_samples: list[Sample], tmp_path: Path
) -> None:
    faults = ("429 0.02", "500", "torn", "garbage", "slow 0.6", "408", "503", "")

    def fault(body: dict[str, Any], attempt: int) -> str:
        return faults[len(server.attempts) % len(faults)] if attempt == 1 else ""

    with stub_chat(says, fault) as server:
        predictions = predict(server, asked_samples, timeout_seconds=0.4)
    assert [p.prediction for p in predictions] == [
        f"1 seen: {render_instruction(sample, training=False)}" for sample in asked_samples
    ]
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 8


def test_what_got_no_reply_is_counted_written_nowhere_and_asked_again(
    predict: Predict, asked_samples: list[Sample], tmp_path: Path
) -> None:
    def fault(body: dict[str, Any], attempt: int) -> str:
        return "400" if "organ" in text_of(body) else ""

    with stub_chat(says, fault) as server:
        with pytest.raises(PeFoMedError, match=r"4 of 8 samples have no answer \(status 400: 4\)") as error:
            predict(server, asked_samples)
        assert "organ" not in str(error.value) and not (tmp_path / "out.jsonl").exists()
        partial = read_records(tmp_path / "out.jsonl.partial", Prediction)
        assert [p.id for p in partial] == ["0", "2", "4", "6"]
        served = len(server.bodies)
        server.fault = lambda body, attempt: ""
        assert len(predict(server, asked_samples)) == 8
        assert len(server.bodies) == served + 4
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_killed_run_goes_on_where_it_stopped_and_a_finished_one_asks_nothing(
    predict: Predict, asked_samples: list[Sample], tmp_path: Path
) -> None:
    with stub_chat(says) as server:
        predict(server, asked_samples[:5], out="some.jsonl")
        whole = predict(server, asked_samples)
        assert len(server.bodies) == 8
        assert predict(server, asked_samples) == whole
        (tmp_path / "out.jsonl").unlink()
        assert predict(server, asked_samples) == whole
        assert len(server.bodies) == 8


@pytest.mark.parametrize("change", ["model", "control", "instruction", "fewer samples"])
def test_a_finished_file_of_something_else_is_refused_and_kept(
    predict: Predict, asked_samples: list[Sample], tmp_path: Path, change: str
) -> None:
    changes = {"model": {"model": "b"}, "control": {"control": "blank_image"}, "instruction": {"instruction": "plain"}}
    with stub_chat(says) as server:
        predict(server, asked_samples)
        before = (tmp_path / "out.jsonl").read_bytes()
        few = asked_samples[:3] if change == "fewer samples" else asked_samples
        with pytest.raises(PeFoMedError, match="another model or data set"):
            predict(server, few, **changes.get(change, {}))
        assert len(server.bodies) == 8
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_the_cost_is_known_before_and_limits_the_run(
    predict: Predict, asked_samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = {"input_price": 10.0, "output_price": 100.0}
    with stub_chat(says) as server:
        assert predict(server, asked_samples, dry_run=True, **prices) == []
        assert "8 requests (0 more are answered already)" in capsys.readouterr().err
        with pytest.raises(PeFoMedError, match="nothing was asked: 8 requests"):
            predict(server, asked_samples, max_cost=0.1, **prices)
        assert not server.bodies and not (tmp_path / "out.jsonl").exists()
        predict(server, asked_samples, max_cost=0.3, **prices)


def test_empty_and_cut_replies_are_answers_and_are_told(
    predict: Predict, asked_samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    with stub_chat(lambda body: "" if "mass" in text_of(body) else "liver") as server:
        predictions = predict(server, asked_samples)
    assert [p.prediction for p in predictions] == ["", "liver"] * 4
    assert "of 8 answers, 0 were cut off at their longest and 4 are empty" in caplog.text


# ------------------------------------------------------------------------------------------- what must not leave


def test_credentialed_samples_go_to_no_server_outside_of_the_house(
    asked_samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predict: Predict
) -> None:
    asked_samples[3] = replace(asked_samples[3], credentialed=True, source="mimic_cxr")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(PeFoMedError, match=r"1 of 8 samples come from credentialed data \(mimic_cxr\)") as error:
        predict_with_api(Endpoint("https://8.8.8.8/v1", "gpt"), ledger, asked_samples, tmp_path / "out.jsonl")
    assert "\n" not in str(error.value) and not (tmp_path / "out.jsonl").exists()
    with stub_chat(says) as server:
        assert len(predict(server, asked_samples)) == 8
        monkeypatch.setattr(api, "is_in_house", lambda url: False)
        with pytest.raises(PeFoMedError, match="outside of this house"):
            predict(server, asked_samples, dry_run=True)


def test_images_that_may_show_a_name_go_to_no_server_outside_of_the_house(
    asked_samples: list[Sample], tmp_path: Path
) -> None:
    path = tmp_path / "screen.dcm"
    path.write_bytes(encoded(dicom_of(RAMP, BurnedInAnnotation="YES")))
    shown = replace(asked_samples[0], image_paths=[str(path)])
    with pytest.raises(PeFoMedError, match=r"1 images may show text.*screen\.dcm"):
        predict_with_api(
            Endpoint("https://8.8.8.8/v1", "gpt"), Ledger(tmp_path / "l.jsonl"), [shown], tmp_path / "out.jsonl"
        )


# ------------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("command", ["predict", "predict-api"])
def test_the_command_predicts_with_an_endpoint_and_never_prints_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    data = write_phantoms(tmp_path / "data", tasks=("vqa",), cases_per_split={"test": 2}, size_px=32)
    monkeypatch.setenv("MY_KEY", SECRET)
    monkeypatch.chdir(tmp_path)

    def run(url: str, *options: str) -> tuple[int, str]:
        arguments = ["--api", url, "--model", "gpt", "--data-root", str(data), "--limit", "3", *options]
        monkeypatch.setattr(sys, "argv", ["pefomed", command, *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), "".join(capfd.readouterr())

    with stub_chat(lambda body: "yes") as server:
        code, said = run(server.url, "--key-variable", "MY_KEY", "--dry-run")
        assert code == 0 and "3 requests" in said and not server.bodies
        code, said = run(server.url, "--key-variable", "MY_KEY")
        assert code == 0 and "wrote predictions.jsonl" in said and SECRET not in said
        assert [headers["authorization"] for headers in server.headers] == [f"Bearer {SECRET}"] * 3
        server.fault = lambda body, attempt: "401"
        code, said = run(server.url, "--key-variable", "MY_KEY", "--out", "b.jsonl", "--control", "blank_image")
        assert code == 1 and "--key-variable" in said and SECRET not in said and said.count("error:") == 1
    assert [p.prediction for p in read_records(tmp_path / "predictions.jsonl", Prediction)] == ["yes"] * 3
    assert (tmp_path / "predictions.ledger.jsonl").is_file() and not (tmp_path / "b.jsonl").exists()


def test_half_a_character_in_a_question_is_refused_with_the_item(
    predict: Predict, asked_samples: list[Sample]
) -> None:
    asked_samples[2] = replace(asked_samples[2], instruction="Is there \ud800?")
    with stub_chat(says) as server:
        with pytest.raises(PeFoMedError, match="item '2' holds half of a surrogate pair"):
            predict(server, asked_samples)
        assert not server.bodies


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_asked(
    predict: Predict, asked_samples: list[Sample], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with stub_chat(says) as server:
        with pytest.raises(ConfigError, match="cannot be written"):
            predict(server, asked_samples, out="file/out.jsonl")
        assert not server.bodies


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_limit_is_one_or_more(limit: str, tmp_path: Path) -> None:
    asked = ["predict-api", "--api", "http://127.0.0.1/v1", "--model", "m", "--data-root", str(tmp_path)]
    assert CliRunner().invoke(cli.app, [*asked, "--limit", limit]).exit_code == 2

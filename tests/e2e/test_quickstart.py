# SPDX-License-Identifier: Apache-2.0
"""The main job, reduced, through the real command: phantoms, base, two stages, predictions, scores, a question."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import modeling_pefomed  # noqa: F401  (registers the classes)
from pefomed_recipes.devices import default_dtype
from pefomed_recipes.inference.generate import Request, generate_answers, load_model
from pefomed_recipes.records import CONTROLS, Prediction, read_records
from pefomed_recipes.training.embedded import embedded_llm

pytestmark = pytest.mark.e2e

TEST_CASES = 6
SETTINGS = ("--cases=60", f"--test-cases={TEST_CASES}", "--stage0-steps=60", "--stage1-steps=4", "--stage2-steps=6")
MEMORY_LIMIT_BYTES = 4 * 2**30
USERS_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
QUESTION = "What imaging modality is this?"

# Loads the run as any user of transformers would, and tells what it computes from one image.
PROBE = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

def probe(run, image, question, **options):
    processor = AutoProcessor.from_pretrained(run + "/stage2", **options)
    content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(chat, task="vqa", tokenize=True, return_dict=True, return_tensors="pt")
    told = {}
    for name in ("base", "stage1", "stage2"):
        folder = run + "/" + name
        with torch.inference_mode():
            whole = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **options).eval()
            bare = AutoModel.from_pretrained(folder, dtype=torch.float32, **options).eval()
            output, hidden = whole(**inputs, output_hidden_states=True), bare(**inputs)
            told[name] = {
                "classes": [type(whole).__name__, type(bare).__name__],
                "logits": output.logits[0, -1, :64].tolist(),
                "image_tokens": output.image_hidden_states[:, :64].flatten()[:256].tolist(),
                "apart": (output.hidden_states[-1] - hidden.last_hidden_state).abs().max().item(),
            }
    return told
"""
CLEAN = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_pefomed", "pefomed_recipes", "pefomed_hub", "pefomed_demo"):
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, Blocked())
{PROBE}
print(json.dumps(probe(*sys.argv[1:], trust_remote_code=True)))
"""


@dataclass
class Finished:
    """A process that has ended well."""

    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int


def command(folder: Path, *arguments: str, **environment: str) -> Finished:
    """Run to success in a folder; the peak memory is that of the process itself."""
    started = time.monotonic()
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
        process = subprocess.Popen(
            arguments, cwd=folder, stdout=out, stderr=err, env={**USERS_ENVIRONMENT, **environment}
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    assert process.returncode == 0, stderr
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(stdout, stderr, seconds, usage.ru_maxrss * unit)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass
class Quickstart:
    """The folder of a quickstart, its first and its second call, and what lay there after each."""

    folder: Path
    first: Finished
    second: Finished
    files: dict[str, str]
    files_after: dict[str, str]
    connections: str


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """`pefomed quickstart`, twice."""
    place = tmp_path_factory.mktemp("quickstart")
    pefomed, log = Path(sys.executable).with_name("pefomed"), place / "network.log"
    call = (str(pefomed), "quickstart", "--out=run", *SETTINGS)
    first = command(place, *call, PEFOMED_TEST_NETWORK_LOG=str(log))
    files = digests(place / "run")
    second = command(place, *call, PEFOMED_TEST_NETWORK_LOG=str(log))
    connections = log.read_text(encoding="utf-8") if log.exists() else ""
    return Quickstart(place / "run", first, second, files, digests(place / "run"), connections)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_stdout_is_the_table_and_nothing_else(quickstart: Quickstart) -> None:
    assert quickstart.first.stdout == (quickstart.folder / "results.md").read_text(encoding="utf-8")
    assert quickstart.first.stdout.startswith("# Results: vqa")
    assert "Blank image" in quickstart.first.stdout
    assert "Traceback" not in quickstart.first.stderr


def test_results_are_valid_and_stand_beside_baseline_and_controls(quickstart: Quickstart) -> None:
    results = read_json(quickstart.folder / "results.json")
    predictions = read_records(quickstart.folder / "predictions.jsonl", Prediction)
    blank = read_records(quickstart.folder / "predictions-blank_image.jsonl", Prediction)
    assert results["task"] == "vqa"
    assert results["counts"]["items"] == len(predictions) == len(blank) > 5 * TEST_CASES
    assert results["counts"]["clusters"] == TEST_CASES
    overall = results["rows"][0]
    assert overall["score"]["denominator"] == len(predictions)
    assert overall["baselines"]
    assert set(overall["controls"]) == set(CONTROLS.values())
    assert results["missing"] == []
    assert 0 <= overall["score"]["value"] <= 1
    lines = (quickstart.folder / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [row["id"] for row in map(json.loads, lines) if "question" in row]
    assert [p.id for p in predictions] == [p.id for p in blank] == asked
    by_question: dict[str, set[str]] = {}
    for prediction in blank:
        by_question.setdefault(prediction.instruction, set()).add(prediction.prediction)
    assert max(map(len, by_question.values())) == 1


def test_everything_that_was_promised_lies_in_the_folder(quickstart: Quickstart) -> None:
    expected = {"base/config.json", "base/model.safetensors", "stage0/stage0.json", "data/test.jsonl", "loss.png"}
    expected |= {
        f"{stage}/{name}" for stage in ("stage1", "stage2") for name in ("run.json", "loss.png", "loss.jsonl")
    }
    expected |= {f"{stage}/adapter_model.safetensors" for stage in ("stage1", "stage2")}
    assert expected - set(quickstart.files) == set()
    left = [name for name in quickstart.files if "checkpoint-" in name or name.endswith((".tmp", ".partial"))]
    assert left == []


def test_run_records_tell_what_was_trained(quickstart: Quickstart) -> None:
    for stage, steps in (("stage1", 4), ("stage2", 6)):
        record = read_json(quickstart.folder / stage / "run.json")
        assert record["steps"] == steps
        assert record["frozen_weights_bit_identical"] is True
        assert record["data"]["train"]["images"] == 60
        rank = record["settings"]["lora_r"]
        # SmolLM2: 30 layers, q 576 -> 576, v 576 -> 192; the projector 4 * 128 -> 576 with its bias
        lora = 30 * (rank * (576 + 576) + rank * (576 + 192))
        assert record["trainable_parameters"] == lora + 4 * 128 * 576 + 576
    assert record["settings"]["adapter"].endswith("stage1")


def test_the_base_holds_the_language_model_and_the_tower_unchanged(quickstart: Quickstart) -> None:
    base = load_file(quickstart.folder / "base" / "model.safetensors")
    tower = load_file(quickstart.folder / "stage0" / "model.safetensors")
    language_model = load_file(Path(embedded_llm()) / "model.safetensors")
    dtype = default_dtype()
    for prefix, parts in (("model.vision_tower.", tower), ("model.language_model.", language_model)):
        for name, value in parts.items():
            if name.startswith("lm_head"):  # tied to the embeddings
                continue
            kept = base[prefix + name.removeprefix("model.")]
            assert torch.equal(kept, value.to(dtype)), name


def test_stage_2_moved_on_from_stage_1(quickstart: Quickstart) -> None:
    first, second = (
        load_file(quickstart.folder / stage / "adapter_model.safetensors") for stage in ("stage1", "stage2")
    )
    assert set(first) == set(second)
    assert [name for name in first if torch.equal(first[name], second[name])] == []
    for name, value in first.items():
        change = (second[name].float() - value.float()).norm() / value.float().norm()
        assert change < (1 if "lora_A" in name or "projector" in name else 10), name


def test_a_second_call_reuses_everything(quickstart: Quickstart) -> None:
    assert quickstart.second.stdout == quickstart.first.stdout
    assert {name for name, digest in quickstart.files.items() if quickstart.files_after.get(name) != digest} <= {
        "results.json"  # says when it was scored
    }
    assert set(quickstart.files) == set(quickstart.files_after)
    assert quickstart.second.seconds < max(45, quickstart.first.seconds / 3)


def test_it_needs_no_network_and_little_memory(quickstart: Quickstart) -> None:
    assert quickstart.connections == ""
    assert quickstart.first.peak_bytes < MEMORY_LIMIT_BYTES


def test_base_and_adapters_load_with_the_package_and_without_it(
    quickstart: Quickstart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = quickstart.folder.parent
    monkeypatch.chdir(place)
    arguments = ("run", "run/data/images/test-000000.png", QUESTION)
    namespace: dict[str, Any] = {}
    exec(PROBE, namespace)
    with_package = namespace["probe"](*arguments)
    clean = command(place, sys.executable, "-c", CLEAN, *arguments, HF_MODULES_CACHE=str(tmp_path / "modules"))
    without = json.loads(clean.stdout.splitlines()[-1])
    for name in ("base", "stage1", "stage2"):
        assert with_package[name]["classes"] == ["PeFoMedForConditionalGeneration", "PeFoMedModel"]
        assert without[name]["classes"] == with_package[name]["classes"]
        for key in ("logits", "image_tokens"):
            assert without[name][key] == pytest.approx(with_package[name][key], abs=1e-4), (name, key)
        assert with_package[name]["apart"] < 1e-3  # AutoModel carries LoRA and projector as well
        assert without[name]["apart"] < 1e-3
    for before, after in (("base", "stage1"), ("stage1", "stage2")):
        for key in ("logits", "image_tokens"):
            assert with_package[before][key] != pytest.approx(with_package[after][key], abs=1e-4), (before, key)


def test_ask_answers_as_the_model_does(quickstart: Quickstart, monkeypatch: pytest.MonkeyPatch) -> None:
    place = quickstart.folder.parent
    monkeypatch.chdir(place)
    pefomed, image = str(Path(sys.executable).with_name("pefomed")), "run/data/images/test-000000.png"
    asked = command(place, pefomed, "ask", image, QUESTION, "--model=run/stage2")
    request = Request("", "vqa", QUESTION, (Image.open(image).convert("RGB"),))
    [(_, answer)] = generate_answers(*load_model("run/stage2"), [request])
    assert asked.stdout == answer + "\n"
    assert "Traceback" not in asked.stderr


def test_adapters_load_from_any_folder(
    quickstart: Quickstart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, _ = load_model(quickstart.folder / "stage2")
    assert any("lora_A" in name for name, _ in model.named_parameters())

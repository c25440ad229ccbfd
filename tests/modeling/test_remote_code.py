# SPDX-License-Identifier: Apache-2.0
"""Saved folders in a process that cannot import this project: their own code serves base, adapter and pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

from .tiny import ask, encode

QUESTION = "Is there a mass?"
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}

# Runs in a folder of its own, with every way to this project's packages blocked.
SCRIPT = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_pefomed", "pefomed_recipes", "pefomed_hub", "pefomed_demo"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocked())
sys.stdin = open("/dev/null")
import torch
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline
)

base, adapter, copy = "base", "adapter", "copy"
greedy = json.loads(sys.argv[1])
found = {"refused": {}, "classes": {}, "logits": {}, "tokens": {}}
autos = (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoImageProcessor, AutoProcessor)
for auto in autos:
    for trust in (None, False):
        try:
            auto.from_pretrained(base, trust_remote_code=trust)
            found["refused"][f"{auto.__name__} {trust}"] = "not refused"
        except Exception as error:
            found["refused"][f"{auto.__name__} {trust}"] = f"{type(error).__name__}: {error}"

def look(folder, name):
    loaded = {auto.__name__: auto.from_pretrained(folder, trust_remote_code=True) for auto in autos}
    found["classes"][name] = {auto: type(part).__module__.partition(".")[0] + "." + type(part).__name__
                              for auto, part in loaded.items()}
    return loaded["AutoModelForImageTextToText"], loaded["AutoModel"], loaded["AutoProcessor"]

def run(name, model, headless, processor):
    content = [{"type": "image", "image": Image.open("image.png")}, {"type": "text", "text": "Is there a mass?"}]
    chat = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(chat, task="vqa", tokenize=True, return_dict=True, return_tensors="pt")
    logits = model(**inputs).logits
    torch.save({"logits": logits.detach(), "hidden": headless(**inputs).last_hidden_state.detach()}, f"{name}.pt")
    answer = model.generate(**inputs, **greedy)[:, inputs["input_ids"].shape[1]:]
    found["tokens"][name] = answer[0].tolist()
    chat[0]["content"][1]["text"] = "[vqa] Is there a mass?"
    return chat

model, headless, processor = look(base, "base")
chat = run("base", model, headless, processor)
model.save_pretrained(copy)
processor.save_pretrained(copy)
run("copy", *look(copy, "copy"))

adapted = AutoModelForImageTextToText.from_pretrained(adapter, trust_remote_code=True)
adapted_headless = AutoModel.from_pretrained(adapter, trust_remote_code=True)
run("adapter", adapted, adapted_headless, processor)

ask = pipeline("image-text-to-text", model=base, trust_remote_code=True, device="cpu")
found["pipeline"] = ask(text=chat, generate_kwargs=greedy, return_full_text=False)[0]["generated_text"]
found["imported"] = [name for name in sys.modules if name.startswith(("modeling_pefomed", "pefomed"))]
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the clean process runs."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.mark.integration
def test_folders_serve_themselves_where_the_package_is_missing(
    run_python: Callable[..., CompletedProcess[str]],
    folder: Path,
    base_folder: Path,
    adapter_folder: Path,
    processor: PeFoMedProcessor,
    images: list[Image.Image],
) -> None:
    images[0].save(folder / "image.png")
    (folder / "base").symlink_to(base_folder)
    (folder / "adapter").symlink_to(adapter_folder)
    result = run_python(
        "-c", SCRIPT, json.dumps(GREEDY), cwd=folder, env={"HF_MODULES_CACHE": str(folder / "modules")}
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.partition("FOUND")[2])

    assert found["imported"] == []
    assert len(found["refused"]) == 10
    for attempt, error in found["refused"].items():
        assert error.startswith("ValueError"), f"{attempt}: {error}"
        assert "trust_remote_code=True" in error, f"{attempt}: {error}"

    expected_classes = {
        "AutoConfig": "transformers_modules.PeFoMedConfig",
        "AutoModel": "transformers_modules.PeFoMedModel",
        "AutoModelForImageTextToText": "transformers_modules.PeFoMedForConditionalGeneration",
        "AutoImageProcessor": "transformers_modules.PeFoMedImageProcessor",
        "AutoProcessor": "transformers_modules.PeFoMedProcessor",
    }
    assert found["classes"] == {"base": expected_classes, "copy": expected_classes}

    inputs = encode(processor, ask(QUESTION, images[0]))
    for name, source in (("base", base_folder), ("copy", base_folder), ("adapter", adapter_folder)):
        here: Any = AutoModelForImageTextToText.from_pretrained(source)
        assert isinstance(here, PeFoMedForConditionalGeneration)
        there = torch.load(folder / f"{name}.pt")
        torch.testing.assert_close(there["logits"], here(**inputs).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(there["hidden"], here.model(**inputs).last_hidden_state, rtol=1e-4, atol=1e-4)
        answer = here.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :].tolist()
        assert found["tokens"][name] == answer
        if name == "base":
            assert found["pipeline"] == processor.tokenizer.decode(answer, skip_special_tokens=True)
    assert found["tokens"]["adapter"] != found["tokens"]["base"]

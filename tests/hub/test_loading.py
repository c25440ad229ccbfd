# SPDX-License-Identifier: Apache-2.0
"""The code on the card loads what was staged, in a Python without this package and in one with it, without a network.

Base and adapter lie in a cache of the Hub's client, as they do where both were loaded once with a network. The
examples run as the card prints them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_pefomed import PeFoMedForConditionalGeneration
from pefomed_hub.reloading import fill_cache, logits_here, prompt_images
from pefomed_recipes.inference.loading import load_processor
from pefomed_recipes.models.adapter_folders import load_adapter

pytestmark = pytest.mark.integration

ADAPTER_COMMIT, BASE_COMMIT = "a" * 40, "b" * 40
BLOCK = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_pefomed", "pefomed_recipes", "pefomed_hub", "pefomed_demo"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, NotInstalled())
"""
KEEP = """
import torch
from PIL import Image
from safetensors.torch import save_file

def keep(name):
    content = [{"type": "image", "image": Image.open("image.png")},
               {"type": "text", "text": "Is there a mass in the left lung?"}]
    asked = processor.apply_chat_template([{"role": "user", "content": content}], task="vqa", tokenize=True,
                                          return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        save_file({"logits": model.eval()(**asked).logits.float().contiguous()}, f"{name}.safetensors")
    print(name, type(model).__module__.partition(".")[0])
"""


@pytest.fixture
def cached(hub_base: Path, exported: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who fetched both repositories once and has no network any more."""
    fill_cache(tmp_path / "hub", "ada/lung-base", hub_base, BASE_COMMIT)
    fill_cache(tmp_path / "hub", "ada/lung-adapter", exported, ADAPTER_COMMIT)
    # That an adapter's repository has no config.json is remembered, too.
    absent = tmp_path / "hub" / "models--ada--lung-adapter" / ".no_exist" / ADAPTER_COMMIT / "config.json"
    absent.parent.mkdir(parents=True)
    absent.touch()
    prompt_images()[0].save(tmp_path / "image.png")
    return {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture
def examples(exported: Path) -> list[str]:
    """The Python of the card: transformers alone, with the package, PEFT, a question, pinned."""
    found = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(found) == 5
    return found


@pytest.fixture(scope="module")
def expected(hub_base: Path, trained: Path) -> torch.Tensor:
    """The trained adapter's logits in this process."""
    base = PeFoMedForConditionalGeneration.from_pretrained(hub_base)
    return logits_here(load_adapter(base, trained, trainable=False), load_processor(trained))[0]


def test_the_examples_without_the_package_run_offline_and_give_the_trained_logits(
    run_python: Callable[..., CompletedProcess[str]],
    cached: dict[str, str],
    examples: list[str],
    expected: torch.Tensor,
    tmp_path: Path,
) -> None:
    alone, _, _, question, pinned = examples
    pinned = pinned.replace('"COMMIT"', f'"{ADAPTER_COMMIT}"').replace("COMMIT_OF_THE_BASE", BASE_COMMIT)
    code = f"{BLOCK}{KEEP}\n{alone}\nkeep('alone')\n{question}\n{pinned}\nkeep('pinned')"
    result = run_python("-I", "-c", code, env=cached)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^alone transformers_modules$", result.stdout, flags=re.MULTILINE)
    assert re.search(r"^pinned transformers_modules$", result.stdout, flags=re.MULTILINE)
    for name in ("alone", "pinned"):
        found = load_file(tmp_path / f"{name}.safetensors")["logits"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_examples_with_the_package_use_no_remote_code(
    run_python: Callable[..., CompletedProcess[str]],
    cached: dict[str, str],
    examples: list[str],
    expected: torch.Tensor,
    tmp_path: Path,
) -> None:
    _, package, onto_base, _, _ = examples
    code = f"{KEEP}\n{package}\nkeep('package')\n{onto_base}\nkeep('peft')"
    result = run_python("-c", code, env=cached)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^package modeling_pefomed$", result.stdout, flags=re.MULTILINE)
    assert re.search(r"^peft peft$", result.stdout, flags=re.MULTILINE)
    assert not list((tmp_path / "modules").rglob("*_pefomed.py"))
    for name in ("package", "peft"):
        found = load_file(tmp_path / f"{name}.safetensors")["logits"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_package_keeps_to_the_commit_of_the_base_that_the_adapter_names(
    run_python: Callable[..., CompletedProcess[str]],
    cached: dict[str, str],
    exported: Path,
    hub_base: Path,
    expected: torch.Tensor,
    tmp_path: Path,
) -> None:
    """Since then somebody has published another base there."""
    repo = tmp_path / "hub" / "models--ada--lung-base"
    later = repo / "snapshots" / ("c" * 40)
    later.mkdir()
    for file in hub_base.iterdir():
        if file.is_file() and file.name != "model.safetensors":
            (later / file.name).symlink_to(file.resolve())
    other = {name: tensor * 1.5 for name, tensor in load_file(hub_base / "model.safetensors").items()}
    save_file(other, later / "model.safetensors", {"format": "pt"})
    (repo / "refs" / "main").write_text("c" * 40, encoding="ascii")
    adapter = tmp_path / "adapter"
    shutil.copytree(exported, adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    load = "from pefomed_recipes.inference.loading import load_model; model, processor = load_model('adapter')"
    for revision, fits in ((BASE_COMMIT, True), (None, False)):
        (adapter / "adapter_config.json").write_text(json.dumps(settings | {"revision": revision}), encoding="utf-8")
        result = run_python("-c", f"{KEEP}\n{load}\nkeep('found')", env=cached)
        assert (result.returncode == 0) == fits, result.stderr
    found = load_file(tmp_path / "found.safetensors")["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

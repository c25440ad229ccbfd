# SPDX-License-Identifier: Apache-2.0
"""Base and adapter go to the Hub and come back to strangers: same logits, same answer, offline, and in an archive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_hub.manifest import Base, Manifest, list_files, write_manifest
from pefomed_recipes.inference.generate import Request, generate_answers, load_model
from pefomed_recipes.models.bases import base_fingerprint, write_fingerprint
from pefomed_recipes.training.adapters import add_adapter

from ..loopback_hub import LoopbackHub
from ..modeling.tiny import ask, draw_image, encode, save_tiny_base
from .loopback import CARD, REPO, environment_of, pefomed_of

pytestmark = pytest.mark.integration

BASE = "ada/base"
QUESTION = "Is there a mass in the left lung?"
# As a stranger loads it, three ways; the last two words are the base's and the adapter's commit.
LOAD = """
import json, sys, torch
from PIL import Image
packaged = sys.argv[1] == "package"
if packaged:
    import modeling_pefomed
else:
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("modeling_pefomed", "pefomed_recipes", "pefomed_hub", "pefomed_demo"):
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Blocked())
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
image, question, base, adapter = Image.open(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
trust = {} if packaged else {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(adapter, **trust)
content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
inputs = processor.apply_chat_template([{"role": "user", "content": content}], task="vqa", tokenize=True,
                                       return_dict=True, return_tensors="pt")
told = {}
with torch.inference_mode():
    whole = AutoModelForImageTextToText.from_pretrained(adapter, dtype=torch.float32, **trust).eval()
    told["adapter"] = whole(**inputs).logits[0, -1].tolist()
    loaded = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32, **trust).eval()
    told["base"] = loaded(**inputs).logits[0, -1].tolist()
    told["peft"] = PeftModel.from_pretrained(loaded, adapter).eval()(**inputs).logits[0, -1].tolist()
print(json.dumps(told))
"""


@dataclass
class Made:
    """What was published, and what it computes here."""

    base: Path
    adapter: Path
    image: Path
    logits: dict[str, torch.Tensor]
    answer: str


def seal(folder: Path, kind: str, base: Base | None = None) -> None:
    """Write the manifest of what the folder holds."""
    (folder / "pefomed_manifest.json").unlink(missing_ok=True)
    manifest = Manifest(
        repo=REPO if kind == "adapter" else BASE,
        kind=kind,
        base=base,
        dtype="float32",
        template="paper",
        licence="apache-2.0",
        credentialed=False,
        runs=[],
        seconds=0.0,
        incomplete_history=False,
        code_commit=None,
        packages={},
        files=list_files(folder),
    )
    write_manifest(folder, manifest)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A base and an adapter of it whose every weight is moved away from its start."""
    root = tmp_path_factory.mktemp("made")
    base = save_tiny_base(root / "base")
    (base / "README.md").write_text(CARD)
    seal(base, "base")
    model = PeFoMedForConditionalGeneration.from_pretrained(base).eval()
    processor = PeFoMedProcessor.from_pretrained(base)
    image = root / "image.png"
    picture = draw_image(3)
    picture.save(image)
    inputs = encode(processor, ask(QUESTION, picture))
    fingerprint = base_fingerprint(model)
    with torch.inference_mode():
        logits = {"base": model(**inputs).logits[0, -1]}
    adapted = add_adapter(model, r=4, alpha=8, dropout=0.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    with torch.inference_mode():
        logits["adapter"] = logits["peft"] = adapted.eval()(**inputs).logits[0, -1]
    adapter = root / "adapter"
    adapted.save_pretrained(adapter)
    processor.save_pretrained(adapter)
    loaded = load_model(adapter, dtype=torch.float32)
    [(_, answer)] = generate_answers(*loaded, [Request("", "vqa", QUESTION, (picture,))])
    write_fingerprint(adapter, fingerprint)
    (adapter / "README.md").write_text(CARD)
    return Made(base, adapter, image, logits, answer)


def name_base(folder: Path, revision: str) -> None:
    """Make the adapter name its base as the Hub has it."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": BASE, "revision": revision}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    seal(folder, "adapter", Base(BASE, revision, {}))


def load(how: str, made: Made, environment: dict[str, str]) -> dict[str, torch.Tensor]:
    """What a stranger's Python computes, with or without our package."""
    command = [sys.executable, "-c", LOAD, how, str(made.image), QUESTION, BASE, REPO]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return {name: torch.tensor(values) for name, values in json.loads(process.stdout).items()}


@pytest.mark.parametrize("xet", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["lfs", "xet"])
def test_what_is_published_comes_back_the_same(hub: LoopbackHub, tmp_path: Path, made: Made, xet: bool) -> None:
    pefomed = pefomed_of(hub, tmp_path)
    environment = environment_of(hub, tmp_path, xet=xet)
    process = pefomed("publish", made.base, "--repo", BASE, "--yes", xet=xet)
    assert process.returncode == 0, process.stderr
    commit = process.stdout.split("/")[-1].strip()
    folder = Path(shutil.copytree(made.adapter, tmp_path / "adapter"))
    name_base(folder, commit)
    process = pefomed("publish", folder, "--repo", REPO, "--tag", "v1", "--yes", xet=xet)
    assert process.returncode == 0, process.stderr

    hub.fault("GET /content/", "truncate")  # resumed by the client; with Xet nothing comes from there
    process = pefomed("verify", REPO, "--revision", "v1", xet=xet)
    assert process.returncode == 0, process.stderr
    assert f"base: {BASE} at {commit}" in process.stdout
    assert "none missing, none unused" in process.stdout

    for how in ("package", "stranger") if xet else ("stranger",):
        found = load(how, made, environment)
        for name, expected in made.logits.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)
    assert hub.leaks() == []
    process = pefomed("ask", made.image, QUESTION, "--model", REPO, HF_HUB_OFFLINE="1")
    assert process.stdout.strip() == made.answer, process.stderr

    # fetched once, it is there without the Hub
    down = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    head = hub.store.repositories["model", REPO].branches["main"]
    for revision, settings, said in (
        ("v1", {"HF_HUB_OFFLINE": "1"}, "the Hub was not asked"),
        (head, down, "from the cache: the Hub does not answer"),
        ("v1", down, "HF_HUB_OFFLINE=1 takes it from the cache"),
    ):
        process = pefomed("verify", REPO, "--revision", revision, xet=xet, **settings)
        assert said in process.stdout + process.stderr


def test_damaged_bytes_are_fetched_again_or_refused(hub: LoopbackHub, tmp_path: Path, made: Made) -> None:
    pefomed = pefomed_of(hub, tmp_path)
    assert pefomed("publish", made.base, "--repo", BASE, "--yes").returncode == 0
    hub.fault("GET /content/", "corrupt")
    process = pefomed("verify", BASE)
    assert process.returncode == 0, process.stderr
    assert "came damaged; fetching it again" in process.stderr
    shutil.rmtree(tmp_path / "hub" / "models--ada--base", ignore_errors=True)
    hub.fault("GET /content/", "corrupt", times=99)
    process = pefomed("verify", BASE, HF_HOME=str(tmp_path / "other"))
    assert process.returncode == 1
    assert "comes with another hash than the Hub says" in process.stderr


def test_a_private_or_gated_model_is_explained_to_others(hub: LoopbackHub, tmp_path: Path, made: Made) -> None:
    from ..loopback_hub.server import OTHER

    pefomed = pefomed_of(hub, tmp_path)
    assert pefomed("publish", made.base, "--repo", BASE, "--yes").returncode == 0
    process = pefomed("verify", BASE, token=OTHER)
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: cannot fetch {BASE}: it does not exist, or you may not see it")
    assert pefomed("publish", made.base, "--repo", BASE, "--public", "--gated", "manual", "--yes").returncode == 0
    process = pefomed("verify", BASE, token=OTHER)
    assert process.returncode == 1
    assert "it is gated and you have not been let in" in process.stderr
    process = pefomed("verify", BASE, "--revision", "v9")
    assert process.returncode == 1
    assert "there is no such revision" in process.stderr


@pytest.mark.slow
def test_an_archive_is_all_that_a_house_without_network_needs(tmp_path: Path, made: Made, repo: Path) -> None:
    wheels = tmp_path / "wheels"
    source = tmp_path / "source"
    for room in ("modeling_pefomed", "demo", "hub", "recipes"):
        shutil.copytree(repo / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo / file, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels)]
    subprocess.run(build, cwd=source, capture_output=True, check=True)
    folder = Path(shutil.copytree(made.adapter, tmp_path / "adapter"))
    name_base(folder, "b" * 40)
    pefomed = pefomed_of(None, tmp_path)
    process = pefomed(
        "bundle", folder, "--out", "all.tar", "--base", made.base, "--wheels", wheels, HF_HUB_OFFLINE="1"
    )
    assert process.returncode == 0, process.stderr
    with tarfile.open(tmp_path / "all.tar") as archive:
        archive.extractall(tmp_path / "house", filter="data")
    house = tmp_path / "house" / "pefomed-bundle"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=house, check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", "wheels", "--no-deps"]
    subprocess.run([*install, "--target", str(tmp_path / "site"), "pefomed"], cwd=house, check=True)
    paths = os.pathsep.join([str(tmp_path / "site"), os.environ["PYTHONPATH"]])
    inside = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(house / "hub"), "PYTHONPATH": paths}
    text = (house / "INSTALL.md").read_text()
    assert f"pefomed verify {REPO}" in text and f"--model {REPO}" in text
    process = pefomed("verify", REPO, **inside)
    assert process.returncode == 0, process.stderr
    process = pefomed("ask", made.image, QUESTION, "--model", REPO, **inside)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == made.answer

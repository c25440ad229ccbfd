# SPDX-License-Identifier: Apache-2.0
"""What must not be published is found, wherever it stands, and is not repeated; what may is let through."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

from pefomed_hub.scan import scan_folder

from .loopback import write_adapter

# Each is put together here, so that no scanner takes this file for the real thing.
SECRETS = {
    "Hugging Face": "hf_" + "aB3" * 12,
    "OpenAI": "sk-" + "proj-" + "a1B2" * 10,
    "GitHub": "ghp_" + "a1B2c3" * 6,
    "AWS": "AKIA" + "ABCD2345" * 2,
    "key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "password": "https://ada:" + "secret@example.org/x",
}
PLACES = [
    "/home/ada/data",
    "/mnt/nas1/mimic",
    r"C:\Users\ada\scans",
    "file:///x",
    "ada@gpu7:/scratch",
    "see /data/x.png",
]
PATIENTS = ["DOE^JANE", "Doe^Jane", "PatientName: Jane", '"PatientID": "123"', "Patient's Name = X"]
HARMLESS = [
    "https://huggingface.co/data/x/home/y",
    "import modeling_pefomed; a/b, n/a, 3^2, x^y and e^-1",
    "write to ada@example.org",
    "patients were asked; the patient is a phantom",
    "task-specific-low-rank-adaptation-of-models",
    "./results/x.json and ../base",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def add(folder: Path, text: str, name: str = "README.md") -> None:
    path = folder / name
    path.write_text(path.read_text(encoding="utf-8") + f"a line\n{text}\n" if path.exists() else f"{text}\n")


def test_a_folder_as_export_writes_it_is_clean(folder: Path) -> None:
    assert scan_folder(folder) == []


@pytest.mark.parametrize("planted", [*SECRETS.values(), *PLACES, *PATIENTS])
def test_what_is_planted_is_found_with_its_line_and_not_repeated(folder: Path, planted: str) -> None:
    add(folder, planted)
    found = scan_folder(folder)
    assert found and all(line.startswith("README.md:8: ") for line in found)
    assert planted not in "".join(found)


@pytest.mark.parametrize(
    "planted", [SECRETS["Hugging Face"], "/home/ada/data", "DOE^JANE"], ids=["token", "path", "name"]
)
def test_escapes_of_json_hide_nothing(folder: Path, planted: str) -> None:
    hidden = "".join(f"\\u{ord(letter):04x}" for letter in planted)
    (folder / "results.json").write_text(f'{{"note": "{hidden}"}}')
    assert [line.split(":")[0] for line in scan_folder(folder)] == ["results.json"]
    (folder / "results.json").write_text(json.dumps({"note": planted}).replace("/", "\\/"))
    assert scan_folder(folder) != []


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_passes(folder: Path, text: str) -> None:
    add(folder, text)
    assert scan_folder(folder) == []


def test_the_code_that_travels_passes(folder: Path, repo: Path) -> None:
    code = repo / "modeling_pefomed"
    for name in ("configuration", "image_processing", "modeling", "processing"):
        shutil.copy(code / f"{name}_pefomed.py", folder)
    shutil.copy(code / "chat_template.jinja", folder)
    assert scan_folder(folder) == []


@pytest.mark.parametrize(
    "planted",
    [SECRETS["Hugging Face"], "/home/ada/data", "DOE^JANE", "\\u0044OE^JANE", "MRN-00417"],
    ids=["token", "path", "name", "escaped", "forbidden"],
)
def test_a_tokenizer_hides_nothing_and_its_words_alarm_nobody(folder: Path, tmp_path: Path, planted: str) -> None:
    words = tmp_path / "words.txt"
    words.write_text("lee\nMRN-00417\n")
    vocabulary = '{"model": {"vocab": {"lee": 1, "\\u0120lee": 2, "^^": 3, "x": 4}}}'
    (folder / "tokenizer.json").write_text(vocabulary)
    assert scan_folder(folder, forbidden=words) == []
    (folder / "tokenizer.json").write_text(vocabulary.replace("x", planted))
    assert [line.split(":")[0] for line in scan_folder(folder, forbidden=words)] == ["tokenizer.json"]


@pytest.mark.parametrize("how", ["tEXt", "zTXt", "iTXt", "eXIf", "behind", "cut", "none"])
def test_a_picture_is_its_pixels_and_nothing_else(tmp_path: Path, how: str) -> None:
    place = tmp_path / "examples" / "a.png"
    place.parent.mkdir()
    Image.new("RGB", (8, 8)).save(place)
    assert scan_folder(tmp_path, "space") == []
    info, exif = PngImagePlugin.PngInfo(), Image.Exif()
    exif[0x013B] = "DOE^JANE"
    if how == "iTXt":
        info.add_itxt("Comment", "DOE^JANE", zip=True)
    else:
        info.add_text("Comment", "DOE^JANE", zip=how == "zTXt")
    if how in ("tEXt", "zTXt", "iTXt"):
        Image.new("RGB", (8, 8)).save(place, pnginfo=info)
    elif how == "eXIf":
        Image.new("RGB", (8, 8)).save(place, exif=exif)
    else:
        pixels = place.read_bytes()
        place.write_bytes({"behind": pixels + b"DOE^JANE", "cut": pixels[:-20], "none": b"DOE^JANE"}[how])
    (found,) = scan_folder(tmp_path, "space")
    assert found.startswith("examples/a.png: ") and "DOE" not in found
    assert how in found or how in ("behind", "cut", "none")


def test_the_metadata_of_weights_are_looked_through(folder: Path) -> None:
    weights = {"a": np.zeros(4, np.float32)}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"from": "/home/ada/runs/1"})
    assert scan_folder(folder) == ["adapter_model.safetensors:1: a folder of a machine"]


@pytest.mark.parametrize("cut", [4, 100, -1])
def test_cut_weights_are_refused(folder: Path, cut: int) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    (found,) = scan_folder(folder)
    assert found.startswith("adapter_model.safetensors: cannot be read")


def test_forbidden_words_are_found_as_words_in_any_letter_case(folder: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("MRN-00417\n\nJane Roe\nLee\n")
    add(folder, "asleep, but no name")
    assert scan_folder(folder, forbidden=words) == []
    add(folder, "of jane roe")
    assert scan_folder(folder, forbidden=words) == ["README.md:10: line 3 of the forbidden words"]


def test_the_users_own_token_and_home_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-unusual-token")
    monkeypatch.setattr(Path, "home", lambda: Path("/odd/place/of/ada"))
    add(folder, "an-unusual-token")
    assert scan_folder(folder) == ["README.md:8: your token"]
    add(folder, "in /odd/place/of/ada/x")
    assert scan_folder(folder)[-1] == "README.md:10: your home folder"


REFUSED: dict[str, Callable[[Path], object]] = {
    "training_args.bin": lambda path: path.write_bytes(b"x"),
    "optimizer.pt": lambda path: path.write_bytes(b"x"),
    "weights.pth": lambda path: path.write_bytes(b"x"),
    "config.json": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "trainer_state.json": lambda path: path.write_text("{}"),
    "run.json": lambda path: path.write_text("{}"),
    "predictions.json": lambda path: path.write_text("{}"),
    "rows.jsonl": lambda path: path.write_text("{}"),
    "rows.csv": lambda path: path.write_text("a,b"),
    "case.dcm": lambda path: path.write_bytes(b"x"),
    "case.png": lambda path: path.write_bytes(b"x"),
    ".env": lambda path: path.write_text("A=1"),
    "sub/modeling_pefomed.sh": lambda path: path.write_text("x"),
    "adapter_model.safetensors.tmpAbCd": lambda path: path.write_bytes(b"x"),
    "results.json": lambda path: path.write_text('{"half": "\\'),
    "notes.md": lambda path: path.write_bytes(b"a\0b"),
    "linked.json": lambda path: path.symlink_to("/etc/hostname"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_needed_does_not_travel(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    REFUSED[name](folder / name)
    (found,) = scan_folder(folder)
    assert found.startswith(name)


@pytest.mark.parametrize("type_", ["dataset", "space"])
def test_weights_belong_to_models_only(folder: Path, type_: str) -> None:
    assert any(line.startswith("adapter_model.safetensors") for line in scan_folder(folder, type_))

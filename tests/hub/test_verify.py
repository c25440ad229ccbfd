# SPDX-License-Identifier: Apache-2.0
"""`pefomed verify` finds what is changed, damaged, missing, unused or on another base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_pefomed import PeFoMedForConditionalGeneration
from pefomed_hub.manifest import Base, Manifest, list_files, write_manifest
from pefomed_hub.verify import verify
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.models.bases import base_fingerprint, write_fingerprint
from pefomed_recipes.training.adapters import add_adapter

from ..modeling.tiny import build_config, build_model, build_processor, save_tiny_base, text_config

pytestmark = pytest.mark.integration

WEIGHTS = "adapter_model.safetensors"


def seal(folder: Path, base: Path | str, kind: str = "adapter", revision: str | None = None) -> None:
    """Write the manifest of what the folder holds."""
    (folder / "pefomed_manifest.json").unlink(missing_ok=True)
    manifest = Manifest(
        repo="ada/lung-adapter",
        kind=kind,
        base=Base(str(base), revision, {}) if kind == "adapter" else None,
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
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model folder."""
    return save_tiny_base(tmp_path_factory.mktemp("verify") / "base")


@pytest.fixture(scope="module")
def made(base: Path) -> Path:
    """An adapter of the base. Read only."""
    folder = base.with_name("adapter")
    model = PeFoMedForConditionalGeneration.from_pretrained(base)
    fingerprint = base_fingerprint(model)
    add_adapter(model, r=4, alpha=8, dropout=0.0).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    write_fingerprint(folder, fingerprint)
    seal(folder, base)
    return folder


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    """A copy of the adapter."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_a_whole_adapter_is_told_what_was_checked(adapter: Path, base: Path) -> None:
    told = verify(str(adapter), base=str(base))
    assert [line.split(":")[0] for line in told] == ["files", "base", "base's weights", "tensors"]
    tensors = load_file(adapter / WEIGHTS)
    assert told[-1] == f"tensors: {len(tensors)}, none missing, none unused"


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    f"{WEIGHTS} (changed)": flip_a_byte,
    f"{WEIGHTS} (missing)": lambda folder: (folder / WEIGHTS).unlink(),
    "evil.py (not listed)": lambda folder: (folder / "evil.py").touch(),
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_folder_that_is_not_what_its_manifest_says_is_refused(adapter: Path, said: str) -> None:
    CHANGES[said](adapter)
    with pytest.raises(PeFoMedError, match="not what its manifest says") as error:
        verify(str(adapter))
    assert said in str(error.value)


def test_missing_unused_and_misshapen_tensors_are_named(adapter: Path, base: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    names = sorted(tensors)
    tensors.pop(names[0])
    tensors[names[1]] = torch.zeros(3)
    tensors["surplus.weight"] = torch.zeros(1)
    save_file(tensors, adapter / WEIGHTS)
    seal(adapter, base)
    with pytest.raises(PeFoMedError) as error:
        verify(str(adapter))
    for said in (
        f"1 missing, such as {names[0]}",
        "1 unused, such as surplus.weight",
        f"1 of another shape, such as {names[1]}",
    ):
        assert said in str(error.value)


def test_a_base_with_other_weights_is_refused_by_its_parts(adapter: Path, tmp_path: Path) -> None:
    build_model(build_processor(), seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(PeFoMedError, match="with other weights in: .*language_model"):
        verify(str(adapter), base=str(tmp_path / "other"))


def test_a_base_of_other_sizes_is_refused(adapter: Path, tmp_path: Path) -> None:
    processor = build_processor()
    config = build_config(processor, text=text_config(processor, hidden_size=64, num_attention_heads=4))
    build_model(processor, config).save_pretrained(tmp_path / "wider")
    (adapter / "base_fingerprint.json").unlink()
    seal(adapter, tmp_path / "wider")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(tmp_path / "wider")})
    )
    seal(adapter, tmp_path / "wider")
    with pytest.raises(PeFoMedError, match="of another shape"):
        verify(str(adapter))


@pytest.mark.parametrize(
    "change", [{"base_model_name_or_path": "ada/other"}, {"revision": "a" * 40}], ids=["id", "commit"]
)
def test_settings_that_name_another_base_than_the_manifest_are_refused(
    adapter: Path, base: Path, change: dict[str, str]
) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | change))
    seal(adapter, base)
    with pytest.raises(PeFoMedError, match="it names the base"):
        verify(str(adapter))


def test_a_missing_base_is_one_sentence(adapter: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "ada/base"}))
    seal(adapter, "ada/base")
    with pytest.raises(PeFoMedError, match="cannot read the base model's configuration from ada/base") as error:
        verify(str(adapter))
    assert "\n" not in str(error.value)


def test_whole_models_are_checked_by_themselves(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    seal(folder, "", kind="base")
    assert verify(str(folder))[-1].startswith("tensors: ")
    with pytest.raises(PeFoMedError, match="leave out --base"):
        verify(str(folder), base=str(base))
    weights = load_file(folder / "model.safetensors")
    first = sorted(weights)[0]
    weights["surplus"] = weights.pop(first)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    seal(folder, "", kind="base")
    with pytest.raises(PeFoMedError) as error:
        verify(str(folder))
    assert f"1 missing, such as {first}" in str(error.value) and "1 unused, such as surplus" in str(error.value)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeFoMedError, match="no pefomed_manifest.json there"):
        verify(str(tmp_path))

# SPDX-License-Identifier: Apache-2.0
"""What is staged for the Hub holds what it must and nothing else, and answers as what it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_pefomed import PeFoMedForConditionalGeneration
from pefomed_hub.export import export
from pefomed_hub.manifest import changed_files, list_files, read_manifest
from pefomed_hub.reloading import compare
from pefomed_hub.sources import training_history
from pefomed_recipes.errors import ConfigError, PeFoMedError

from .evidence import write_evidence

pytestmark = pytest.mark.integration

REPO, BASE_ID = "ada/lung-adapter", "ada/lung-base"
WEIGHTS = "adapter_model.safetensors"
CODE = {f"{kind}_pefomed.py" for kind in ("configuration", "image_processing", "modeling", "processing")}
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
EVIDENCE = {"results.json", "results.md"}
ADAPTER = {"adapter_config.json", WEIGHTS, "base_fingerprint.json"}
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
ALWAYS = {"README.md", "pefomed_manifest.json"}


def names(folder: Path) -> set[str]:
    """The files of a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def texts(folder: Path) -> str:
    """All that can be read in a folder."""
    return "\n".join(p.read_text(encoding="utf-8") for p in folder.iterdir() if p.suffix != ".safetensors")


def test_an_adapter_travels_with_all_that_loads_it_and_nothing_else(trained: Path, exported: Path) -> None:
    assert names(exported) == ADAPTER | PROCESSOR | CODE | EVIDENCE | ALWAYS
    assert (trained / "optimizer.pt").is_file() and (trained / "training_args.bin").is_file()
    assert (exported / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    settings = json.loads((exported / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == BASE_ID
    for secret in (str(trained), str(trained.parent), trained.parent.name, "data_root", "output_dir"):
        assert secret not in texts(exported), secret


def test_the_manifest_says_what_it_is_made_of_and_how_it_was_checked(trained: Path, exported: Path) -> None:
    manifest = read_manifest(exported)
    assert changed_files(exported, manifest) == {} and manifest.files.keys() == names(exported) - {
        "pefomed_manifest.json"
    }
    assert manifest.adapter == list_files(trained)[WEIGHTS].sha256
    assert manifest.base is not None and manifest.base.id == BASE_ID and "vision_tower" in manifest.base.fingerprint
    assert [run.name for run in manifest.runs] == ["stage1", "stage2"] and not manifest.incomplete_history
    assert manifest.seconds == sum(run.seconds for run in manifest.runs) and manifest.credentialed is False
    assert {run.seed for run in manifest.runs} == {42} and manifest.runs[1].data["train"]["sha256"]
    assert manifest.packages.keys() >= {"torch", "transformers", "peft"} and manifest.template == "paper"
    assert manifest.check is not None and manifest.check.largest_difference <= 1e-5
    assert manifest.check.rounding_difference == 0


@pytest.fixture
def on_bfloat16(hub_base: Path, trained: Path, tmp_path: Path) -> Path:
    """The adapter on the base in bfloat16."""
    shutil.copytree(trained, tmp_path / "stage2")
    shutil.copytree(hub_base, tmp_path / "base")
    PeFoMedForConditionalGeneration.from_pretrained(hub_base, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    settings = json.loads((trained / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "stage2" / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path / "stage2"


def test_rounding_by_a_base_in_bfloat16_is_measured(on_bfloat16: Path, export_here: Callable[..., Path]) -> None:
    folder = export_here(on_bfloat16)
    manifest = read_manifest(folder)
    assert manifest.dtype == "float32" and manifest.check is not None
    assert manifest.check.largest_difference <= 1e-5 and 1e-4 < manifest.check.rounding_difference < 0.05


def test_an_adapter_in_bfloat16_is_compared_with_its_own_rounded_numbers(
    trained: Path, export_here: Callable[..., Path]
) -> None:
    folder = export_here(trained, dtype="bfloat16")
    manifest = read_manifest(folder)
    assert manifest.dtype == "bfloat16" and manifest.adapter == list_files(trained)[WEIGHTS].sha256
    assert {tensor.dtype for tensor in load_file(folder / WEIGHTS).values()} == {torch.bfloat16}
    assert manifest.check is not None and manifest.check.largest_difference <= 1e-5
    assert 1e-4 < manifest.check.rounding_difference < 0.05
    assert "rounding to the number formats" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_merged_model_is_whole(trained: Path, export_here: Callable[..., Path]) -> None:
    folder = export_here(trained, kind="merged")
    assert names(folder) == MODEL | PROCESSOR | CODE | EVIDENCE | ALWAYS
    manifest = read_manifest(folder)
    assert manifest.kind == "merged" and manifest.base is not None and manifest.base.id == BASE_ID
    assert manifest.check is not None and manifest.check.largest_difference < 1e-4


def test_a_base_is_published_with_the_terms_of_its_parts(
    hub_base: Path, export_here: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export_here(hub_base, kind="base", base_id=None)
    assert names(folder) == MODEL | PROCESSOR | CODE | ALWAYS | {"compose.json"}
    assert "language model someone/llama: licence llama2" in capsys.readouterr().err
    manifest = read_manifest(folder)
    assert [part.licence for part in manifest.parts] == ["mit", "llama2"] and manifest.base is None
    assert "**Not measured.**" in (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / "model.safetensors").read_bytes() == (hub_base / "model.safetensors").read_bytes()


def damaged(trained: Path, folder: Path, how: str) -> Path:
    """A copy of the adapter with one thing wrong."""
    shutil.copytree(trained, folder)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS)
    if how == "NaN":
        next(iter(tensors.values()))[0] = float("nan")
        save_file(tensors, folder / WEIGHTS)
    elif how == "no weights":
        (folder / WEIGHTS).unlink()
    elif how == "cut":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])
    elif how == "virtual tokens":
        settings |= {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}
    elif how == "other base":
        fingerprint = json.loads((folder / "base_fingerprint.json").read_text(encoding="utf-8"))
        fingerprint["vision_tower"] = "0" * 64
        (folder / "base_fingerprint.json").write_text(json.dumps(fingerprint), encoding="utf-8")
    elif how == "base gone":
        settings["base_model_name_or_path"] = str(folder / "nowhere")
    elif how == "no run":
        (folder / "run.json").write_text("{}", encoding="utf-8")
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("NaN", "not finite"),
        ("no weights", "no whole adapter there"),
        ("cut", "cannot read the adapter's weights|incomplete metadata"),
        ("virtual tokens", "prompt_tuning load only with this package"),
        ("other base", "does not fit the base model"),
        ("base gone", "cannot load the base model"),
        ("no run", "no record of a finished run"),
    ],
)
def test_an_adapter_that_cannot_be_published_is_refused_and_nothing_is_written(
    trained: Path, tmp_path: Path, how: str, error: str
) -> None:
    folder = damaged(trained, tmp_path / "stage2", how)
    with pytest.raises(PeFoMedError, match=error):
        export(folder, tmp_path / "out", repo=REPO, base_id=BASE_ID, evidence=[])
    assert {path.name for path in tmp_path.iterdir()} == {"stage2"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"base_id": None}, "--base-id user/base"),
        ({"base_id": "not an id"}, "--base-id: found 'not an id'"),
        ({"base_id": "/somewhere/base"}, "--base-id"),
        ({"repo": "nameonly"}, "--repo: found 'nameonly', expected a Hub id"),
        ({"kind": "everything"}, "--kind: found 'everything'"),
        ({"dtype": "float8"}, "--dtype: found 'float8'"),
        ({"kind": "base"}, "belong to an adapter"),
        ({"kind": "base", "base_id": None, "dtype": "float16"}, "none for a base"),
    ],
)
def test_options_that_do_not_go_are_refused_before_anything_is_written(
    trained: Path, tmp_path: Path, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=error):
        export(trained, tmp_path / "out", **{"repo": REPO, "base_id": BASE_ID} | options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="not an empty folder"):
        export(trained, tmp_path, repo=REPO, base_id=BASE_ID)
    assert names(tmp_path) == {"mine.txt"}


@pytest.mark.parametrize(("kind", "error"), [("adapter", "no adapter there"), ("base", "found an adapter")])
def test_base_and_adapter_are_not_mistaken_for_each_other(
    trained: Path, hub_base: Path, tmp_path: Path, kind: str, error: str
) -> None:
    with pytest.raises(PeFoMedError, match=error):
        export(hub_base if kind == "adapter" else trained, tmp_path / "out", repo=REPO, kind=kind)


def test_scores_of_another_adapter_cannot_travel_along(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / WEIGHTS).write_bytes(b"other weights")
    results = write_evidence(other) / "results.json"
    with pytest.raises(PeFoMedError, match="it is about other@"):
        export(trained, tmp_path / "out", repo=REPO, base_id=BASE_ID, evidence=[results])


def test_other_logits_than_the_trained_adapters_are_refused() -> None:
    logits = [torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(0))]
    assert compare(logits, logits, logits).largest_difference == 0
    for others in ([logits[0] + 0.01], [logits[0] * float("nan")], [logits[0][:, :4]]):
        with pytest.raises(PeFoMedError, match="logits differ"):
            compare(others, logits, logits)
    with pytest.raises(PeFoMedError, match="rounding moves the logits"):
        compare(logits, [logits[0].clone()], [logits[0] + 1])


def test_a_run_without_its_predecessor_says_so(trained: Path, tmp_path: Path) -> None:
    record = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    record["settings"]["adapter"] = str(tmp_path / "lost")
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    runs, incomplete = training_history(tmp_path)
    assert len(runs) == 1 and incomplete
    assert training_history(tmp_path / "nothing") == ([], True)

# SPDX-License-Identifier: Apache-2.0
"""Shards: what they hold, how an interrupted preparation goes on, and how they are read, streamed and trained on."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageChops

from pefomed_recipes import cli
from pefomed_recipes.data import preparing
from pefomed_recipes.data.checks import check_dataset
from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.image_facts import file_of
from pefomed_recipes.data.images import load_image
from pefomed_recipes.data.parquet_images import is_parquet_reference, parquet_reference, read_parquet_image
from pefomed_recipes.data.prepared import prepared_features
from pefomed_recipes.data.preparing import parse_size, prepare_dataset
from pefomed_recipes.data.reading import DatasetError, MissingSplitError
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.records import Sample

from .fixtures import iu_xray, mimic_cxr, mimic_diff_vqa, ms_cxr, path_vqa, roco, slake, vqa_rad
from .small_sets import two_view_studies, write_set

CASES = {"train": 6, "validation": 2, "test": 2}
SMALL = 2500  # bytes: a shard of two studies or so


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two-view studies. Read only."""
    return two_view_studies(tmp_path_factory.mktemp("studies") / "data", CASES)


@pytest.fixture(scope="module")
def shards(studies: Path) -> Path:
    """The studies, prepared in one call. Read only."""
    return prepare_dataset("jsonl", studies, studies.with_name("shards"), shard_bytes=SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def first_shard(folder: Path, split: str) -> Path:
    """The first shard of a split."""
    return min(folder.glob(f"{split}-*.parquet"))


def samples_of(dataset: str, root: Path, split: str) -> dict[str, Sample]:
    """The samples of a split by id, without what depends on the place: paths."""
    return {s.id: replace(s, image_paths=[], source="") for s in stream_samples(dataset, root, split)}


# ------------------------------------------------------------------------------------------------------ what they hold


def test_samples_come_back_as_they_were_with_the_bytes_of_their_images(studies: Path, shards: Path) -> None:
    for split in CASES:
        assert samples_of("prepared", shards, split) == samples_of("jsonl", studies, split)
        originals = {sample.id: sample.image_paths for sample in stream_samples("jsonl", studies, split)}
        for sample in stream_samples("prepared", shards, split):
            assert len(sample.image_paths) == 2
            for reference, path in zip(sample.image_paths, originals[sample.id], strict=True):
                assert is_parquet_reference(reference)
                assert read_parquet_image(reference) == Path(path).read_bytes()
                assert ImageChops.difference(load_image(reference), load_image(path)).getbbox() is None


def test_samples_about_the_same_images_name_them_alike(shards: Path) -> None:
    for sample in (samples := load_samples("prepared", shards, "train")):
        twins = {tuple(s.image_paths) for s in samples if s.image_id == sample.image_id}
        assert len(twins) == 1


def test_a_row_keeps_no_path_of_the_machine(studies: Path, shards: Path) -> None:
    for path in shards.iterdir():
        assert str(studies.parent).encode() not in path.read_bytes()
    row = pq.read_table(first_shard(shards, "test")).to_pylist()[0]
    assert row["image_paths"] == ["images/test0/frontal.png", "images/test0/lateral.png"]


def test_the_manifest_has_settings_terms_and_a_fingerprint_of_every_shard(shards: Path) -> None:
    manifest = json.loads((shards / "prepared.json").read_text(encoding="utf-8"))
    assert {entry["file"] for entry in manifest["shards"]} == {p.name for p in shards.glob("*.parquet")}
    train = [entry for entry in manifest["shards"] if entry["split"] == "train"]
    assert len(train) > 1
    assert (sum(entry["rows"] for entry in train), sum(entry["images"] for entry in train)) == (18, 12)
    assert all(entry["bytes"] == (shards / entry["file"]).stat().st_size for entry in manifest["shards"])
    assert (manifest["dataset"], manifest["shard_bytes"], manifest["credentialed"]) == ("jsonl", SMALL, False)


def test_an_image_with_many_questions_is_stored_once(tmp_path: Path) -> None:
    rows = [{"image": f"images/{n % 2}.png", "question": f"Number {n}?"} for n in range(400)]
    root = tmp_path / "data"
    for name in ("0", "1"):
        pixels = np.random.default_rng(int(name)).integers(0, 256, (200, 200), dtype=np.uint8)
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / f"images/{name}.png")
    write_set(root, {"train": rows})
    folder = prepare_dataset("jsonl", root, tmp_path / "out")
    originals = sum(path.stat().st_size for path in (root / "images").iterdir())
    [shard] = folder.glob("*.parquet")
    assert originals < shard.stat().st_size < 1.6 * originals
    assert len({tuple(s.image_paths) for s in stream_samples("prepared", folder, "train")}) == 2


def test_terms_travel_with_the_shards(tmp_path: Path) -> None:
    root = write_set(
        tmp_path / "data", {"train": [{"credentialed": True, "licence": "closed", "source": "mimic_cxr"}]}
    )
    folder = prepare_dataset("jsonl", root, tmp_path / "out")
    [sample] = stream_samples("prepared", folder, "train")
    assert (sample.credentialed, sample.licence, sample.source) == (True, "closed", "mimic_cxr")
    assert json.loads((folder / "prepared.json").read_text(encoding="utf-8"))["credentialed"] is True


def test_shards_can_be_checked_prepared_again_and_chosen_by_split(studies: Path, shards: Path, tmp_path: Path) -> None:
    report = check_dataset("prepared", shards, workers=1).report
    assert report["passed"]
    assert report["splits"]["train"]["images"] == 12
    again = prepare_dataset("prepared", shards, tmp_path / "again", splits=["val"])
    assert samples_of("prepared", again, "validation") == samples_of("jsonl", studies, "validation")
    with pytest.raises(MissingSplitError, match="no shard of the train split"):
        list(stream_samples("prepared", again, "train"))


LAYOUTS: dict[str, list[Callable[[Path], None]]] = {
    "vqa_rad": [vqa_rad.write_vqa_rad_prepared, vqa_rad.write_vqa_rad_osf, vqa_rad.write_vqa_rad_hub],
    "slake": [slake.write_slake_original],
    "path_vqa": [path_vqa.write_path_vqa_original, path_vqa.write_path_vqa_hub],
    "iu_xray": [iu_xray.write_iu_xray_r2gen, iu_xray.write_iu_xray_xml],
    "mimic_cxr": [mimic_cxr.write_mimic_cxr_tree],
    "mimic_diff_vqa": [mimic_diff_vqa.write_mimic_diff_vqa],
    "ms_cxr": [ms_cxr.write_ms_cxr_json],
    "roco": [roco.write_roco_original, roco.write_roco_hub],
}


@pytest.mark.parametrize(
    ("dataset", "write"), [(dataset, write) for dataset, writers in LAYOUTS.items() for write in writers]
)
def test_the_papers_sets_come_back_from_shards_as_they_were(
    tmp_path: Path, dataset: str, write: Callable[[Path], None]
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write(root)
    language = "all" if SOURCES[dataset].languages else None
    out = prepare_dataset(dataset, root, tmp_path / "out", language=language, on_missing="skip")
    splits = {entry["split"] for entry in json.loads((out / "prepared.json").read_text(encoding="utf-8"))["shards"]}
    for split in splits:
        originals = {
            sample.id: sample
            for sample in stream_samples(dataset, root, split, language=language)
            if all(os.path.isfile(file_of(path)) for path in sample.image_paths)
        }
        read = list(stream_samples("prepared", out, split))
        assert {sample.id for sample in read} == set(originals)
        for sample in read:
            original = originals[sample.id]
            assert replace(sample, image_paths=original.image_paths) == original
            for reference, path in zip(sample.image_paths, original.image_paths, strict=True):
                assert ImageChops.difference(load_image(reference), load_image(path)).getbbox() is None


def test_a_place_that_is_not_there_is_an_error(shards: Path) -> None:
    file = first_shard(shards, "test")
    for reference in (parquet_reference(file, 0, 2), parquet_reference(file, 0), parquet_reference(file, 99, 0)):
        with pytest.raises(DatasetError):
            read_parquet_image(reference)


# ------------------------------------------------------------------------------------------------ to stop and to go on


@pytest.mark.integration
def test_several_processes_write_the_same_bytes_as_one(studies: Path, shards: Path, tmp_path: Path) -> None:
    out = prepare_dataset("jsonl", studies, tmp_path / "out", shard_bytes=SMALL, workers=2)
    assert contents(out) == contents(shards)


KILLED = """
import os, sys
from pefomed_recipes.data.preparing import prepare_dataset
replace, done = os.replace, []
def stop(source, target):
    if len(done) == 2:
        os._exit(9)  # as kill -9: nothing is cleaned up
    done.append(target)
    replace(source, target)
os.replace = stop
prepare_dataset("jsonl", sys.argv[1], sys.argv[2], shard_bytes=int(sys.argv[3]))
"""


@pytest.mark.integration
def test_a_killed_preparation_goes_on_and_ends_byte_identical(
    studies: Path, shards: Path, tmp_path: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    out = tmp_path / "out"
    assert run_python("-c", KILLED, studies, out, SMALL).returncode == 9
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(kept) == 2
    assert len(list(out.glob(".*.partial"))) == 1
    assert not (out / "prepared.json").exists()
    with pytest.raises(DatasetError, match="not recognised"):
        list(stream_samples("prepared", out, "train"))
    prepare_dataset("jsonl", studies, out, shard_bytes=SMALL)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert contents(out) == contents(shards)


def test_a_finished_preparation_is_kept_as_it_is(studies: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "write_shard", None)
    before = contents(shards)
    assert prepare_dataset("jsonl", studies, shards, shard_bytes=SMALL) == shards
    assert contents(shards) == before


def test_a_damaged_shard_is_told_and_replaced_when_the_manifest_is_gone(
    studies: Path, shards: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(shards, tmp_path / "out"))
    damaged = first_shard(out, "train")
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(DatasetError, match=f"{damaged.name}: missing or not whole"):
        list(stream_samples("prepared", out, "train"))
    (out / "prepared.json").unlink()
    damaged.unlink()
    prepare_dataset("jsonl", studies, out, shard_bytes=SMALL)
    assert contents(out) == contents(shards)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_folder_of_other_data_or_settings_is_refused_and_left_alone(
    studies: Path, shards: Path, tmp_path: Path, manifest: bool
) -> None:
    out = Path(shutil.copytree(shards, tmp_path / "out"))
    if not manifest:
        (out / "prepared.json").unlink()
    before = contents(out)
    with pytest.raises(ConfigError, match="other data or settings"):
        prepare_dataset("jsonl", studies, out, shard_bytes=SMALL + 1)
    assert contents(out) == before


def test_an_image_that_cannot_be_used_stops_the_preparation_and_leaves_no_half_shard(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data", {"train": [{}, {"image": "images/broken.gif"}]})
    (root / "images/broken.gif").write_bytes(b"GIF89a and nothing else")
    with pytest.raises(PeFoMedError, match=r"broken\.gif"):
        prepare_dataset("jsonl", root, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_images_are_named_or_left_out_and_counted(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data", {"train": [{}, {}, {}], "test": [{}]})
    (root / "images/train-1.png").unlink()
    with pytest.raises(DatasetError, match=r"(?s)1 image files are missing.*images/train-1\.png of train-2"):
        prepare_dataset("jsonl", root, tmp_path / "out")
    out = prepare_dataset("jsonl", root, tmp_path / "out", on_missing="skip")
    assert [sample.id for sample in stream_samples("prepared", out, "train")] == ["train-1", "train-3"]
    assert json.loads((out / "prepared.json").read_text(encoding="utf-8"))["left_out_for_missing_images"] == 1


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 500_000_000), ("2 GiB", 2**31), ("1.5kb", 1500), ("77", 77), ("10B", 10)]
)
def test_sizes_are_numbers_with_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "0", "-5MB", "5XB", "1e9"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 500MB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--splits", "train,dev"], 2, "Unknown split 'dev'"),
        (["--splits", "test"], 1, "expected test.jsonl"),
        (["--shard-size", "much"], 2, "such as 500MB"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    named: str,
) -> None:
    root = write_set(tmp_path / "data", {"train": [{}]})
    monkeypatch.setenv("PEFOMED_DEBUG", "0")
    arguments = ["pefomed", "data", "prepare", "jsonl", "--root", str(root), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*arguments, *options])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert named in err
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------- streamed and trained


@pytest.mark.integration
def test_shards_stream_with_datasets_in_the_fixed_features(studies: Path, shards: Path) -> None:
    from datasets import load_dataset

    files = {split: str(shards / f"{split}-*.parquet") for split in CASES}
    streamed = load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert streamed.features == prepared_features()
    rows = list(streamed)
    assert {row["id"] for row in rows} == set(samples_of("jsonl", studies, "train"))
    for row in rows:
        frontal = Image.open(io.BytesIO(row["images"][0]["bytes"]))
        assert frontal.size == (40, 32)
        assert len(row["images"]) == 2


@pytest.mark.integration
def test_two_view_studies_are_trained_and_predicted_end_to_end(
    studies: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pefomed_recipes.inference.predicting import predict
    from pefomed_recipes.records import Prediction, read_records
    from pefomed_recipes.training import arguments, stages

    from ..modeling.tiny import save_tiny_base

    for module in (arguments, stages):
        monkeypatch.setattr(module, "default_dtype", lambda: torch.float32)
    base = save_tiny_base(tmp_path / "base")
    records = {}
    for dataset, root in (("jsonl", studies), ("prepared", shards)):
        options = [f"--base={base}", f"--dataset={dataset}", f"--data_root={root}", "--task=vqa", "--max_steps=3"]
        options += [f"--output_dir={tmp_path / dataset}", "--lora_r=4", "--learning_rate=0.01", "--bf16=false"]
        options += ["--per_device_train_batch_size=2", "--eval_steps=3", "--save_steps=3", "--warmup_steps=0"]
        options += ['--lr_scheduler_kwargs={"min_lr": 0.001}']
        records[dataset] = stages.run_stage(*arguments.parse_arguments(options, {}, "two views"))
    # the same samples, images and order: the shards train what the files train
    assert records["prepared"]["rows"] == records["jsonl"]["rows"] == {"train": 6, "validation": 2}
    assert records["prepared"]["data"]["train"]["images"] == 12
    assert records["prepared"]["validation_loss_after"] == pytest.approx(records["jsonl"]["validation_loss_after"])
    samples = load_samples("prepared", shards, "test", "vqa")
    out = predict(tmp_path / "prepared", samples, tmp_path / "predictions.jsonl")
    predictions = read_records(out, Prediction)
    assert [prediction.id for prediction in predictions] == [sample.id for sample in samples]
    assert len(samples) == 4


@pytest.mark.integration
def test_lengths_are_counted_in_the_tokens_of_a_model(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ..modeling.tiny import build_processor

    processor = build_processor()
    processor.save_pretrained(tmp_path / "model")
    arguments = ["jsonl", "--root", str(studies), "--out", str(tmp_path / "out"), "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["pefomed", "data", "check", *arguments, "--tokenizer", str(tmp_path / "model")])
    with pytest.raises(SystemExit):
        cli.main()
    report = json.loads((tmp_path / "out/check.json").read_text(encoding="utf-8"))
    longest = report["splits"]["train"]["lengths"]["answer_tokens"]["max"]
    assert longest == max(
        len(processor.tokenizer(f"The {side} lung is clear.", add_special_tokens=False)["input_ids"])
        for side in ("left", "right")
    )
    assert "answer tokens" in capsys.readouterr().out

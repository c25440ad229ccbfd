# SPDX-License-Identifier: Apache-2.0
"""What a check takes from readers: what files list, entries without an answer, ids that come again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pefomed_recipes.data.checks import check_dataset
from pefomed_recipes.data.datasets_index import SOURCES
from pefomed_recipes.data.mimic_cxr import count_listed
from pefomed_recipes.data.preparing import prepare_dataset

from .conftest import DataCheck, check, found
from .fixtures import iu_xray, medicat, mimic_cxr, roco, slake, vqa_rad
from .small_sets import write_set

Write = Callable[[Path], None]
# data set, what writes it, and what its files list in all
LISTED: list[tuple[str, Write, dict[str, int]]] = [
    ("mimic_cxr", mimic_cxr.write_mimic_cxr_tree, {"listed_studies": 6, "listed_images": 11}),
    ("iu_xray", iu_xray.write_iu_xray_xml, {"listed_reports": 5, "listed_images": 9}),
    ("iu_xray", iu_xray.write_iu_xray_kaggle, {"listed_reports": 4, "listed_images": 4}),
    ("medicat", medicat.write_medicat_release, {"listed_images": 4}),
]


@pytest.mark.parametrize(("dataset", "write", "listed"), LISTED)
def test_what_files_list_is_compared_with_what_is_published(
    tmp_path: Path, dataset: str, write: Write, listed: dict[str, int]
) -> None:
    write(tmp_path)
    report = check_dataset(dataset, tmp_path, workers=1).report
    layout = SOURCES[dataset].recognise(tmp_path)
    assert report["listed"]["all"] == listed
    assert report["published_not_compared"] == []
    texts = [finding["text"] for finding in report["findings"] if finding["kind"] == "counts"]
    for name, number in listed.items():
        assert f"{name}: found {number:,}, published {layout.published['all'][name]:,}" in texts
    assert not report["passed"]


def test_every_split_that_mimic_cxr_lists_is_counted(tmp_path: Path) -> None:
    mimic_cxr.write_mimic_cxr_tree(tmp_path)
    listed = count_listed(tmp_path)
    assert {split: listed[split]["listed_images"] for split in listed} == {
        "train": 9, "validation": 1, "test": 1, "all": 11
    }  # fmt: skip


def test_a_table_that_cannot_be_counted_is_told_by_the_reader_only(tmp_path: Path) -> None:
    iu_xray.write_iu_xray_kaggle(tmp_path)
    (tmp_path / "indiana_projections.csv").write_text("id\n1\n", encoding="utf-8")
    with pytest.raises(Exception, match="no column uid"):
        check_dataset("iu_xray", tmp_path, workers=1)


def test_every_listed_number_that_is_published_can_be_counted() -> None:
    for source in SOURCES.values():
        for layout in source.layouts:
            names = {name for numbers in layout.published.values() for name in numbers}
            assert bool(layout.listed) == any(name.startswith("listed_") for name in names), (source.slug, layout.name)


@pytest.mark.parametrize(
    ("dataset", "write", "language", "names"),
    [
        ("vqa_rad", vqa_rad.write_vqa_rad_prepared, None, ["trainset.json, row 7"]),
        ("slake", slake.write_slake_original, "en", ["train.json, row 3"]),
        ("roco", roco.write_roco_original, None, ["data/train/radiology/captions.txt, line 4"]),
        ("mimic_cxr", mimic_cxr.write_mimic_cxr_tree, None, ["mimic-cxr-2.0.0-split.csv.gz, line 10"]),
        ("mimic_cxr", mimic_cxr.write_mimic_cxr_prepared, None, ["mimic_train.json, entry 3"]),
        ("iu_xray", iu_xray.write_iu_xray_xml, None, ["NLMCXR_reports/ecgen-radiology, report 10"]),
        ("iu_xray", iu_xray.write_iu_xray_kaggle, None, ["indiana_reports.csv, line 5"]),
        ("medicat", medicat.write_medicat_release, None, [f"release/{medicat.NAME}, line 5"]),
    ],
)
def test_entries_without_an_answer_are_named_and_fail_the_check(
    tmp_path: Path, dataset: str, write: Write, language: str | None, names: list[str]
) -> None:
    write(tmp_path)
    checked = check_dataset(dataset, tmp_path, language=language, workers=1)
    assert ("train", names) in found(checked, "empty")
    assert checked.report["splits"]["train"]["empty_answers"] == len(names)
    allowed = check_dataset(dataset, tmp_path, language=language, allow=["empty"], workers=1).report["findings"]
    assert {finding["allowed"] for finding in allowed if finding["kind"] == "empty"} == {True}


def test_the_same_id_in_two_files_of_a_split_is_an_error_with_both_places(
    tmp_path: Path, data_check: DataCheck
) -> None:
    for folder in "ab":
        write_set(tmp_path / "data/train" / folder, {"x": [{"image": "1.png"}]})
        (tmp_path / "data/train" / folder / "x.jsonl").unlink()
        text = f"file_name,id,question,answer\n1.png,7,What?,{folder}\n"
        (tmp_path / "data/train" / folder / "metadata.csv").write_text(text, encoding="utf-8")
    code, out, _ = data_check("imagefolder", "--root", "data", "--workers", "1")
    assert code == 1
    assert "train/b/metadata.csv, line 2: the id of train/a/metadata.csv, line 2 again" in out


def test_an_id_that_comes_again_in_prepared_shards_is_a_duplicate(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data", {"train": [{"id": "one"}, {"id": "two"}]})
    shards = prepare_dataset("jsonl", root, tmp_path / "out", shard_bytes=1)
    manifest = json.loads((shards / "prepared.json").read_text(encoding="utf-8"))
    first, second = manifest["shards"]
    shutil.copyfile(shards / first["file"], shards / second["file"])
    second["bytes"] = first["bytes"]
    (shards / "prepared.json").write_text(json.dumps(manifest), encoding="utf-8")
    checked = check_dataset("prepared", shards, workers=1)
    assert ("", ["one"]) in found(checked, "duplicates")


def test_a_leak_by_content_is_told_of_the_later_split_whatever_pictures_come_first(tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"train": [{}], "validation": [{}, {}], "test": [{}, {}]}
    root = write_set(tmp_path, rows)
    for old, new in (("train-0", "test-0"), ("validation-1", "test-1")):
        shutil.copyfile(root / f"images/{old}.png", root / f"images/{new}.png")
    checked = check(root)
    pairs = [leak["splits"] for leak in checked.report["leakage"] if leak["by"] == "content"]
    assert pairs == [["train", "validation"], ["train", "test"], ["validation", "test"]]
    assert found(checked, "leakage") == [
        ("test", ["images/train-0.png = images/test-0.png"]),
        ("test", ["images/validation-1.png = images/test-1.png"]),
    ]

# SPDX-License-Identifier: Apache-2.0
"""Folders in `datasets`' imagefolder form become samples, and `datasets` reads the same folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.reading import DatasetError, MissingSplitError
from pefomed_recipes.records import Sample

from .fixtures.pictures import write_pictures, write_text

SECRET = "Mrs Doe has a fracture"


def read(root: Path, split: str = "train") -> list[Sample]:
    return list(stream_samples("imagefolder", root, split))


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_each_split_has_a_folder_with_its_metadata(tmp_path, ending):
    for split, answer in (("train", "yes"), ("valid", "no")):
        row = {"file_name": "sub/1.png", "question": "Is it CT?", "answer": answer, "patient_id": "7"}
        write_pictures(tmp_path / split / "sub", "1.png", "unused.png")
        text = ",".join(row) + "\n" + ",".join(row.values()) + "\n" if ending == "csv" else lines(row)
        write_text(tmp_path / split / f"metadata.{ending}", text)
    assert SOURCES["imagefolder"].recognise(tmp_path).name == "imagefolder"
    (train,) = load_samples("imagefolder", tmp_path, "train")
    assert train == Sample(
        id=f"train-{2 if ending == 'csv' else 1}", task="vqa", image_paths=[str(tmp_path / "train/sub/1.png")],
        instruction="Is it CT?", answers=["yes"], image_id="train/sub/1.png", patient_id="7", split="train",
        source="imagefolder",
    )  # fmt: skip
    assert [s.answers for s in load_samples("imagefolder", tmp_path, "val")] == [["no"]]
    with pytest.raises(MissingSplitError, match=r"no metadata file of the test split; expected test/metadata\.csv"):
        read(tmp_path, "test")


def test_text_is_a_caption_and_file_names_are_several_images(tmp_path):
    rows = ({"file_name": "1.png", "text": "Axial CT."}, {"file_names": ["1.png", "2.png"], "report": "Clear."})
    write_text(tmp_path / "train" / "metadata.jsonl", lines(*rows))
    caption, report = read(tmp_path)
    assert (caption.task, caption.answers) == ("caption", ["Axial CT."])
    assert report.image_paths == [str(tmp_path / "train" / name) for name in ("1.png", "2.png")]


def test_metadata_files_may_lie_deeper_and_ids_stay_apart(tmp_path):
    for folder in ("a", "b/c"):
        write_text(tmp_path / "train" / folder / "metadata.csv", "file_name,text\n1.png,CT\n")
    first, second = read(tmp_path)
    assert (first.id, second.id) == ("train-a-2", "train-b-c-2")
    assert second.image_paths == [str(tmp_path / "train/b/c/1.png")]


def test_an_id_in_two_files_is_named_with_both_places(tmp_path):
    for folder, ids in (("a", "12"), ("b", "345"), ("c", "62")):
        rows = "".join(f"1.png,CT,{id}\n" for id in ids)
        write_text(tmp_path / "train" / folder / "metadata.csv", f"file_name,text,id\n{rows}")
    with pytest.raises(
        DatasetError,
        match=r"1 ids come .*\n  train/c/metadata\.csv, line 3: the id of train/a/metadata\.csv, line 3 ag",
    ):
        read(tmp_path)


def test_one_file_for_all_tells_splits_by_its_column(tmp_path):
    write_text(tmp_path / "metadata.csv", "file_name,text,split\na/1.png,CT,test\n2.png,MRI,\n")
    assert [(s.id, s.answers) for s in read(tmp_path, "test")] == [("test-2", ["CT"])]
    assert [(s.image_id, s.split) for s in read(tmp_path)] == [("2.png", "train")]


def test_two_places_for_one_split_are_refused(tmp_path):
    write_text(tmp_path / "metadata.csv", "file_name,text\n1.png,CT\n")
    write_text(tmp_path / "train" / "metadata.csv", "file_name,text\n1.png,CT\n")
    with pytest.raises(DatasetError, match=r"found metadata\.csv, train/metadata\.csv; expected one metadata file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file_name,text\n../../x.png,CT\n", "line 2: image .* lies outside the dataset's folder"),
        ("metadata.csv", "file_name,label\n1.png,cat\n", "unknown columns 'label'; expected some of question"),
        ("metadata.csv", "text\nCT\n", "no column file_name"),
        ("metadata.csv", "file_name,text,id\n1.png,CT,x\n1.png,CT,x\n", "line 3: the id of line 2 again"),
        ("metadata.jsonl", lines({"file_name": 7, "text": SECRET}), "line 1: image is missing or no text"),
        ("metadata.jsonl", lines({"file_name": "1.png"}), "line 1: found no text; expected one of: question"),
        ("metadata.jsonl", "", "the file is empty"),
    ],
)
def test_what_is_wrong_is_told_by_line(tmp_path, name, content, message):
    write_text(tmp_path / "train" / name, content)
    with pytest.raises(DatasetError, match=message) as caught:
        read(tmp_path)
    assert SECRET not in str(caught.value)


def test_a_folder_without_metadata_is_not_recognised(tmp_path):
    write_pictures(tmp_path / "train", "1.png")
    with pytest.raises(DatasetError, match=r"not recognised as a folder of images with metadata.* with file_name"):
        load_samples("imagefolder", tmp_path, "train")


@pytest.mark.integration
def test_datasets_reads_the_same_folder(tmp_path, monkeypatch):
    from datasets import load_dataset

    write_pictures(tmp_path / "data" / "train", "1.png", "2.png")
    write_text(tmp_path / "data" / "train" / "metadata.csv", "file_name,text\n1.png,CT\n2.png,MRI\n")
    theirs = load_dataset("imagefolder", data_dir=tmp_path / "data", split="train", cache_dir=tmp_path / "cache")
    ours = read(tmp_path / "data")
    assert [[row["text"]] for row in theirs] == [sample.answers for sample in ours]
    assert [row["image"].filename for row in theirs] == [sample.image_paths[0] for sample in ours]

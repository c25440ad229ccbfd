# SPDX-License-Identifier: Apache-2.0
"""PathVQA in each form that people have it in; pickles are read as data, and never run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.reading import DatasetError, MissingSplitError
from pefomed_recipes.records import Sample

from .fixtures.path_vqa import (
    path_vqa_rows,
    write_path_vqa_hub,
    write_path_vqa_original,
    write_path_vqa_prepared,
)
from .fixtures.pictures import write_text

SECRET = "Mrs Doe has a fracture"
TEXTS = [
    ("Where are liver stem cells located ?", ["in the canals of hering"], ["WHERE"], "OPEN"),
    ("Is this a section ?", ["yes"], ["IS"], "CLOSED"),
    ("how many cells are there?", ["2"], ["HOW"], "OPEN"),
    ("Is this a section ?", ["yes"], ["IS"], "CLOSED"),
]


def read(root: Path, split: str = "train") -> list[Sample]:
    return list(stream_samples("path_vqa", root, split))


def texts(samples: list[Sample]) -> list[tuple[Any, ...]]:
    return [(s.instruction, s.answers, s.question_types, s.answer_type) for s in samples]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_any_protocol_give_the_original_rows(tmp_path, protocol):
    write_path_vqa_original(tmp_path, protocol)
    assert SOURCES["path_vqa"].recognise(tmp_path).name == "original"
    train = read(tmp_path)
    assert texts(train) == TEXTS
    assert train[0] == Sample(
        id="path_vqa-train-1", task="vqa", image_paths=[str(tmp_path / "pvqa/images/train/train_0000.jpg")],
        instruction=TEXTS[0][0], answers=TEXTS[0][1], answer_type="OPEN", answer_type_derived=True,
        question_types=["WHERE"], image_id="train/train_0000.jpg", split="train", source="path_vqa",
        licence="research only (card: MIT; images: their publishers)",
    )  # fmt: skip
    assert len(load_samples("path_vqa", tmp_path, "train")) == 4  # every image is there
    # the folder pvqa itself will do as well, and `val` stays spelt as it is on disk
    (validation,) = read(tmp_path / "pvqa", "validation")
    assert validation.image_paths == [str(tmp_path / "pvqa/images/val/val_0000.jpg")]


def test_the_prepared_form_states_its_answer_types(tmp_path):
    write_path_vqa_prepared(tmp_path)
    assert SOURCES["path_vqa"].recognise(tmp_path).name == "prepared"
    train = load_samples("path_vqa", tmp_path, "train")
    assert texts(train) == TEXTS and not any(sample.answer_type_derived for sample in train)
    assert [sample.id for sample in train] == [f"path_vqa-train-{n}" for n in range(4)]
    assert train[0].image_id == "train/train_0000.jpg"
    assert [s.answers for s in load_samples("path_vqa", tmp_path, "val")] == [["no"]]


def test_the_mirror_is_read_over_all_its_files(tmp_path):
    write_path_vqa_hub(tmp_path)
    assert SOURCES["path_vqa"].recognise(tmp_path).name == "hub"
    train = load_samples("path_vqa", tmp_path, "train")
    assert texts(train) == TEXTS[:3] and all(sample.answer_type_derived for sample in train)
    assert [sample.id for sample in train] == ["path_vqa-train-0", "path_vqa-train-1", "path_vqa-train-2"]
    assert train[0].image_paths == train[1].image_paths != train[2].image_paths
    assert [s.id for s in load_samples("path_vqa", tmp_path, "validation")] == ["path_vqa-validation-0"]
    (tmp_path / "data" / "test-00000-of-00001-ef.parquet").unlink()
    with pytest.raises(MissingSplitError, match=r"no file of the test split; expected test-\*\.parquet"):
        read(tmp_path, "test")


class Malicious:
    def __reduce__(self) -> Any:
        return (open, ("proof.txt", "w"))


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_path_vqa_original(tmp_path)
    path = tmp_path / "pvqa" / "qas" / "train" / "train_qa.pkl"
    path.write_bytes(pickle.dumps([*path_vqa_rows("train"), Malicious()]))
    with pytest.raises(DatasetError, match=r"train_qa\.pkl: refused\. At byte \d+ it asks to import code"):
        read(tmp_path)
    assert not (tmp_path / "proof.txt").exists()
    pickle.loads(path.read_bytes())  # it would have
    assert (tmp_path / "proof.txt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image": SECRET}, "found a dict, expected a list of objects"),
        ([SECRET], "row 1: found str, expected an object"),
        ([{"image": "train_0000", "question": SECRET, "answer": [SECRET]}], "row 1: the answer is list"),
        ([{"image": True, "question": SECRET, "answer": SECRET}], "row 1: the image's name is bool"),
        ([{"image": "../../../../etc/x", "question": SECRET, "answer": SECRET}], "lies outside the dataset's folder"),
        ([{"image": None, "question": SECRET, "answer": SECRET}], "row 1: image is missing"),
        ([{"image": "train_0000", "question": SECRET, "answer": ""}], "found no row with an answer"),
        ([], "found no row with an answer"),
    ],
)
def test_pickles_with_other_content_are_refused_without_repeating_it(tmp_path, content, message):
    write_text(tmp_path / "qas" / "train" / "train_qa.pkl", pickle.dumps(content))
    with pytest.raises(DatasetError, match=message) as caught:
        read(tmp_path)
    assert SECRET not in str(caught.value)

# SPDX-License-Identifier: Apache-2.0
"""PMC-VQA in its versions: the right choice's text as the answer, whichever column names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.pmc_vqa import right_choice
from pefomed_recipes.data.reading import DatasetError, MissingSplitError
from pefomed_recipes.records import Sample

from .fixtures.pictures import write_text
from .fixtures.pmc_vqa import write_pmc_vqa_clean, write_pmc_vqa_v1, write_pmc_vqa_v2


def read(root: Path, split: str = "train") -> list[Sample]:
    return list(stream_samples("pmc_vqa", root, split))


@pytest.mark.parametrize(
    ("write", "layout", "images"), [(write_pmc_vqa_v1, "v1", "images"), (write_pmc_vqa_v2, "v2", "images_2")]
)
def test_the_right_choice_is_the_answer_and_the_others_are_not_shown(tmp_path, caplog, write, layout, images):
    write(tmp_path)
    assert SOURCES["pmc_vqa"].recognise(tmp_path).name == layout
    first, second, third = read(tmp_path)
    assert first == Sample(
        id="pmc_vqa-train-2", task="vqa", image_paths=[str(tmp_path / images / "PMC1000001_F1.jpg")],
        instruction="What is the arrow's colour?", answers=["Red"], answer_type="OPEN", answer_type_derived=True,
        image_id="PMC1000001_F1.jpg", study_id="PMC1000001", split="train", source="pmc_vqa",
        licence="CC-BY-SA (figures: their articles' licences)",
    )  # fmt: skip
    assert (second.instruction, second.answers, second.answer_type) == ('Is it, "possibly", a mass?', ["no"], "CLOSED")
    assert second.study_id == first.study_id != third.study_id
    assert third.answers == ["A. baumannii"]  # a name, not the letter of a choice
    assert "left out of the train split: 1 without an answer" in caplog.text
    (test,) = load_samples("pmc_vqa", tmp_path, "test")
    assert test.answers == ["B"]
    with pytest.raises(MissingSplitError, match="no file of the validation split"):
        read(tmp_path, "validation")


def test_the_checked_test_split_can_stand_alone(tmp_path):
    write_pmc_vqa_clean(tmp_path)
    layout = SOURCES["pmc_vqa"].recognise(tmp_path)
    assert (layout.name, layout.published) == ("clean", {"test": {"samples": 2000}})
    assert [s.answers for s in load_samples("pmc_vqa", tmp_path, "test")] == [["B"]]
    with pytest.raises(MissingSplitError):
        read(tmp_path)


def test_of_both_versions_in_one_folder_the_first_is_read(tmp_path):
    write_pmc_vqa_v1(tmp_path)
    write_pmc_vqa_v2(tmp_path)
    assert SOURCES["pmc_vqa"].recognise(tmp_path).name == "v1"


@pytest.mark.parametrize(
    ("label", "answer"),
    [("C", "z"), (" c: ", "z"), ("(C)", "z"), ("Z", "z"), ("E", ""), ("", ""), ("B", "")],
)
def test_labels_are_letters_or_the_choice_itself(label, answer):
    row = {"choice a": "A: x", "choice b": " B: ", "choice c": " C: z ", "choice d": "w", "answer_label": label}
    assert right_choice(row) == answer


def test_packed_images_get_the_command_that_unpacks_them(tmp_path):
    write_pmc_vqa_v1(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "images.zip").touch()
    with pytest.raises(DatasetError, match=r"images\.zip: the images are still packed; unpack them: unzip -j '"):
        read(tmp_path)


def test_tables_that_are_none_are_refused_by_line(tmp_path):
    write_pmc_vqa_v1(tmp_path)
    path = tmp_path / "train.csv"
    write_text(path, path.read_bytes() + b"PMC1_F1.jpg,only two\nPMC2_F1.jpg,,x,A:a,B:b,C:c,D:d,A\n")
    with pytest.raises(DatasetError, match=r"(?s)line 7: found 2 cells, expected 8.*line 8: the question is missing"):
        read(tmp_path)
    write_text(path, "a,b\n1,2\n")
    with pytest.raises(
        DatasetError, match="no column figure_path, question, choice a; found 2 other columns in the first line"
    ):
        read(tmp_path)

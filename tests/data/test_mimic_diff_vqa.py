# SPDX-License-Identifier: Apache-2.0
"""MIMIC-Diff-VQA: two studies' images where a question compares them, one frontal view of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.reading import DatasetError, MissingSplitError
from pefomed_recipes.records import Sample

from .fixtures.mimic_diff_vqa import write_mimic_diff_vqa
from .fixtures.pictures import write_text

SECRET = "Mrs Doe has a fracture"
HEADER = "study_id,subject_id,ref_id,question_type,question,answer,split\n"


def read(root: Path, split: str = "train") -> list[Sample]:
    return list(stream_samples("mimic_diff_vqa", root, split))


@pytest.mark.parametrize("nested", [False, True])
def test_questions_that_compare_have_the_main_and_the_reference_image(tmp_path, nested):
    write_mimic_diff_vqa(tmp_path, nested=nested)
    difference, presence = read(tmp_path)
    tree = tmp_path / ("physionet.org/files/mimic-cxr-jpg/2.0.0/files" if nested else "files")
    main = str(tree / "p10/p10000032/s50000002/b-1.jpg")  # of two AP views, the first by dicom_id
    reference = str(tree / "p10/p10000032/s50000001/a-pa.jpg")  # PA before AP
    assert difference == Sample(
        id="mimic_diff_vqa-train-2", task="vqa", image_paths=[main, reference], instruction="what has changed ?",
        answers=["the main image has more, than before"], answer_type="OPEN", answer_type_derived=True,
        question_types=["DIFFERENCE"], organ="CHEST", modality="X-Ray", image_id="b-1", study_id="s50000002",
        patient_id="p10000032", split="train", source="mimic_diff_vqa",
        licence="PhysioNet Credentialed Health Data License 1.5.0", credentialed=True,
    )  # fmt: skip
    assert (presence.image_paths, presence.answer_type, presence.question_types) == ([main], "CLOSED", ["PRESENCE"])
    assert len(load_samples("mimic_diff_vqa", tmp_path, "train")) == 2
    (view,) = load_samples("mimic_diff_vqa", tmp_path, "validation")
    assert (view.image_paths, view.study_id) == ([reference], "s50000001")


def test_the_set_s_own_table_of_images_comes_first(tmp_path):
    write_mimic_diff_vqa(tmp_path, chosen=True)
    assert [Path(path).name for path in read(tmp_path)[0].image_paths] == ["b-2.jpg", "a-ap.jpg"]


def test_without_a_table_the_first_file_of_a_study_is_taken(tmp_path):
    write_mimic_diff_vqa(tmp_path, metadata=False)
    assert [Path(path).name for path in read(tmp_path)[0].image_paths] == ["b-1.jpg", "a-ap.jpg"]


def test_a_study_without_a_frontal_view_is_a_missing_image(tmp_path):
    write_mimic_diff_vqa(tmp_path)
    with pytest.raises(DatasetError, match=r"missing\n  files/p10/p10000099/s50000003 of mimic_diff_vqa-test-5"):
        load_samples("mimic_diff_vqa", tmp_path, "test")
    with pytest.raises(DatasetError, match="1 image file is missing, and without them no sample is left"):
        load_samples("mimic_diff_vqa", tmp_path, "test", on_missing="skip")


def test_the_source_is_credentialed_and_recognised_by_its_table(tmp_path):
    source = SOURCES["mimic_diff_vqa"]
    assert source.credentialed
    with pytest.raises(DatasetError, match=r"not recognised as MIMIC-Diff-VQA. Expected one of: csv: mimic_pair_"):
        source.recognise(tmp_path)


def test_problems_are_told_by_line_without_texts(tmp_path):
    rows = [
        "../x,10000032,50000001,presence,q,a,train",
        "50000002,1000/0032,50000001,presence,q,a,train",
        "50000002,10000032,,difference,q,a,train",
        f"50000002,10000032,,presence,,{SECRET},train",
        f"50000002,10000032,,presence,{SECRET},a,tarin",
    ]
    write_text(tmp_path / "mimic_pair_questions.csv", HEADER + "\n".join(rows))
    with pytest.raises(DatasetError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert SECRET not in text
    for part in (
        "5 problems",
        "line 2: study_id, ref_id and subject_id must be whole numbers",
        "line 3: study_id",
        "line 4: study_id",
        "line 5: the question is missing",
        "line 6: split is none of train, val, test",
    ):
        assert part in text


def test_an_absent_split_is_named(tmp_path):
    write_text(tmp_path / "mimic_pair_questions.csv", HEADER + "1,10,,presence,q,a,train\n")
    with pytest.raises(MissingSplitError, match="no row of the test split"):
        read(tmp_path, "test")

# SPDX-License-Identifier: Apache-2.0
"""VQA-RAD in each form that people have it in: the same rows, the known dirt mended, problems told by row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.images import load_image
from pefomed_recipes.data.reading import DatasetError, MissingSplitError
from pefomed_recipes.data.vqa_rad import case_of
from pefomed_recipes.records import Sample

from .fixtures.parquet import write_hub_parquet
from .fixtures.pictures import write_json, write_text
from .fixtures.vqa_rad import (
    ROWS,
    osf_row,
    write_vqa_rad_hub,
    write_vqa_rad_osf,
    write_vqa_rad_prepared,
    write_vqa_rad_xlsx,
)

SECRET = "Mrs Doe has a fracture"


def read(root: Path, split: str = "train") -> list[Sample]:
    return list(stream_samples("vqa_rad", root, split))


def layout(root: Path) -> str:
    return SOURCES["vqa_rad"].recognise(root).name


@pytest.mark.parametrize("below", ["", "VQA_RAD"])
@pytest.mark.parametrize(("write", "name"), [(write_vqa_rad_osf, "osf json"), (write_vqa_rad_xlsx, "osf xlsx")])
def test_the_official_files_give_the_official_split_with_their_dirt_mended(tmp_path, caplog, write, name, below):
    write(tmp_path / below)
    assert layout(tmp_path) == name
    train = read(tmp_path)
    path = str(tmp_path / below / "VQA_RAD Image Folder" / "synpic1.jpg")
    assert train[0] == Sample(
        id="vqa_rad-train-0", task="vqa", image_paths=[path], instruction="Is there a mass?", answers=["Yes"],
        answer_type="CLOSED", question_types=["PRES"], organ="HEAD", image_id="synpic1.jpg", patient_id="0b3a-1",
        split="train", source="vqa_rad", licence="CC0-1.0", linked_id="03f4-0",
    )  # fmt: skip
    assert [(s.instruction, s.answers, s.answer_type, s.question_types) for s in train[1:]] == [
        ("Where is the mass?", ["Heart lungs"], "OPEN", ["POS", "PRES"]),
        ("How many nodules?", ["3"], "OPEN", ["COUNT"]),
        ("Is it large?", ["no"], "CLOSED", ["PRES"]),
        ("What density?", ["2.5"], "OPEN", ["ATTRIB", "OTHER"]),
        ("Qué órgano?", ["hígado"], "OPEN", ["ORGAN"]),
    ]
    assert "left out of the train split: 1 without an answer" in caplog.text
    test = read(tmp_path, "test")
    assert [(s.id, s.patient_id, s.answers) for s in test] == [
        ("vqa_rad-test-7", "0b3a-1", ["left"]),
        ("vqa_rad-test-8", "0b3a-2", ["Axial"]),
    ]
    assert not any(sample.answer_type_derived for sample in train + test)
    with pytest.raises(MissingSplitError, match="VQA-RAD has no validation split"):
        read(tmp_path, "validation")
    assert len(load_samples("vqa_rad", tmp_path, "train")) + len(load_samples("vqa_rad", tmp_path, "val")) == 6


def test_without_openpyxl_the_extra_is_named(tmp_path, monkeypatch):
    write_vqa_rad_xlsx(tmp_path)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DatasetError, match=r"needs openpyxl; install it with pip install 'pefomed\[xlsx\]'"):
        read(tmp_path)


def test_spreadsheets_that_are_none_or_another_are_refused(tmp_path):
    from openpyxl import Workbook

    path = tmp_path / "VQA_RAD Dataset Public.xlsx"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DatasetError, match=r"cannot be read as \.xlsx \(BadZipFile\); download it again"):
        read(tmp_path)
    book = Workbook()
    book.active.append(["QID_unique", "QUESTION"])
    book.save(path)
    with pytest.raises(DatasetError, match="no column qid_para, imageid_case"):
        read(tmp_path)


@pytest.mark.parametrize("crlf", [False, True])
def test_the_prepared_form_keeps_the_framed_copies(tmp_path, crlf):
    write_vqa_rad_prepared(tmp_path, crlf=crlf)
    assert layout(tmp_path) == "prepared"
    train, test = read(tmp_path), read(tmp_path, "test")
    assert [sample.id for sample in train] == [f"vqa_rad-train-{qid}" for qid in (0, 1, 2, 3, 4, 5, 9)]
    assert (train[0].instruction, train[0].answers) == (train[-1].instruction, train[-1].answers)
    assert (train[2].answers, train[3].answer_type, train[3].question_types) == (["3"], "CLOSED", ["PRES"])
    assert [sample.id for sample in test] == ["vqa_rad-test-7", "vqa_rad-test-8"]
    # all test images also occur in training, and the ids show it
    assert {sample.image_id for sample in test} <= {sample.image_id for sample in train}
    assert all(Path(path).is_file() for sample in train + test for path in sample.image_paths)


def test_vqa_med_in_the_same_shape_is_told_by_its_question_types(tmp_path):
    rows = [
        {"qid": n, "image_name": "synpic1.jpg", "question": "q", "answer": "a", "phrase_type": "freeform",
         "answer_type": "OPEN", "question_type": kind, "image_organ": ""}
        for n, kind in enumerate(("MODALITY", "PLANE", "ORGAN", "ABN"))
    ]  # fmt: skip
    write_json(tmp_path / "trainset.json", rows)
    with pytest.raises(
        DatasetError, match=r"found the question types ABN, MODALITY, ORGAN, PLANE only, as in VQA-Med"
    ):
        read(tmp_path)


@pytest.mark.parametrize("names", [False, True])
def test_the_mirror_alone_gets_derived_answer_types(tmp_path, names):
    write_vqa_rad_hub(tmp_path, names=names)
    assert layout(tmp_path) == "hub"
    train = read(tmp_path)
    assert len(train) == 8 and all(sample.answer_type_derived for sample in train)
    assert [sample.answer_type for sample in train] == [
        "CLOSED",
        "OPEN",
        "OPEN",
        "CLOSED",
        "OPEN",
        "OPEN",
        "CLOSED",
        "OPEN",
    ]
    assert {sample.id: sample.question_types for sample in train}["vqa_rad-train-0"] == []
    # rows about one image share its name, id and one reference, so that training packs them
    assert len({sample.image_id for sample in train}) == len({sample.image_paths[0] for sample in train}) == 3
    assert train[0].image_id == train[1].image_id == train[6].image_id != train[2].image_id
    assert (train[0].image_id == "synpic1.jpg") is names
    assert {sample.image_id for sample in read(tmp_path, "test")} < {sample.image_id for sample in train}
    assert load_image(train[2].image_paths[0]).size == (4, 4)
    assert load_samples("vqa_rad", tmp_path, "test")[0].image_paths[0].endswith("-abc.parquet#0")


@pytest.mark.parametrize("names", [False, True])
def test_the_official_file_beside_the_mirror_gives_the_types_back(tmp_path, names):
    write_vqa_rad_hub(tmp_path, names=names)
    write_vqa_rad_osf(tmp_path)
    assert layout(tmp_path) == "hub"
    train = read(tmp_path)
    facts = [(s.answer_type, s.answer_type_derived, s.question_types, s.organ, s.patient_id) for s in train]
    assert facts[:2] == [
        ("CLOSED", False, ["PRES"], "HEAD", "0b3a-1"),
        ("OPEN", False, ["POS", "PRES"], "HEAD", "0b3a-1"),
    ]
    assert [s.linked_id for s in train[:1]] == ["03f4-0"]  # what rephrasings of a question share
    # not in the official file: derived, and marked as such
    assert facts[6:] == [("CLOSED", True, [], "", ""), ("OPEN", True, [], "", "")]
    assert [s.answer_type for s in read(tmp_path, "test")] == ["CLOSED", "OPEN"]


def test_rows_that_could_be_several_get_only_what_these_agree_on(tmp_path):
    twins = [osf_row(ROWS[0]), osf_row(ROWS[0]) | {"qid": "77", "image_name": "synpic2.jpg", "image_organ": "CHEST"}]
    write_json(tmp_path / "official.json", [*twins, osf_row(ROWS[1]), osf_row(ROWS[1]) | {"answer_type": "CLOSED"}])
    rows = [("synpic2.jpg", "Is there a mass?", "yes"), ("synpic1.jpg", "Where is the mass?", "heart lungs")]
    for names, organ in ((False, ""), (True, "CHEST")):
        write_hub_parquet(tmp_path / "train.parquet", rows, names=names)
        first, second = read(tmp_path)
        assert (first.answer_type, first.answer_type_derived, first.organ) == ("CLOSED", False, organ)
        assert (second.answer_type, second.answer_type_derived, second.organ) == ("OPEN", True, "HEAD")


def test_a_mirror_with_a_file_short_or_damaged_says_so(tmp_path):
    path = tmp_path / "data" / "train-00000-of-00002-x.parquet"
    write_hub_parquet(path, [("synpic1.jpg", "q", "a")])
    with pytest.raises(DatasetError, match=r"found 1 Parquet file\(s\) of the train split, expected 2; download"):
        read(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"cannot be read as Parquet \(ArrowInvalid\); download it again"):
        read(tmp_path)


def test_rows_of_a_mirror_without_an_image_are_problems(tmp_path):
    write_hub_parquet(tmp_path / "test.parquet", [("synpic1.jpg", "q", "a"), (None, "q", SECRET)])
    with pytest.raises(DatasetError, match="row 2: holds no image") as caught:
        read(tmp_path, "test")
    assert SECRET not in str(caught.value)


def prepared(**changes: Any) -> dict[str, Any]:
    row = {key: value for key, value in osf_row(ROWS[0]).items() if key != "image_case_url"}
    return {**row, "question": SECRET, **changes}


def test_all_problems_are_told_at_once_by_row_without_texts(tmp_path):
    rows = [
        prepared(),
        prepared(qid="1", answer=True),
        prepared(qid="2", answer=[SECRET]),
        prepared(qid="3", question=""),
        prepared(qid="4", answer_type="maybe"),
        prepared(qid="5", image_name="../../etc/hosts"),
        prepared(qid="6", image_name=None),
        prepared(),
        prepared(qid=None),
        prepared(qid="8", answer="half \ud83d"),
        SECRET,
        prepared(qid="9", answer=float("inf")),
    ]
    write_text(tmp_path / "trainset.json", json.dumps(rows))
    with pytest.raises(DatasetError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert SECRET not in text
    for part in (
        "11 problems",
        "row 2: the answer is bool",
        "row 3: the answer is list",
        "row 4: the question is missing",
        "row 5: the answer type is neither OPEN nor CLOSED",
        "row 6: image is missing, or lies outside the dataset's folder",
        "row 7: image is missing",
        "row 8: the id of row 1 again",
        "row 9: the id is missing",
        "row 10: the answer holds half a character",
        "row 11: found str, expected an object",
        "row 12: the answer is float",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'[{"image_case_url": "x"', "line 1: not JSON"), (b'[{"image_case_url": "\xe9"}]', "not UTF-8 text")],
)
def test_broken_files_are_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read(tmp_path)


def test_other_folders_are_not_taken_for_vqa_rad(tmp_path):
    write_json(tmp_path / "trainset.json", [{"image_name": "a.jpg", "question": "q"}])
    with pytest.raises(DatasetError, match="not recognised as VQA-RAD. Expected one of: prepared: trainset.json"):
        read(tmp_path)


def test_missing_images_are_named_with_their_row(tmp_path):
    write_vqa_rad_prepared(tmp_path)
    (tmp_path / "images" / "synpic2.jpg").unlink()
    with pytest.raises(DatasetError, match="1 image file is missing\n  images/synpic2.jpg of vqa_rad-test-8"):
        load_samples("vqa_rad", tmp_path, "test")
    assert [s.id for s in load_samples("vqa_rad", tmp_path, "test", on_missing="skip")] == ["vqa_rad-test-7"]


@pytest.mark.parametrize(
    ("url", "case"),
    [
        ("https://medpix.nlm.nih.gov/case?id=48e1-dd0e", "48e1-dd0e"),
        ("https://medpix.nlm.nih.gov/case?x=1&id=7#top", "7"),
        ("NULL", ""),
        ("", ""),
        ("https://elsewhere.org/99", "fe850356a506f070"),
    ],
)
def test_links_to_cases_become_case_numbers(url, case):
    assert case_of(url) == case


def test_published_counts_stand_beside_each_layout():
    published = {layout.name: layout.published for layout in SOURCES["vqa_rad"].layouts}
    assert {name: (c["train"]["samples"], c["test"]["samples"]) for name, c in published.items()} == {
        "osf json": (1797, 451), "osf xlsx": (1797, 451), "prepared": (3064, 451), "hub": (1793, 451),
    }  # fmt: skip

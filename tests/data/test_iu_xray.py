# SPDX-License-Identifier: Apache-2.0
"""IU-Xray becomes reports from every form in which people have it; its XML can do nothing but be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pefomed_recipes.data.datasets_index import SOURCES, stream_samples
from pefomed_recipes.data.iu_xray import joined_report
from pefomed_recipes.data.openi_xml import MAX_BYTES, read_openi_report
from pefomed_recipes.data.reading import DatasetError, MissingSplitError
from pefomed_recipes.records import Sample

from .fixtures.iu_xray import (
    openi_xml,
    write_iu_xray_kaggle,
    write_iu_xray_prepared,
    write_iu_xray_r2gen,
    write_iu_xray_xml,
)
from .fixtures.pictures import write_json, write_text

SECRET = "Mrs Doe has a fracture"
XML_FOLDER = Path("NLMCXR_reports") / "ecgen-radiology"


def read(root: Path, split: str = "train") -> list[Sample]:
    return list(stream_samples("iu_xray", root, split))


def test_an_r2gen_study_stays_one_sample_with_two_images(tmp_path, caplog):
    write_iu_xray_r2gen(tmp_path)
    train, validation, test = (read(tmp_path, split) for split in ("train", "validation", "test"))
    folder = tmp_path / "images" / "CXR1_1_IM-0001"
    assert train[0] == Sample(
        id="CXR1_1_IM-0001", task="report", image_paths=[str(folder / "0.png"), str(folder / "1.png")],
        instruction="", answers=["The heart size is XXXX. Lungs clear."], organ="CHEST", modality="X-Ray",
        image_id="images/CXR1_1_IM-0001/0.png", study_id="CXR1_1_IM-0001", patient_id="CXR1", split="train",
        source="iu_xray", licence="CC BY-NC-ND 4.0",
    )  # fmt: skip
    assert (len(train), len(validation), len(test)) == (101, 1, 1)
    assert validation[0].patient_id == "CXR2" and test[0].id == "CXR3_IM-1384"
    assert "left out of the test split: 1 with an empty report" in caplog.text
    published = SOURCES["iu_xray"].recognise(tmp_path).published
    assert {split: counts["samples"] for split, counts in published.items()} == {
        "train": 2069,
        "validation": 296,
        "test": 590,
    }


def test_prepared_rows_have_one_image_each_and_share_their_study(tmp_path):
    write_iu_xray_prepared(tmp_path)
    first, second = read(tmp_path)
    assert first.id == "iu_xray-train-CXR1_1_IM-0001/0.png" and len(first.image_paths) == 1
    assert first.study_id == second.study_id == "CXR1_1_IM-0001" and first.image_id != second.image_id
    assert [sample.answers for sample in read(tmp_path, "test")] == [["Clear."]]
    with pytest.raises(MissingSplitError, match=r"found iu_test.json, iu_train.json; expected validation.json"):
        read(tmp_path, "validation")


def test_prepared_splits_may_lie_in_one_file(tmp_path):
    content = {
        "train": [{"image_path": "a.png", "report": "Clear."}],
        "val": [{"image_path": "b.png", "report": "N."}],
    }
    write_json(tmp_path / "iu.json", content)
    assert SOURCES["iu_xray"].recognise(tmp_path).name == "prepared"
    assert [sample.answers for sample in read(tmp_path, "validation")] == [["N."]]
    with pytest.raises(MissingSplitError, match="no test split"):
        read(tmp_path, "test")


def test_xml_reports_join_both_sections_and_keep_all_images(tmp_path, caplog):
    write_iu_xray_xml(tmp_path)
    samples = {sample.id: sample for sample in read(tmp_path)}
    assert {id: sample.answers for id, sample in samples.items()} == {
        "CXR1": ["FINDINGS: Heart <15 cm, XXXX. IMPRESSION: Normal chest."],
        "CXR2": ["Clear."],
        "CXR3": ["Clear lungs."],
    }
    # patient 1's reports leave out a _1 that the files' names bear
    assert [Path(path).name for path in samples["CXR1"].image_paths] == [
        "CXR1_1_IM-0001-3001.png",
        "CXR1_1_IM-0001-4001.png",
    ]
    assert all(Path(path).is_file() for sample in samples.values() for path in sample.image_paths)
    assert [len(sample.image_paths) for sample in samples.values()] == [2, 1, 5]
    assert (samples["CXR3"].study_id, samples["CXR3"].patient_id) == ("CXR3", "CXR3")
    assert "1 without images, 1 with neither findings nor impression" in caplog.text
    with pytest.raises(MissingSplitError, match="no splits"):
        read(tmp_path, "test")


def test_the_reverse_of_patient_1s_names_is_found_too(tmp_path):
    write_iu_xray_xml(tmp_path)
    xml = openi_xml("CXR1", {"IMPRESSION": "Normal."}, ["CXR1_1_IM-0001-3001"])
    write_text(tmp_path / XML_FOLDER / "1.xml", xml)
    folder = tmp_path / "NLMCXR_png"
    assert read(tmp_path)[0].image_paths == [str(folder / "CXR1_1_IM-0001-3001.png")]
    (folder / "CXR1_1_IM-0001-3001.png").replace(folder / "CXR1_IM-0001-3001.png")
    assert read(tmp_path)[0].image_paths == [str(folder / "CXR1_IM-0001-3001.png")]


@pytest.mark.parametrize(
    ("before", "body"),
    [
        ('<!DOCTYPE e [<!ENTITY x SYSTEM "file:///etc/hostname">]>', "&x;"),
        ('<!DOCTYPE e [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]>', "&b;"),
        ('<!DOCTYPE e [<!ENTITY % p SYSTEM "http://127.0.0.1/x.dtd"> %p;]>', ""),
        ("", "&undeclared;"),
        ("", "<open>"),
    ],
)
def test_xml_that_declares_entities_or_is_none_is_refused_by_report(tmp_path, before, body):
    xml = openi_xml("CXR7", {"FINDINGS": SECRET + body}, ["CXR7_IM-1-1001"], before=before)
    write_text(tmp_path / XML_FOLDER / "7.xml", xml)
    write_text(tmp_path / XML_FOLDER / "9.xml", "")
    with pytest.raises(DatasetError, match=r"(?s)2 problems\n  report 7: .*\n  report 9: not XML") as caught:
        read(tmp_path)
    assert SECRET not in str(caught.value)


def test_an_external_dtd_is_not_opened_and_a_huge_report_not_read(tmp_path):
    dtd = write_text(tmp_path / "e.dtd", '<!ENTITY x "from the DTD">')
    before = f'<!DOCTYPE eCitation SYSTEM "{dtd.as_uri()}">'
    path = write_text(tmp_path / "1.xml", openi_xml("CXR1", {"FINDINGS": "Clear &x;."}, [], before=before))
    assert read_openi_report(path).sections == {"FINDINGS": "Clear ."}
    path = write_text(tmp_path / "2.xml", openi_xml("CXR1", {"FINDINGS": "x" * MAX_BYTES}, []))
    with pytest.raises(ValueError, match="larger than"):
        read_openi_report(path)


def test_images_that_lead_elsewhere_are_refused(tmp_path):
    write_text(tmp_path / XML_FOLDER / "1.xml", openi_xml("CXR1", {"FINDINGS": "Clear."}, ["../../../etc/x"]))
    with pytest.raises(DatasetError, match="report 1: image is missing, or lies outside"):
        read(tmp_path)


def test_kaggle_tables_give_the_frontal_image_first(tmp_path, caplog):
    write_iu_xray_kaggle(tmp_path)
    first, second = read(tmp_path)
    assert first.answers == ["FINDINGS: Heart, lungs: clear. IMPRESSION: Normal."]
    assert [Path(path).name for path in first.image_paths] == ["1_IM-0001-4001.dcm.png", "1_IM-0001-3001.dcm.png"]
    assert all(Path(path).is_file() for path in first.image_paths)
    assert (second.id, second.answers) == ("CXR2", ["Clear."])
    assert "left out of the train split: 1 with neither findings nor impression, 1 without images" in caplog.text


def test_reports_with_problems_are_all_named_without_their_text(tmp_path):
    rows = [
        {"id": "a", "report": SECRET, "image_path": ["a/0.png", "a/1.png"]},
        {"id": "a", "report": SECRET, "image_path": ["b/0.png"]},
        {"id": "c", "report": [SECRET], "image_path": ["c/0.png"]},
        {"id": "d", "report": SECRET, "image_path": []},
        {"id": "e", "report": SECRET, "image_path": ["../e.png"]},
    ]
    write_text(tmp_path / "annotation.json", json.dumps({"train": rows}))
    with pytest.raises(DatasetError, match=r"(?s)4 problems\n  train row 2: the id of train row 1 again") as caught:
        read(tmp_path)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("findings", "impression", "text"),
    [("a", "b", "FINDINGS: a IMPRESSION: b"), ("a", "", "a"), ("", "b", "b"), ("", "", "")],
)
def test_headers_stand_only_where_both_sections_do(findings, impression, text):
    assert joined_report(findings, impression) == text

# SPDX-License-Identifier: Apache-2.0
"""MS-CXR: one phrase of one image has one box, in hundredths of the image, whatever the file's form and version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.reading import DatasetError, MissingSplitError
from pefomed_recipes.records import Sample

from .fixtures.ms_cxr import write_ms_cxr_csv, write_ms_cxr_json
from .fixtures.pictures import write_json, write_text

SECRET = "Mrs Doe has a fracture"


def read(root: Path, split: str = "train") -> list[Sample]:
    return list(stream_samples("ms_cxr", root, split))


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
@pytest.mark.parametrize(("write", "layout"), [(write_ms_cxr_json, "JSON"), (write_ms_cxr_csv, "csv")])
def test_both_forms_give_the_same_phrases(tmp_path, write, layout, version):
    write(tmp_path, version=version)
    assert SOURCES["ms_cxr"].recognise(tmp_path).name == layout
    first, second, third = read(tmp_path)
    (path,) = first.image_paths
    assert path.endswith("files/p10/p10000032/s50000001/aa-1.jpg") and Path(path).is_file()
    # the union of two boxes, the second of which reaches over the right edge
    assert first == Sample(
        id="ms_cxr-aa-1-1", task="refer", image_paths=[path], instruction="Opacity in both lungs",
        answers=["{<10><20><100><45>}"], organ="CHEST", modality="X-Ray", image_id="aa-1", study_id="s50000001",
        patient_id="p10000032", split="train", source="ms_cxr",
        licence="PhysioNet Credentialed Health Data License 1.5.0", credentialed=True,
    )  # fmt: skip
    assert (second.id, second.answers) == ("ms_cxr-aa-1-2", ["{<0><0><100><100>}"])
    # three pixels of 3056 are no hundredth: one is given
    assert (third.id, third.answers) == ("ms_cxr-bb-2-1", ["{<99><50><100><100>}"])
    with pytest.raises(MissingSplitError):
        read(tmp_path, "test")


@pytest.mark.parametrize("write", [write_ms_cxr_json, write_ms_cxr_csv])
def test_the_splits_of_the_newer_version_are_kept(tmp_path, write):
    write(tmp_path, version="1.0.0")
    write(tmp_path, version="1.1.0", with_splits=True)
    train, validation = read(tmp_path), read(tmp_path, "validation")
    assert [sample.id for sample in train] == ["ms_cxr-aa-1-1", "ms_cxr-aa-1-2"]
    assert [sample.id for sample in validation] == ["ms_cxr-bb-2-1"]


def test_without_splits_patients_are_held_out_for_validation(tmp_path):
    write_ms_cxr_json(tmp_path)
    held_out, train = load_samples("ms_cxr", tmp_path, "validation"), load_samples("ms_cxr", tmp_path, "train")
    assert {sample.patient_id for sample in held_out}.isdisjoint(sample.patient_id for sample in train)


@pytest.mark.parametrize(
    ("box", "answer"),
    [
        ([0, 0, 1000, 2000], "{<0><0><100><100>}"),
        ([129, 259, 170, 340], "{<12><12><29><29>}"),  # rounded down, each edge by itself
        ([-5, -5, 15, 25], "{<0><0><1><1>}"),
        ([999.5, 1999, 100, 100], "{<99><99><100><100>}"),
        (["100", "200", "300", "400"], "{<10><10><40><30>}"),
    ],
)
def test_boxes_become_hundredths_inside_the_image(tmp_path, box, answer):
    write_ms_cxr_json(tmp_path)
    path = tmp_path / "MS_CXR_Local_Alignment_v1.0.0.json"
    write_json(path, coco([{"id": 1, "image_id": 1, "bbox": box, "label_text": "Opacity"}]))
    assert read(tmp_path)[0].answers == [answer]


def test_annotations_with_problems_are_all_named_without_their_text(tmp_path):
    boxes: list[Any] = [[0, 0, 0, 5], [2000, 0, 5, 5], [0, 0, float("nan"), 5], [0, 0, 1], None]
    rows: list[Any] = [{"image_id": 1, "bbox": box, "label_text": SECRET} for box in boxes]
    rows += [{"image_id": 9, "bbox": [0, 0, 5, 5], "label_text": SECRET}, SECRET]
    rows += [{"image_id": [1], "bbox": [0, 0, 5, 5], "label_text": SECRET}]
    rows += [{"image_id": 1, "bbox": [0, 0, 5, 5], "label_text": [SECRET]}]
    rows += [{"image_id": 1, "bbox": [0, 0, 5, 5], "label_text": SECRET, "split": "dev"}]
    write_json(tmp_path / "MS_CXR_Local_Alignment_v1.1.0.json", coco(rows))
    with pytest.raises(DatasetError, match=f"(?s){len(rows)} problems\n.*annotation 1: .*annotation 10: ") as caught:
        read(tmp_path)
    assert SECRET not in str(caught.value)


def test_an_image_that_leads_out_of_the_folder_is_refused(tmp_path):
    content = coco([{"image_id": 1, "bbox": [0, 0, 5, 5], "label_text": "Opacity"}])
    content["images"][0]["path"] = "../x.jpg"
    write_json(tmp_path / "MS_CXR_Local_Alignment_v1.0.0.json", content)
    with pytest.raises(DatasetError, match="phrase 1: image is missing, or lies outside"):
        read(tmp_path)


def test_boxes_with_an_empty_phrase_are_left_out_and_counted(tmp_path, caplog):
    write_ms_cxr_csv(tmp_path)
    path = tmp_path / "MS_CXR_Local_Alignment_v1.0.0.csv"
    write_text(path, path.read_text().replace("Edema, mild", " "))
    assert len(read(tmp_path)) == 2
    assert "1 boxes with an empty phrase" in caplog.text


def test_files_of_another_form_are_refused(tmp_path):
    write_json(tmp_path / "MS_CXR_Local_Alignment_v1.0.0.json", [1])
    write_text(tmp_path / "MS_CXR_Local_Alignment_v1.0.0.csv", "id,text\n")
    with pytest.raises(DatasetError, match="not recognised as MS-CXR"):
        read(tmp_path)


def coco(annotations: list[Any]) -> dict[str, Any]:
    """Return a COCO file with one image of 1000 x 2000 pixels."""
    image = {"id": 1, "file_name": "aa-1.jpg", "width": 1000, "height": 2000, "path": "files/p10/p1/s1/aa-1.jpg"}
    return {"images": [image], "annotations": annotations, "categories": []}

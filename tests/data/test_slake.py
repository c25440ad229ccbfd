# SPDX-License-Identifier: Apache-2.0
"""SLAKE in each form that people have it in: languages apart, its one empty answer left out, packed images named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.reading import DatasetError, MissingSplitError
from pefomed_recipes.errors import ConfigError
from pefomed_recipes.records import Sample

from .fixtures.pictures import write_json
from .fixtures.slake import slake_rows, write_slake_hub, write_slake_original, write_slake_prepared

SECRET = "Mrs Doe has a fracture"


def read(root: Path, split: str = "train", language: str = "en") -> list[Sample]:
    return list(stream_samples("slake", root, split, language=language))


@pytest.mark.parametrize("below", ["", "Slake1.0"])
@pytest.mark.parametrize(("write", "layout"), [(write_slake_original, "original"), (write_slake_hub, "hub")])
def test_every_field_of_the_set_comes_over(tmp_path, caplog, write, layout, below):
    (tmp_path / below).mkdir(exist_ok=True)
    write(tmp_path / below)
    assert SOURCES["slake"].recognise(tmp_path).name == layout
    first, second, third = read(tmp_path)
    assert first == Sample(
        id="slake-train-0", task="vqa", image_paths=[str(tmp_path / below / "imgs/xmlab1/source.jpg")],
        instruction="Which modality is this?", answers=["MRI"], answer_type="OPEN", question_types=["MODALITY"],
        organ="Abdomen", modality="MRI", image_id="xmlab1/source.jpg", split="train", source="slake",
        licence="CC-BY-4.0",
    )  # fmt: skip
    assert (second.answers, second.question_types) == (["2"], ["QUANTITY"])
    assert (third.id, third.answers, third.answer_type, third.organ) == (
        "slake-train-3",
        ["Lung"],
        "CLOSED",
        "Chest_lung",
    )
    assert "left out of the train split: 1 without an answer" in caplog.text
    (validation,) = read(tmp_path, "validation")
    assert (validation.id, validation.answers) == ("slake-validation-5", ["Left Lung, Right"])
    assert all(Path(path).is_file() for sample in read(tmp_path, "test") for path in sample.image_paths)


def test_a_language_has_to_be_chosen_and_mixing_them_leaks(tmp_path):
    write_slake_original(tmp_path)
    with pytest.raises(ConfigError, match=r"holds questions in en and zh, found language None; .*leaks images"):
        load_samples("slake", tmp_path, "train")
    (chinese,) = read(tmp_path, language="zh")
    assert (chinese.instruction, chinese.answers, chinese.language) == ("图中有肺吗？", ["有"], "zh")
    assert len(read(tmp_path, language="all")) == 4
    tests = {language: {s.image_id for s in read(tmp_path, "test", language)} for language in ("en", "zh")}
    assert not tests["en"] & {s.image_id for s in read(tmp_path)}
    assert tests["zh"] <= {s.image_id for s in read(tmp_path)}


def test_packed_images_get_the_command_that_unpacks_them(tmp_path):
    write_slake_hub(tmp_path, unpacked=False)
    with pytest.raises(DatasetError, match=r"imgs\.zip: the images are still packed; unpack them: unzip '.*' -d '"):
        read(tmp_path)


@pytest.mark.parametrize("languages", [("en",), ("en", "zh")])
def test_the_prepared_form_lies_in_a_folder_for_each_language(tmp_path, languages):
    write_slake_prepared(tmp_path, languages=languages)
    assert SOURCES["slake"].recognise(tmp_path).name == "prepared"
    english = read(tmp_path)
    assert [(s.id, s.answers, s.question_types) for s in english] == [
        ("slake-train-0", ["MRI"], ["MODALITY"]), ("slake-train-1", ["2"], ["QUANTITY"]),
        ("slake-train-3", ["Lung"], ["ORGAN"]),
    ]  # fmt: skip
    if "zh" in languages:
        assert [sample.language for sample in read(tmp_path, language="zh")] == ["zh"]
    assert all(Path(path).is_file() for sample in english for path in sample.image_paths)


def test_an_id_in_both_languages_files_is_named_with_both_places(tmp_path):
    write_slake_prepared(tmp_path, languages=("en", "zh"))
    path = tmp_path / "zh" / "slake_train.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, [{**rows[0], "qid": 1}])
    with pytest.raises(
        DatasetError, match=r"zh/slake_train\.json, row 1: the id of en/slake_train\.json, row 2 again"
    ):
        read(tmp_path, language="all")


def test_original_and_prepared_samples_are_the_same(tmp_path):
    write_slake_original(tmp_path / "a")
    write_slake_prepared(tmp_path / "b")
    keys = ("id", "instruction", "answers", "answer_type", "question_types", "image_id", "language")
    original, prepared = (
        [tuple(str(getattr(sample, key)) for key in keys) for sample in read(tmp_path / name)] for name in "ab"
    )
    assert original == prepared


def test_missing_splits_and_repeated_ids_are_told(tmp_path):
    rows = slake_rows("train")
    write_json(tmp_path / "train.json", [*rows, rows[0] | {"question": SECRET}, rows[0] | {"answer": {"a": SECRET}}])
    with pytest.raises(DatasetError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert "row 6: the id of row 1 again" in text and "row 7: the answer is dict" in text and SECRET not in text
    with pytest.raises(MissingSplitError, match=r"found no file of the test split; expected test\.json"):
        read(tmp_path, "test")


def test_a_file_without_one_answer_is_no_split(tmp_path):
    write_json(tmp_path / "test.json", [row | {"answer": None} for row in slake_rows("test")])
    with pytest.raises(DatasetError, match=r"test\.json: found no row with an answer"):
        read(tmp_path, "test")

# SPDX-License-Identifier: Apache-2.0
"""Choosing samples by task and language, from lists and streams: what is left out never leaves nothing unsaid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pefomed_recipes.data.datasets_index import load_dataset, load_samples, present
from pefomed_recipes.data.reading import DatasetError
from pefomed_recipes.errors import ConfigError
from pefomed_recipes.records import Sample

from .conftest import DataCheck
from .fixtures import mimic_cxr, slake, vqa_rad
from .small_sets import write_set

Read = Callable[..., object]
QUESTION = {"question": "Is it?", "answer": "yes"}


def streamed(*arguments: str | Path, **options: str) -> list[object]:
    """Every row of a stream."""
    return list(load_dataset(*arguments, streaming=True, **options))  # type: ignore[arg-type]


@pytest.mark.integration
def test_a_stream_of_captions_has_the_reports_where_there_is_nothing_else(tmp_path: Path) -> None:
    mimic_cxr.write_mimic_cxr_tree(tmp_path / "mimic")
    stream = load_dataset("mimic_cxr", tmp_path / "mimic", "train", "caption", streaming=True)
    rows = list(load_dataset("mimic_cxr", tmp_path / "mimic", "test", "caption"))
    assert list(load_dataset("mimic_cxr", tmp_path / "mimic", "test", "caption", streaming=True)) == rows
    for _ in range(2):  # each time it is gone through
        assert [row["task"] for row in stream] == ["caption"] * 2
    mixed = write_set(tmp_path / "mixed", {"train": [{"report": "Clear."}, {"caption": "CT."}, QUESTION]})
    assert [row["answers"] for row in load_dataset("jsonl", mixed, "train", "caption", streaming=True)] == [["CT."]]


@pytest.mark.integration
@pytest.mark.parametrize("read", [load_dataset, streamed])
def test_a_task_that_is_unknown_or_not_there_is_an_error_in_lists_and_streams(tmp_path: Path, read: Read) -> None:
    root = write_set(tmp_path, {"test": [{"report": "Clear."}, QUESTION]})
    with pytest.raises(ConfigError, match=r"Unknown task 'vqaa' \(did you mean vqa"):
        read("jsonl", root, "test", "vqaa")
    with pytest.raises(DatasetError, match=r"no \[caption\] samples, found 1 report, 1 vqa"):
        read("jsonl", root, "test", "caption")


@pytest.mark.integration
def test_a_task_is_refused_before_a_stream_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown task"):
        load_dataset("jsonl", tmp_path / "nowhere", "test", "vqaa", streaming=True)


def test_a_language_that_leaves_nothing_is_named_with_what_there_is(tmp_path: Path) -> None:
    rows = [QUESTION, {**QUESTION, "language": "fr"}, {**QUESTION, "language": "fr"}]
    root = write_set(tmp_path, {"train": rows, "test": rows})
    for split in ("train", "test"):
        with pytest.raises(
            DatasetError, match=rf"0 of 3 {split} samples are in .*'de', found 2 in fr, 1 in en; choose"
        ):
            load_samples("jsonl", root, split, "vqa", language="de")
    write_set(root, {"validation": [QUESTION]})
    assert len(load_samples("jsonl", root, "train", language="fr")) == 2  # whatever the validation split is in
    assert len(load_samples("jsonl", root, "test", language="fr")) == 2
    assert len(load_samples("jsonl", root, "test", language="all")) == 3


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_language_that_a_data_set_cannot_hold_is_refused(tmp_path: Path, split: str) -> None:
    vqa_rad.write_vqa_rad_osf(tmp_path)
    with pytest.raises(ConfigError, match="VQA-RAD is in en only, found language 'de'; leave --language out"):
        load_samples("vqa_rad", tmp_path, split, language="de")
    assert load_samples("vqa_rad", tmp_path, "test", language="en")
    with pytest.raises(ConfigError, match=r"SLAKE holds questions in en and zh, found language 'de'"):
        load_samples("slake", tmp_path, split, language="de")


def test_the_check_says_which_language_leaves_nothing(tmp_path: Path, data_check: DataCheck) -> None:
    slake.write_slake_prepared(tmp_path / "slake")
    code, out, err = data_check("slake", "--root", "slake", "--language", "zh")
    assert (code, out) == (1, "")
    assert "0 of 3 train samples are in the language 'zh', found 3 in en" in err


def test_skipping_missing_images_until_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"test": [{}, {}, {}]})
    (root / "images/test-0.png").unlink()
    assert len(load_samples("jsonl", root, "test", on_missing="skip")) == 2
    for name in ("test-1", "test-2"):
        (root / f"images/{name}.png").unlink()
    with pytest.raises(DatasetError, match="3 image files are missing, and without them no sample is left"):
        load_samples("jsonl", root, "test", on_missing="skip")


def test_a_split_without_a_usable_sample_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('[{"image": "a.jpg", "caption": ""}]', encoding="utf-8")
    with pytest.raises(DatasetError, match="found no sample of the train split that can be used"):
        load_samples("clef_caption", tmp_path, "train")


def test_ids_that_come_twice_are_refused_whichever_reader_let_them_through(tmp_path: Path) -> None:
    samples = [Sample(name, "caption", [], "", ["CT."]) for name in ("a", "b", "a")]
    with pytest.raises(DatasetError, match="sample 3: the id of sample 1 again"):
        present(iter(samples), tmp_path, "skip")


def test_rows_of_a_credentialed_set_stay_credentialed_without_their_mark(tmp_path: Path) -> None:
    rows = [{**QUESTION, "source": source} for source in ("mimic_cxr", "MIMIC-CXR", "other")]
    samples = load_samples("jsonl", write_set(tmp_path, {"train": rows, "validation": [QUESTION]}), "train")
    assert [sample.credentialed for sample in samples] == [True, True, False]

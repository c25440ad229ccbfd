# SPDX-License-Identifier: Apache-2.0
"""People's own tables become the same samples as their JSON lines would, and stream."""

from __future__ import annotations

import csv
import gzip
import io
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pefomed_recipes.data.datasets_index import SOURCES, load_samples, stream_samples
from pefomed_recipes.data.reading import DatasetError, MissingSplitError, sample_features, samples_to_stream
from pefomed_recipes.records import Sample

from .fixtures.pictures import write_text

SECRET = "Mrs Doe has a fracture"


def table(header: str, *rows: list[Any], delimiter: str = ",", end: str = "\n") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end).writerows([header.split(), *rows])
    return out.getvalue()


def read(root: Path, split: str = "train") -> list[Sample]:
    return list(stream_samples("csv", root, split))


def problems(root: Path, content: str | bytes) -> str:
    write_text(root / "train.csv", content)
    with pytest.raises(DatasetError) as caught:
        read(root)
    assert SECRET not in str(caught.value)
    return str(caught.value)


VQA_HEADER = "image question answer answer_type question_type organ patient_id language id"
VQA_ROW = ["a.png", " Is it CT? ", "yes", "closed ", "prse, Pos", "CHEST", "7", "EN", "x"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encode", [str.encode, lambda text: b"\xef\xbb\xbf" + text.encode(), gzip.compress])
def test_tables_are_read_as_spreadsheets_write_them(tmp_path, delimiter, end, encode):
    text = table(VQA_HEADER.upper(), VQA_ROW, [""] * 9, delimiter=delimiter, end=end)
    packed = encode is gzip.compress
    name = ("train.tsv" if delimiter == "\t" else "train.csv") + (".gz" if packed else "")
    write_text(tmp_path / name, gzip.compress(text.encode()) if packed else encode(text))
    assert SOURCES["csv"].recognise(tmp_path).name == "csv"
    assert read(tmp_path) == [
        Sample(
            id="x", task="vqa", image_paths=[str(tmp_path / "a.png")], instruction="Is it CT?", answers=["yes"],
            answer_type="CLOSED", question_types=["PRSE", "POS"], organ="CHEST", image_id="a.png", patient_id="7",
            split="train", source="csv",
        )
    ]  # fmt: skip


def test_every_task_and_lists_in_cells(tmp_path):
    header = "image question answer caption report phrase box instruction"
    write_text(
        tmp_path / "train.csv",
        table(
            header,
            ['["a.png", "b.png"]', "Which?", '["one", 1]', "", "", "", "", ""],
            ["a.png", "", "", "[not a list", "", "", "", "Describe."],
            ["a.png", "", "", "", "FINDINGS:\r\nclear", "", "", ""],
            ["a.png", "", "", "", "", "effusion", "[1, 2, 30, 40]", ""],
            ["a.png", "", "", "", "", "nodule", "1 2 30 40", ""],
        ),
    )
    vqa, caption, report, first, second = read(tmp_path)
    assert (vqa.answers, [Path(path).name for path in vqa.image_paths]) == (["one", "1"], ["a.png", "b.png"])
    assert (caption.task, caption.answers, caption.instruction) == ("caption", ["[not a list"], "Describe.")
    assert (report.task, report.answers) == ("report", ["FINDINGS:\nclear"])
    assert first.answers == second.answers == ["{<1><2><30><40>}"]
    assert [sample.id for sample in (vqa, caption)] == ["train-2", "train-3"]


def test_numbers_and_gaps_stay_what_the_file_says(tmp_path):
    rows = [["a.png", "q", text] for text in ("3", "2.50", "5.0", "右肺", "nan")]
    write_text(tmp_path / "train.csv", table("image question answer", *rows))
    assert [sample.answers[0] for sample in read(tmp_path)] == ["3", "2.50", "5.0", "右肺", "nan"]


def test_one_table_may_hold_all_splits(tmp_path):
    rows = [["a.png", "q", "a", split] for split in ("train", "val", "test", "")]
    write_text(tmp_path / "all.csv", table("image question answer split", *rows))
    found = {split: [s.id for s in read(tmp_path, split)] for split in ("train", "validation", "test")}
    assert found == {"train": ["train-2", "train-5"], "validation": ["validation-3"], "test": ["test-4"]}
    write_text(tmp_path / "all.csv", table("image question answer", rows[0][:3]))
    with pytest.raises(MissingSplitError, match='no line has "split": "test"'):
        read(tmp_path, "test")


def test_splits_are_found_by_name_and_missing_ones_held_out(tmp_path):
    for number in range(4):
        Image.new("L", (2, 2)).save(tmp_path / f"{number}.png")
    write_text(tmp_path / "train.csv", table("image caption", *[[f"{n}.png", "CT"] for n in range(4)]))
    assert len(load_samples("csv", tmp_path, "train")) == 3 and len(load_samples("csv", tmp_path, "val")) == 1
    with pytest.raises(MissingSplitError, match=r"found train\.csv; expected test\.csv"):
        load_samples("csv", tmp_path, "test")
    write_text(tmp_path / "train.tsv", "image\tcaption\n")
    with pytest.raises(DatasetError, match=r"found train\.csv and train\.tsv; expected one file for train"):
        load_samples("csv", tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the first line is empty; expected the names of the columns"),
        ("\nimage,caption\n", "the first line is empty"),
        ("image,question,anwser\n", r"unknown columns 'anwser' \(did you mean answer\?\); expected some of image"),
        ("image,caption,Caption\n", "found the column 'caption' twice"),
        ("caption\nx\n", "no column image; found 1 other columns"),
        ("image,caption\n", "the file is empty; expected one sample a line"),
        ('image,"caption\n', "line 1: .*; expected the names of the columns"),
        ("image,caption\n".encode("utf-16"), "not UTF-8 text"),
        ('image,caption\na.png,"open\n' + SECRET, "quotes closed"),
        (b"image,caption\na.png,\xe9\n", "line 2: not UTF-8 text"),
    ],
)
def test_files_that_are_no_table_of_samples_are_refused(tmp_path, content, message):
    write_text(tmp_path / "train.csv", content)
    with pytest.raises(DatasetError, match=message) as caught:
        read(tmp_path)
    assert SECRET not in str(caught.value)


def test_a_damaged_gzip_file_is_named(tmp_path):
    whole = gzip.compress(table("image caption", *[["a.png", str(n)] for n in range(999)]).encode())
    for content in (whole[:-20], whole[:40] + b"\xff" * 40 + whole[80:], b"image,caption\n"):
        write_text(tmp_path / "train.csv.gz", content)
        with pytest.raises(DatasetError, match=r"train\.csv\.gz: "):
            read(tmp_path)


def test_all_problems_are_told_at_once_by_line(tmp_path):
    rows = [
        ["a.png", SECRET, "", ""],
        ["", SECRET, "yes", ""],
        ["a.png", SECRET, "yes", "maybe"],
        ["../a.png", SECRET, "yes", ""],
        ["a.png", SECRET],
        ['["a.png", 7]', SECRET, "yes", ""],
        ["a.png", SECRET, "[[1]]", ""],
    ]
    text = problems(tmp_path, table("image question answer answer_type", *rows))
    for part in (
        "7 problems",
        "line 2: answer is missing, empty or NaN",
        "line 3: image is missing or no text",
        "line 4: answer_type must be OPEN or CLOSED",
        "line 5: image '../a.png' lies outside the dataset's folder",
        "line 6: found 2 cells, expected 4",
        "line 7: image is missing or no text",
        "line 8: answer is a list",
    ):
        assert part in text


@pytest.mark.parametrize("box", ["1 2 3", "1,2,3,x", "10 10 5 5", "1.5 2 3 4"])
def test_boxes_must_be_boxes(tmp_path, box):
    assert "line 2: a box must" in problems(tmp_path, table("image phrase box", ["a.png", SECRET, box]))


def test_repeated_ids_are_told_with_both_places(tmp_path):
    rows = [["a.png", "c", name] for name in ("MRN-1", "MRN-2", "MRN-1", "MRN-1", "train-7", "")]
    text = problems(tmp_path, table("image caption id", *rows))
    assert "line 4: the id of line 2 again" in text and "line 5: the id of line 4 again" in text
    assert "line 7: the id of line 6 again" in text and "3 problems" in text and "MRN" not in text


def test_samples_come_one_by_one(tmp_path):
    # a quote that is never closed, far down: whoever stops before it never meets it
    rows = table("image caption", *[["a.png", "c"]] * 50) + 'a.png,"open'
    write_text(tmp_path / "train.csv", rows)
    assert len(list(islice(stream_samples("csv", tmp_path, "train"), 50))) == 50
    with pytest.raises(DatasetError, match="line 52"):
        read(tmp_path)


@pytest.mark.integration
def test_a_stream_of_datasets_has_the_same_samples_each_time(tmp_path):
    write_text(tmp_path / "train.csv", table(VQA_HEADER, VQA_ROW, [*VQA_ROW[:8], "y"]))
    stream = samples_to_stream(lambda: stream_samples("csv", tmp_path, "train"))
    assert stream.features == sample_features()
    for _ in range(2):
        assert [Sample(**row) for row in stream] == read(tmp_path)


def test_a_table_without_a_header_is_refused_without_its_texts(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("1.png,has mrs doe a fracture?,yes mrs doe has one\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="line 1: none of its 3 cells names a column") as refused:
        load_samples("csv", tmp_path, "train")
    assert "doe" not in str(refused.value)

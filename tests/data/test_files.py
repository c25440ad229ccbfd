# SPDX-License-Identifier: Apache-2.0
"""Tables, JSON and image names as they really are: marks, line ends, quotes, and names that lead elsewhere."""

from __future__ import annotations

import gzip
import json

import pytest

from pefomed_recipes.data.files import ImageFinder, peek_json, read_csv, read_json, read_tsv, split_in_name
from pefomed_recipes.data.reading import DatasetError, Problems

from .fixtures.pictures import write_pictures, write_text

SECRET = "Mrs Doe has a fracture"


def test_a_table_is_read_with_marks_line_ends_and_quotes(tmp_path):
    text = '\ufeff ID ,Caption\r\n\r\n1,"two\r\nlines, ""quoted"""\r\n2,Échographie\r\n,\r\n'
    for path in (
        write_text(tmp_path / "a.csv", text),
        write_text(tmp_path / "a.csv.gz", gzip.compress(text.encode("utf-8"))),
    ):
        problems = Problems(path, "line")
        rows = list(read_csv(path, problems, ("id", "caption")))
        assert rows == [
            (4, {"id": "1", "caption": 'two\nlines, "quoted"'}),
            (5, {"id": "2", "caption": "Échographie"}),
        ]
        assert not problems.found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,text\n1,a\n", "no column caption; found id, text"),
        (b"", "no column id, caption; found an empty file"),
        (f'id,caption\n1,a\n2,"{SECRET}\n3,b\n'.encode(), "line 4: unexpected end of data"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path, content, message):
    path = write_text(tmp_path / "a.csv", content)
    with pytest.raises(DatasetError, match=message) as caught:
        list(read_csv(path, Problems(path, "line"), ("id", "caption")))
    assert SECRET not in str(caught.value)


def test_rows_that_do_not_fit_and_bytes_that_are_no_text_are_named_by_line(tmp_path):
    path = write_text(tmp_path / "a.csv", b"id,caption\n1,a,b\n2,\xff\n3,c\n4\n")
    problems = Problems(path, "line")
    assert [row["id"] for _, row in read_csv(path, problems, ("id", "caption"))] == ["3"]
    assert [number for number, _ in problems.found] == [2, 3, 5]


def test_a_gzip_file_that_is_cut_short_or_none_is_refused(tmp_path):
    whole = gzip.compress(b"id,caption\n" + bytes(range(32, 127)) * 50)
    for content, message in ((whole[:-20], "cut short"), (b"id,caption\n", "cannot be read")):
        path = write_text(tmp_path / "a.csv.gz", content)
        with pytest.raises(DatasetError, match=message):
            list(read_csv(path, Problems(path), ("id",)))


def test_quotes_in_a_tab_separated_table_swallow_no_line(tmp_path):
    path = write_text(tmp_path / "a.csv", 'ID\tcaption\n1\t"open\n2\t"all ""of"" it"\n3\t"a" and "b"\n4\tx\ty\n')
    problems = Problems(path, "line")
    rows = [row["caption"] for _, row in read_tsv(path, problems, ("id", "caption"))]
    assert rows == ['"open', 'all "of" it', '"a" and "b"']
    assert problems.found == [(5, "found 3 cells between TABs, expected 2")]


@pytest.mark.parametrize("content", ["[", "{", "", "<html>", '{"train": [', "[" * 10000])
def test_what_is_no_json_is_not_recognised_and_refused(tmp_path, content):
    path = write_text(tmp_path / "a.json", content)
    assert peek_json(path) is None
    with pytest.raises(DatasetError):
        read_json(path)


def test_the_beginning_of_a_long_json_file_is_enough_to_recognise_it(tmp_path):
    rows = [{"image": "1.jpg", "caption": "x" * 1000}] * 100
    assert peek_json(write_text(tmp_path / "list.json", "\ufeff" + json.dumps(rows)))[0]["image"] == "1.jpg"
    assert list(peek_json(write_text(tmp_path / "dict.json", json.dumps({"train": rows}, indent=1)))) == ["train"]


def test_an_image_is_found_in_any_of_its_places(tmp_path):
    write_pictures(tmp_path, "images/a.jpg", "b.jpg")
    finder = ImageFinder(tmp_path, ["{name}", "images/{name}"])
    assert finder.find("a.jpg") == str(tmp_path / "images" / "a.jpg")
    assert finder.find("./b.jpg") == str(tmp_path / "b.jpg")
    assert ImageFinder(tmp_path, ["{name}", "images/{name}"]).find("c.jpg") == str(tmp_path / "c.jpg")
    assert ImageFinder(tmp_path, ["images/{file}"]).find("/elsewhere/a.jpg") == str(tmp_path / "images" / "a.jpg")


@pytest.mark.parametrize("name", ["../a.jpg", "x/../../a.jpg", "/a.jpg", "", "..", "a\0.jpg"])
def test_an_image_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    problems = Problems(tmp_path)
    assert ImageFinder(tmp_path, ["images/{name}"]).find_or_note(name, 7, problems) is None
    assert problems.found[0][0] == 7


@pytest.mark.parametrize(
    ("name", "split"),
    [("roco_val", "validation"), ("train-00000-of-00027", "train"), ("TestSet", "train"), ("clef", "train"),
     ("iu_test", "test"), ("valid", "validation"), ("mimic-validate", "validation")],
)  # fmt: skip
def test_a_file_name_says_its_split(name, split):
    assert split_in_name(name) == split

# SPDX-License-Identifier: Apache-2.0
"""A folder of images with JSON lines becomes samples; whatever is wrong in it is told at once, without its texts."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pefomed_recipes.data.datasets_index import SOURCES, hold_out, load_dataset, load_samples
from pefomed_recipes.data.jsonl import read_jsonl_samples
from pefomed_recipes.data.reading import DatasetError, MissingSplitError, sample_features, samples_to_dataset
from pefomed_recipes.errors import ConfigError
from pefomed_recipes.records import Sample

SECRET = "Mrs Doe has a fracture"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for number in range(4):
        Image.new("L", (2, 2)).save(folder / "images" / f"{number}.png")
    return folder


def vqa(**keys: Any) -> dict[str, Any]:
    return {"image": "images/0.png", "question": "Is it CT?", "answer": "yes", **keys}


def write(root: Path, *rows: dict[str, Any] | str, name: str = "train.jsonl") -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def problems(root: Path, *rows: dict[str, Any] | str) -> str:
    write(root, *rows)
    with pytest.raises(DatasetError) as caught:
        read_jsonl_samples(root, "train")
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_each_task_becomes_its_sample(root):
    write(
        root,
        vqa(answer_type="CLOSED ", question_type="prse, Pos/abn", organ="CHEST", patient_id=7, language="EN")
        | {"linked_id": "q1"},
        {"image": "images/1.png", "caption": " Axial CT. "},
        {"image": ["images/2.png", "images/3.png"], "report": ["Clear.", "Normal."], "instruction": "Report, please."},
        {"image": "images/3.png", "phrase": "left effusion", "box": [1, 2, 30, 40], "id": "box"},
    )
    first, caption, report, refer = read_jsonl_samples(root, "train")
    assert first == Sample(
        id="train-1", task="vqa", image_paths=[str(root / "images" / "0.png")], instruction="Is it CT?",
        answers=["yes"], answer_type="CLOSED", question_types=["PRSE", "POS", "ABN"], organ="CHEST",
        image_id="images/0.png", patient_id="7", linked_id="q1", split="train",
    )  # fmt: skip
    assert (caption.task, caption.instruction, caption.answers) == ("caption", "", ["Axial CT."])
    assert (report.instruction, report.answers) == ("Report, please.", ["Clear.", "Normal."])
    assert len(report.image_paths) == 2 and report.image_id == "images/2.png"
    assert (refer.id, refer.instruction, refer.answers) == ("box", "left effusion", ["{<1><2><30><40>}"])


def test_a_task_can_be_picked_and_an_absent_one_is_named(root):
    write(root, vqa(), {"image": "images/1.png", "caption": "CT."})
    assert [sample.task for sample in read_jsonl_samples(root, "train", "caption")] == ["caption"]
    with pytest.raises(DatasetError, match=r"no \[refer\] samples, found 1 caption, 1 vqa; .* phrase and box"):
        read_jsonl_samples(root, "train", "refer")
    with pytest.raises(ConfigError, match=r"Unknown task 'vqaa' \(did you mean vqa\?\)"):
        read_jsonl_samples(root, "train", "vqaa")


def test_bom_crlf_blank_lines_and_non_ascii_are_read(root):
    lines = [
        json.dumps(vqa(question="¿Dónde? 在哪里", answer="右肺"), ensure_ascii=False),
        "",
        "  \t",
        json.dumps(vqa()),
    ]
    (root / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    first, second = read_jsonl_samples(root, "train")
    assert (first.instruction, first.answers, second.id) == ("¿Dónde? 在哪里", ["右肺"], "train-4")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (3, ["3"]), (2.5, ["2.5"]), (5.0, ["5"]), (0, ["0"]), (" yes\t", ["yes"]), (["a", 2, "c "], ["a", "2", "c"]),
        (-0.5, ["-0.5"]), ("5.0", ["5.0"]),
    ],
)  # fmt: skip
def test_answers_may_be_texts_numbers_and_lists(root, answer, expected):
    write(root, vqa(answer=answer))
    assert read_jsonl_samples(root, "train")[0].answers == expected


@pytest.mark.parametrize("answer", ["", "  ", None, float("nan"), [], [""], ["yes", None]])
def test_answers_that_hold_nothing_are_refused(root, answer):
    assert "line 2: answer is missing, empty or NaN" in problems(root, vqa(), vqa(answer=answer))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (True, "boolean"),
        ({"a": SECRET}, "JSON object"),
        ([[SECRET]], "list"),
        (float("inf"), "number that is infinite"),
    ],
)
def test_answers_of_another_kind_are_refused(root, answer, kind):
    assert f"line 1: answer is a {kind}; expected text or a number" in problems(root, vqa(answer=answer))


def test_gaps_of_a_table_count_as_absent(root):
    write(root, vqa(caption=None, report=float("nan"), box=None, organ=None, answer_type=float("nan"), id=None))
    (sample,) = read_jsonl_samples(root, "train")
    assert (sample.task, sample.organ, sample.answer_type, sample.id) == ("vqa", "", "", "train-1")


def test_question_types_are_split_and_each_stands_once(root):
    write(root, vqa(question_type=["PRES; pos", "PRES"]), vqa(question_type="SIZE,,"), vqa())
    assert [sample.question_types for sample in read_jsonl_samples(root, "train")] == [["PRES", "POS"], ["SIZE"], []]


def test_all_problems_of_a_file_are_told_at_once_by_line(root):
    text = problems(
        root,
        vqa(anwser=SECRET),
        vqa(answer_type=SECRET),
        {"image": "images/0.png", "question": SECRET},
        {"image": "images/0.png", "question": SECRET, "answer": "yes", "caption": SECRET},
        {"image": "images/0.png"},
        '{"image": "images/0.png", "question": "' + SECRET,
        "3",
        vqa(image=7, id=[SECRET]),
        {"image": "images/0.png", "phrase": SECRET, "box": [1, 2, 3, 400]},
        vqa(instruction=SECRET),
        {"image": "images/0.png", "caption": 5},
        vqa(question="half \ud83d"),
    )
    assert text.startswith(f"{root / 'train.jsonl'}: 13 problems\n")
    for part in (
        "line 1: unknown key 'anwser' (did you mean answer?)",
        "line 2: answer_type must be OPEN or CLOSED",
        "line 3: answer is missing, empty or NaN",
        "line 4: found question and answer and caption; expected one of: question + answer, caption, report, phrase",
        "line 5: found no text; expected one of",
        "line 6: not JSON (Unterminated string starting at, column 39)",
        "line 7: found a number, expected a JSON object",
        "line 8: image is missing or no text",
        "line 8: id is a list; expected text or a number",
        "line 9: a box must have 0 <= x1 < x2 <= 100",
        "line 10: instruction goes with caption or report only",
        "line 11: caption is a number; expected text",
        "line 12: question holds half a character",
    ):
        assert f"\n  {part}" in text


def test_the_first_twenty_problems_are_listed_and_the_rest_counted(root):
    text = problems(root, *[vqa(answer="") for _ in range(33)])
    assert "33 problems" in text and "line 20:" in text and "line 21:" not in text
    assert text.endswith("\n  and 13 more")


def test_ids_must_differ_and_are_not_repeated_in_the_error(root):
    text = problems(root, vqa(id="MRN-123"), vqa(), vqa(id="MRN-123"), vqa(id="train-2"))
    assert "line 3: the id of line 1 again; ids must differ" in text and "MRN-123" not in text
    assert "line 4: the id of line 2 again" in text


def test_missing_images_are_listed_by_name_once_each(root):
    write(root, vqa(image="images/x.png"), vqa(image=["images/0.png", "y.png"]), vqa(image="images/x.png"))
    with pytest.raises(DatasetError) as caught:
        load_samples("jsonl", root, "train")
    assert "2 image files are missing" in str(caught.value)
    assert "images/x.png of train-1 and 1 more" in str(caught.value)
    assert "y.png of train-2" in str(caught.value)


def test_samples_without_their_image_can_be_left_out(root, caplog):
    write(root, vqa(image="images/x.png"), vqa(image="images/1.png"), name="test.jsonl")
    with caplog.at_level(logging.WARNING):
        (kept,) = load_samples("jsonl", root, "test", on_missing="skip")
    assert kept.id == "test-2"
    assert "1 image file is missing" in caplog.text and "images/x.png of test-1" in caplog.text


@pytest.mark.parametrize(
    "image", ["../outside.png", "images/../../outside.png", "/etc/hosts", ["images/0.png", "../outside.png"]]
)
def test_image_paths_that_leave_the_folder_are_refused(root, image):
    Image.new("L", (2, 2)).save(root.parent / "outside.png")
    text = problems(root, vqa(image=image))
    assert "lies outside the dataset's folder; copy or link it into the folder" in text


def test_paths_that_stay_inside_are_normalised(root):
    write(root, vqa(image="images/../images/./1.png"), vqa(image=str(root / "images" / "1.png")))
    samples = read_jsonl_samples(root, "train")
    assert {sample.image_id for sample in samples} == {"images/1.png"}
    assert {path for sample in samples for path in sample.image_paths} == {str(root / "images" / "1.png")}


def test_a_relative_root_yields_absolute_paths(root, monkeypatch):
    write(root, vqa())
    monkeypatch.chdir(root.parent)
    assert read_jsonl_samples("data", "train") == read_jsonl_samples(root, "train")


def test_a_null_byte_in_a_path_is_a_missing_image(root):
    write(root, vqa(image="a\x00b.png"), name="test.jsonl")
    with pytest.raises(DatasetError, match="1 image file is missing"):
        load_samples("jsonl", root, "test")


@pytest.mark.parametrize("name", ["validation", "val", "valid", "validate"])
def test_validation_files_may_be_spelt_in_several_ways(root, name):
    write(root, vqa(), name=f"{name}.jsonl")
    for asked in ("validation", "val"):
        (sample,) = read_jsonl_samples(root, asked)
        assert (sample.id, sample.split) == ("validation-1", "validation")


def test_two_files_for_one_split_are_refused(root):
    write(root, vqa(), name="val.jsonl")
    write(root, vqa(), name="validation.jsonl")
    with pytest.raises(DatasetError, match=r"found val\.jsonl and validation\.jsonl; expected one file"):
        read_jsonl_samples(root, "validation")


def test_a_single_file_holds_all_splits(root):
    write(root, vqa(), vqa(split="test"), vqa(split="val"), vqa(split="train"), name="all.jsonl")
    found = {split: [s.id for s in read_jsonl_samples(root, split)] for split in ("train", "validation", "test")}
    assert found == {"train": ["train-1", "train-4"], "validation": ["validation-3"], "test": ["test-2"]}


def test_a_single_file_without_the_split_says_so(root):
    write(root, vqa(), name="all.jsonl")
    with pytest.raises(MissingSplitError, match='no line has "split": "test"'):
        read_jsonl_samples(root, "test")
    write(root, vqa(split="tarin"), name="all.jsonl")
    with pytest.raises(DatasetError, match="line 1: split is not train; expected one of train, validation, test"):
        read_jsonl_samples(root, "train")


def test_a_split_key_must_agree_with_its_file(root):
    assert "line 2: split is not train" in problems(root, vqa(split="train"), vqa(split="test"))
    write(root, vqa(), vqa(split="test"), name="test.jsonl")
    assert len(read_jsonl_samples(root, "test")) == 2


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"[\n{}\n]", "found a JSON list, expected JSON lines"),
        ("{}".encode("utf-16"), "found UTF-16 text"),
        (b'{"image": "\xe9.png"}', "line 1: not UTF-8 text"),
        (b"[" * 20 + b"{", "found a JSON list"),
        (b'{"a":' * 100_000, "line 1: JSON with a number too long or nested too deep"),
    ],
)
def test_files_that_are_no_json_lines_are_refused(root, content, found):
    (root / "train.jsonl").write_bytes(content)
    with pytest.raises(DatasetError, match=found):
        read_jsonl_samples(root, "train")


def test_missing_folders_and_splits_are_named(root):
    with pytest.raises(DatasetError, match=r"nowhere: no such folder; expected the dataset's folder"):
        read_jsonl_samples(root / "nowhere", "train")
    with pytest.raises(MissingSplitError, match=r"found no \.jsonl file; expected train\.jsonl"):
        read_jsonl_samples(root, "train")
    write(root, vqa())
    with pytest.raises(DatasetError, match="a file; expected the dataset's folder"):
        read_jsonl_samples(root / "train.jsonl", "train")
    with pytest.raises(MissingSplitError, match=r"found train\.jsonl; expected test\.jsonl"):
        read_jsonl_samples(root, "test")
    with pytest.raises(ConfigError, match=r"Unknown split 'tests' \(did you mean test\?\)"):
        read_jsonl_samples(root, "tests")


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_keep_every_field_of_every_sample(root, streaming):
    rows = [vqa(question_type="PRES", answer=[1, "one"]), {"image": "images/1.png", "caption": "CT"}]
    write(root, *rows, name="test.jsonl")
    samples = load_samples("jsonl", root, "test")
    dataset = load_dataset("jsonl", root, "test", streaming=streaming)
    assert dataset.features == sample_features()
    assert [Sample(**row) for row in dataset] == samples
    captions = load_dataset("jsonl", root, "test", "caption", streaming=streaming)
    assert [row["answers"] for row in captions] == [["CT"]]


def test_features_hold_without_rows_and_name_every_field():
    assert samples_to_dataset([]).features == sample_features()
    assert list(sample_features()) == list(Sample.__dataclass_fields__)


def grouped(count: int, **keys: str) -> list[Sample]:
    """Two samples an image."""
    return [
        Sample(
            id=f"{number}-{turn}", task="vqa", image_paths=[f"/{number}.png"], instruction="q", answers=["a"],
            image_id=f"{number}.png", **{key: text.format(number // 2) for key, text in keys.items()},
        )
        for number in range(count)
        for turn in range(2)
    ]  # fmt: skip


def test_held_out_samples_share_no_image_study_or_patient_with_the_rest():
    for keys in ({}, {"patient_id": "p{}"}, {"study_id": "s{}"}):
        samples = grouped(40, **keys)
        kept, held_out = hold_out(samples, 0.1, seed=0)
        assert len(held_out) == 8 and len(kept) == 72
        assert [s for s in samples if s in kept] == kept
        for name in ("image_id", *keys):
            assert not {getattr(s, name) for s in kept} & {getattr(s, name) for s in held_out}


def test_images_shared_by_two_studies_stay_together():
    samples = grouped(20)
    bridge = Sample(
        id="b", task="report", image_paths=["/0.png", "/1.png"], instruction="", answers=["a"], image_id="b"
    )
    for seed in range(30):
        _, held_out = hold_out([*samples, bridge], 0.3, seed)
        ids = {sample.id for sample in held_out}
        assert len(ids & {"0-0", "0-1", "1-0", "1-1", "b"}) in (0, 5)


def test_holding_out_is_the_same_in_any_folder_and_hangs_on_the_seed():
    here = grouped(40)
    moved = [Sample(**{**vars(s), "image_paths": ["/elsewhere" + s.image_paths[0]]}) for s in here]
    ids = [{s.id for s in hold_out(rows, 0.2, seed)[1]} for rows, seed in ((here, 0), (moved, 0), (here, 1))]
    assert ids[0] == ids[1] != ids[2]
    # A fixed expectation, so that a changed rule that would let trained images into validation shows.
    assert {s.image_id for s in hold_out(grouped(6), 0.34, 0)[1]} == {"1.png", "4.png"}


def test_each_side_of_a_hold_out_gets_something():
    for share in (0.0, 1.0):
        kept, held_out = hold_out(grouped(2), share, 0)
        assert len(kept) == len(held_out) == 2
    with pytest.raises(DatasetError, match="Cannot hold out: found 1 group"):
        hold_out(grouped(1), 0.1, 0)


def test_without_a_validation_file_a_tenth_of_the_images_stands_in(root, caplog):
    for number in range(20):
        Image.new("L", (2, 2)).save(root / f"{number}.png")
    rows = [
        {"image": f"{n}.png", **text} for n in range(20) for text in ({"caption": "c"}, {"question": "q", "answer": 1})
    ]
    write(root, *rows)
    with caplog.at_level(logging.WARNING):
        train, validation = (load_samples("jsonl", root, split, "vqa") for split in ("train", "val"))
    assert [record.getMessage() for record in caplog.records] == [
        f"{root} has no validation split: 4 of 40 training samples (10 % of the images) are held out for it"
    ] * 2
    assert len(train) == 18 and len(validation) == 2
    assert {sample.split for sample in validation} == {"validation"}
    captions = load_samples("jsonl", root, "train", "caption")
    assert {s.image_id for s in captions} == {s.image_id for s in train}
    assert not {s.image_id for s in train} & {s.image_id for s in validation}


def test_a_validation_file_is_used_where_there_is_one(root, caplog):
    write(root, vqa(), vqa(image="images/1.png"))
    write(root, vqa(image="images/2.png"), name="validation.jsonl")
    write(root, vqa(image="images/3.png"), name="test.jsonl")
    counts = {split: len(load_samples("phantoms", root, split)) for split in ("train", "validation", "test")}
    assert counts == {"train": 2, "validation": 1, "test": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_unknown_datasets_get_a_suggestion(root):
    with pytest.raises(ConfigError, match=r"Unknown dataset 'josnl' \(did you mean jsonl\?\); expected one of jsonl"):
        load_samples("josnl", root, "train")
    assert set(SOURCES) >= {"jsonl", "phantoms"}


def test_reading_samples_imports_neither_torch_nor_datasets():
    heavy = "{'torch', 'datasets', 'transformers'}"
    code = f"import sys, pefomed_recipes.data.datasets_index; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

# SPDX-License-Identifier: Apache-2.0
"""The split without leaks: groups stay whole, nothing is lost, and it is the same everywhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pefomed_recipes.data.checks import check_dataset
from pefomed_recipes.data.datasets_index import stream_samples
from pefomed_recipes.data.reading import DatasetError
from pefomed_recipes.data.resplitting import assign_groups, write_disjoint_split
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.records import Sample

from .conftest import DataCheck, check, found, shared
from .fixtures.vqa_rad import write_vqa_rad_hub, write_vqa_rad_osf, write_vqa_rad_prepared
from .small_sets import write_set

Rows = Mapping[str, Any]


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """40 images with 3 to 5 questions each; 12 of them are in both splits, two have twins under other names."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for image in range(40):
        for number in range(3 + image % 3):
            split = "test" if image < 12 and number == 0 else "train"
            shared = {"image": f"images/{image}.png", "patient_id": f"p{image // 2}"} if image > 30 else {}
            asked = {"id": f"{image}-{number}", "question": f"Is it {number}?", "answer": "yes"}
            rows[split].append({"image": f"images/{image}.png", **shared, **asked})
    rows["test"].append({"id": "twin", "image": "images/deep/twin.png", "answer": "no"})
    root = write_set(tmp_path / "leaky", rows)
    shutil.copyfile(root / "images/25.png", root / "images/deep/twin.png")
    return root


def test_the_new_split_shares_nothing_and_keeps_all_samples_and_sizes(leaky: Path, tmp_path: Path) -> None:
    assert not check(leaky).report["passed"]
    out = write_disjoint_split("jsonl", leaky, tmp_path / "new", workers=1)
    checked = check(out)
    assert {entry["groups"] for entry in checked.report["leakage"]} == {0}
    assert found(checked, "leakage") == []
    before, after = (
        {split: {sample.id: sample for sample in stream_samples("jsonl", root, split)} for split in ("train", "test")}
        for root in (leaky, out)
    )
    assert before["train"] | before["test"] == {
        id: replace(
            sample,
            image_paths=[str(leaky / Path(path).relative_to(out)) for path in sample.image_paths],
            split="train" if id in before["train"] else "test",
        )
        for id, sample in (after["train"] | after["test"]).items()
    }
    assert abs(len(after["test"]) - len(before["test"])) <= 10  # the largest group: two images of a patient
    record = json.loads((out / "split.json").read_text(encoding="utf-8"))
    assert (record["method"], record["seed"]) == ("image-disjoint", 0)
    assert record["before"]["train"]["samples"] == len(before["train"])
    assert record["after"]["test"]["samples"] == len(after["test"])
    assert str(tmp_path) not in json.dumps(record)


def test_the_new_split_is_the_same_wherever_the_data_lies_and_another_for_another_seed(
    leaky: Path, tmp_path: Path
) -> None:
    elsewhere = Path(shutil.copytree(leaky, tmp_path / "elsewhere"))
    first = write_disjoint_split("jsonl", leaky, tmp_path / "a", workers=1)
    second = write_disjoint_split("jsonl", elsewhere, tmp_path / "b", workers=1)
    third = write_disjoint_split("jsonl", leaky, tmp_path / "c", seed=1, workers=1)
    contents = [{path.name: path.read_bytes() for path in folder.glob("*.json*")} for folder in (first, second, third)]
    assert contents[0] == contents[1]
    assert contents[0]["test.jsonl"] != contents[2]["test.jsonl"]


def test_images_of_the_new_split_take_no_space_and_outlive_the_old_folder(leaky: Path, tmp_path: Path) -> None:
    out = write_disjoint_split("jsonl", leaky, tmp_path / "new", workers=1)
    assert os.path.samefile(leaky / "images/3.png", out / "images/3.png")
    shutil.rmtree(leaky)
    assert check(out).report["images"]["missing"] == 0


def test_every_task_and_term_survives_the_new_split(tmp_path: Path) -> None:
    terms = {"credentialed": True, "licence": "closed", "source": "mimic_cxr", "answer_type_derived": True}
    rows: list[dict[str, Any]] = [
        {"phrase": "left effusion", "box": [5, 40, 90, 85], **terms},
        {"caption": ["One.", "Two."], "instruction": "Say it.", "organ": "CHEST", "language": "zh"},
        {"image": ["images/f.png", "images/l.png"], "report": "Clear.", "study_id": "s", "patient_id": "p"},
        {"question": "Is it?", "answer": "no", "answer_type": "CLOSED", "question_type": ["POS", "PRES"]},
        {"question": "Is it so?", "answer": "no", "linked_id": "03f4"},
    ]
    rows = [{"id": f"sample{n}", **row} for n, row in enumerate(rows)]
    root = write_set(tmp_path / "data", {"train": rows[:3], "test": rows[3:]})
    out = write_disjoint_split("jsonl", root, tmp_path / "new", workers=1)
    old, new = (
        {
            sample.id: replace(
                sample, split="", image_paths=[os.path.relpath(path, folder) for path in sample.image_paths]
            )
            for split in ("train", "test")
            for sample in stream_samples("jsonl", folder, split)
        }
        for folder in (root, out)
    )
    assert new == old
    assert new["sample0"].credentialed and new["sample0"].answer_type_derived


@pytest.mark.parametrize("write", [write_vqa_rad_prepared, write_vqa_rad_osf, write_vqa_rad_hub])
def test_vqa_rad_leaks_all_its_test_images_in_every_form_and_a_new_split_ends_that(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "rad")
    leak = shared(check_dataset("vqa_rad", tmp_path / "rad", workers=1), "image")
    assert leak is not None and leak["groups"] == leak["of"] > 0
    out = write_disjoint_split("vqa_rad", tmp_path / "rad", tmp_path / "new", workers=1)
    assert found(check(out), "leakage") == []
    assert {sample.source for sample in stream_samples("jsonl", out, "test")} == {"vqa_rad"}


@pytest.mark.parametrize("seed", range(6))
def test_what_vqa_rad_generated_from_a_question_is_never_in_the_new_test_split_beside_it(
    tmp_path: Path, seed: int
) -> None:
    write_vqa_rad_prepared(tmp_path / "rad")
    out = write_disjoint_split("vqa_rad", tmp_path / "rad", tmp_path / "new", seed=seed, workers=1)
    record = json.loads((out / "split.json").read_text(encoding="utf-8"))
    test = {sample.id for sample in stream_samples("jsonl", out, "test")}
    train = {sample.id for sample in stream_samples("jsonl", out, "train")}
    person, generated = "vqa_rad-train-0", "vqa_rad-train-9"
    in_test = person in test
    assert (generated in test, {person, generated} <= train) == (False, not in_test)
    assert record["repeats_left_out"] == {"test": int(in_test)}
    assert record["after"]["test"]["samples"] == len(test)
    assert [split for split, _ in found(check(out), "duplicates")] == ([] if in_test else ["train"])


def test_each_split_gets_a_group_and_too_few_groups_are_refused() -> None:
    samples = [Sample(str(n), "vqa", [f"/{n}.png"], "?", ["a"], image_id=str(n)) for n in range(3)]
    wanted = {"train": 1000, "validation": 1, "test": 1}
    assert set(assign_groups(samples, [0, 1, 2], wanted, 0).values()) == set(wanted)
    with pytest.raises(DatasetError, match=r"found 2 group\(s\)"):
        assign_groups(samples, [0, 0, 1], wanted, 0)


def test_a_split_is_not_made_of_unusable_images_nor_into_a_folder_with_something_in_it(
    leaky: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(PeFoMedError, match="not empty"):
        write_disjoint_split("jsonl", leaky, tmp_path / "full", workers=1)
    (leaky / "images/5.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"(?s)1 images cannot be used.*images/5\.png: the file is empty"):
        write_disjoint_split("jsonl", leaky, tmp_path / "new", workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "leaky"]


def test_the_command_makes_the_split_and_checks_it(leaky: Path, tmp_path: Path, data_check: DataCheck) -> None:
    code, out, err = data_check(
        "jsonl", "--root", leaky, "--make-split", "image-disjoint", "--out", "new", "--allow", "duplicates"
    )
    assert (code, "**Passed.**" in out) == (0, True)
    assert err == f"wrote new\nwrote {Path('new/check')}\n"
    assert (tmp_path / "new/check/check.md").is_file()

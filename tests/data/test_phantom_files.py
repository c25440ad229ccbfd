# SPDX-License-Identifier: Apache-2.0
"""Phantoms on disk: a data set in the generic form, whole or not there at all, and a contact sheet to look at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pefomed_recipes.data import phantoms
from pefomed_recipes.data.jsonl import read_jsonl_samples
from pefomed_recipes.data.phantoms import case_seed, contact_sheet, draw_phantom, render_phantom, write_phantoms
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.records import TASKS

COUNTS = {"train": 12, "validation": 3, "test": 4}


def lines(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "data", tasks=TASKS, cases_per_split=COUNTS, seed=3)


def test_every_split_has_its_own_images_and_every_line_its_image(folder: Path) -> None:
    pixels = set()
    for split, count in COUNTS.items():
        rows = lines(folder, split)
        assert len({row["id"] for row in rows}) == len(rows)
        images = {row["image"] for row in rows}
        assert len(images) == count == len({row["patient_id"] for row in rows})
        for image in images:
            with Image.open(folder / image) as opened:
                assert opened.mode == "L" and opened.size == (64, 64)
                pixels.add(opened.tobytes())
    assert len(pixels) == sum(COUNTS.values()) == len(list((folder / "images").iterdir()))


def test_the_files_hold_the_case_of_their_seed(folder: Path) -> None:
    phantom = draw_phantom(case_seed(3, "test", 2))
    with Image.open(folder / "images" / "test-000002.png") as image:
        assert np.array_equal(np.asarray(image), render_phantom(phantom, 64))
    report = next(row["report"] for row in lines(folder, "test") if row["id"] == "test-000002-report")
    assert report == phantoms.report(phantom)


@pytest.mark.parametrize("task", TASKS)
def test_the_reader_takes_every_task_from_the_folder(folder: Path, task: str) -> None:
    samples = read_jsonl_samples(folder, "train", task=task)
    assert {sample.task for sample in samples} == {task}
    assert len(samples) >= (5 if task == "refer" else 12)
    if task == "vqa":
        assert all(sample.answer_type and sample.question_types and sample.organ for sample in samples)


def test_the_same_settings_are_not_written_twice_and_others_are_refused(folder: Path) -> None:
    before = (folder / "train.jsonl").stat().st_mtime_ns
    write_phantoms(folder, tasks=TASKS[::-1], cases_per_split=COUNTS, seed=3)
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(PeFoMedError, match="other settings"):
        write_phantoms(folder, tasks=TASKS, cases_per_split=COUNTS, seed=4)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(PeFoMedError, match="holds no phantoms"):
        write_phantoms(tmp_path, cases_per_split={"train": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_stopped_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def stop_at_the_third(phantom: phantoms.Phantom, size_px: int) -> np.ndarray:
        written.append(phantom)
        if len(written) == 3:
            raise KeyboardInterrupt
        return render_phantom(phantom, size_px)

    monkeypatch.setattr(phantoms, "render_phantom", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "data", cases_per_split={"train": 5})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    # a killed process cannot tidy up: what it left is no hindrance
    (tmp_path / ".data.partial" / "images").mkdir(parents=True)
    assert len(lines(write_phantoms(tmp_path / "data", cases_per_split={"train": 2}), "train")) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_all_wrong_settings_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_phantoms(tmp_path / "data", tasks=("vqu",), cases_per_split={"trian": 0}, difficulty="hrad", size_px=4)
    for part in ("did you mean vqa", "did you mean train", "0 cases", "did you mean hard", "4 px"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_contact_sheet_shows_all_views_with_lesion_boxes(tmp_path: Path) -> None:
    path = contact_sheet(tmp_path / "new" / "sheet.png", cases=10, columns=5, size_px=96)
    with Image.open(path) as sheet:
        assert sheet.mode == "RGB" and sheet.width == 5 * (96 + 20) and sheet.height > 2 * 96
        colours = {colour for _, colour in sheet.getcolors(1 << 24)}
    assert (255, 190, 60) in colours  # a box
    with pytest.raises(ConfigError, match="0 cases"):
        contact_sheet(path, cases=0)

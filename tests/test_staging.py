# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole or not at all, and nothing is left beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pefomed_recipes.staging import whole_file, whole_folder


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    for text in ("first", "second"):
        with whole_file(path) as staged:
            staged.write_text(text, encoding="utf-8")
            assert not path.exists() or path.read_text(encoding="utf-8") == "first"
        assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_after_an_error_the_old_file_stands_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as staged:
        staged.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "something"])
def test_a_folder_takes_its_place_and_only_replaces_content_when_told_so(tmp_path: Path, before: str) -> None:
    folder, left = tmp_path / "out", tmp_path / ".out.partial"
    left.mkdir()  # of a run that was killed
    (left / "half").touch()
    if before != "nothing":
        folder.mkdir()
    if before == "something":
        (folder / "kept").touch()
        with pytest.raises(OSError), whole_folder(folder) as staged:
            (staged / "new").touch()
        assert [p.name for p in folder.iterdir()] == ["kept"]
    with whole_folder(folder, replace=before == "something") as staged:
        (staged / "new").touch()
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_after_an_error_the_old_folder_stands(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="broken"), whole_folder(tmp_path / "out", replace=True):
        raise ValueError("broken")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]

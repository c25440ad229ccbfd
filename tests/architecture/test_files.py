# SPDX-License-Identifier: Apache-2.0
"""Every file: licence line, docstring, size; every folder: listed as a package."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

MAX_LINES = 500


def test_every_python_file_starts_with_the_licence_line(python_files: list[Path]) -> None:
    expected = "# SPDX-License-Identifier: Apache-2.0\n"
    assert [str(path) for path in python_files if not path.read_text(encoding="utf-8").startswith(expected)] == []


def test_every_python_file_says_what_it_is_for(python_files: list[Path]) -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in python_files}
    assert [str(path) for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_no_python_file_is_longer_than_500_lines(python_files: list[Path]) -> None:
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_every_folder_with_python_files_is_installed(
    repo: Path, room_files: list[Path], rooms: dict[str, str]
) -> None:
    listed = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    # a Space's template is data: it is copied to a repository of its own
    folders = {path.parent.relative_to(repo) for path in room_files if "space" not in path.parts}
    packages = {".".join([rooms[folder.parts[0]], *folder.parts[1:]]) for folder in folders}
    assert packages == set(listed)

# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear under their names only when they are whole: a killed run leaves no half ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a name beside `path` to write to; it takes the place of `path` at the end, or vanishes after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.partial")
    try:
        yield staged
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Give a new folder beside `folder` to write into; it takes the place of `folder` at the end, or vanishes after an
    error.

    Args:
        replace: delete what `folder` holds; without it, only an empty folder is replaced.

    Raises:
        OSError: `folder` is not empty, and `replace` is not set.
    """
    folder = Path(folder)
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists():
            folder.rmdir()
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)

# SPDX-License-Identifier: Apache-2.0
"""What the data tests share: a check of a data set in this process, and what it found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pefomed_recipes import cli
from pefomed_recipes.data.checks import Check, check_dataset

DataCheck = Callable[..., tuple[int, str, str]]


def check(root: Path, **options: Any) -> Check:
    """Check a folder of JSON lines in this process."""
    return check_dataset("jsonl", root, workers=1, **options)


def found(checked: Check, kind: str) -> list[tuple[str, list[str]]]:
    """The findings of a kind, as (split, names)."""
    return [(f["split"], f["names"]) for f in checked.report["findings"] if f["kind"] == kind]


def shared(checked: Check, by: str) -> dict[str, Any] | None:
    """What the test split shares with the training split."""
    entries = [e for e in checked.report["leakage"] if e["by"] == by and e["splits"] == ["train", "test"]]
    return entries[0] if entries else None


@pytest.fixture
def data_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> DataCheck:
    """`data_check(*arguments)` runs `pefomed data check` in `tmp_path`: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFOMED_DEBUG", "0")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["pefomed", "data", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run

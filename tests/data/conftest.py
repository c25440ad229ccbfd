# SPDX-License-Identifier: Apache-2.0
"""What the data tests share: `pefomed data check` in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pefomed_recipes import cli

DataCheck = Callable[..., tuple[int, str, str]]


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

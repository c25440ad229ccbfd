# SPDX-License-Identifier: Apache-2.0
"""The launchers: short files that anybody can start from a clone, from any folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

LAUNCHERS = (
    "stage1",
    "stage2",
    "predict",
    "predict_api",
    "score",
    "compare",
    "calibrate",
    "agree",
    "report",
    "quickstart",
    "convert",
    "merge",
    "compose",
    "doctor",
    "plan",
    "bench",
    "features",
)
MAX_LINES = 60


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_only_parse_call_and_report(repo: Path, name: str) -> None:
    lines = (repo / "recipes" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert 'if __name__ == "__main__":' in lines


@pytest.mark.integration
@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_answer_help_from_any_folder(
    repo: Path, run_python: Callable[..., CompletedProcess[str]], name: str
) -> None:
    process = run_python(repo / "recipes" / f"{name}.py", "--help")
    assert process.returncode == 0, process.stderr
    assert "usage" in process.stdout.lower()
    assert "Traceback" not in process.stderr

# SPDX-License-Identifier: Apache-2.0
"""The cost of a quickstart: of the process that was started, and only where it succeeded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pefomed_recipes.benchmarks.measuring import measured
from pefomed_recipes.benchmarks.quickstart_cost import keep_results, main


def test_time_and_memory_are_those_of_the_command() -> None:
    cost = measured(
        [
            sys.executable,
            "-c",
            "import time; held = bytearray(1 << 31); held[::4096] = bytes(1 << 19); time.sleep(0.3)",
        ]
    )
    assert 0.3 <= cost["seconds"] < 30
    assert 2048 < cost["peak_memory_mib"] < 2300
    assert cost["cpu_seconds"] <= 2 * cost["seconds"]


def test_a_failed_command_is_no_measurement() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        measured([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_result_files_of_a_run_are_kept_under_its_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage in ("stage1", "stage2"):
        (run / stage).mkdir(parents=True)
        (run / stage / "run.json").write_text(json.dumps({"steps": len(stage)}), encoding="utf-8")
    (run / "results.json").write_text("{}", encoding="utf-8")
    keep_results(run, "control", tmp_path)
    assert {path.name for path in tmp_path.glob("*.json")} == {"control--test.json", "control--training.json"}
    assert set(json.loads((tmp_path / "control--training.json").read_text(encoding="utf-8"))) == {"stage1", "stage2"}


def test_an_earlier_run_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart_cost", "--name=x", "--", f"--out={tmp_path}"])
    with pytest.raises(SystemExit):
        main()

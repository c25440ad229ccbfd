# SPDX-License-Identifier: Apache-2.0
"""What a laptop without a GPU waits for: help and scoring come at once, and load no model library."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

HEAVY = {"accelerate", "datasets", "peft", "torch", "transformers", "trl"}
RunPython = Callable[..., CompletedProcess[str]]

# Runs the command that follows it, then names on the last line of stderr the heavy libraries that it loaded.
PROBE = f"""
import sys
def run(main, *arguments):
    sys.argv = ["pefomed", *arguments]
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        print("loaded:", *sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
    sys.exit(code)
"""


def loaded(process: CompletedProcess[str]) -> list[str]:
    """The heavy libraries that a probed process loaded."""
    assert process.returncode == 0, process.stderr
    first, *names = process.stderr.splitlines()[-1].split()
    assert first == "loaded:"
    return names


def test_help_comes_at_once_and_without_torch(run_python: RunPython) -> None:
    code = f"{PROBE}\nfrom pefomed_recipes.cli import main\nrun(main, '--help')"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        process = run_python("-c", code)
        seconds.append(time.perf_counter() - start)
        assert loaded(process) == []
        assert "quickstart" in process.stdout
    # one second on an idle machine; the bound leaves room for a busy one
    assert min(seconds) < 3


def test_a_bare_command_name_shows_the_help_instead_of_a_traceback(run_python: RunPython) -> None:
    process = run_python("-c", "from pefomed_recipes.cli import main; main()")
    assert "Traceback" not in process.stderr
    assert "quickstart" in process.stdout + process.stderr


def test_scoring_modules_load_no_model_library(run_python: RunPython) -> None:
    code = f"""{PROBE}
import importlib, pkgutil
import pefomed_recipes.answers, pefomed_recipes.errors, pefomed_recipes.records
import pefomed_recipes.evaluation as evaluation
def main():
    for module in pkgutil.walk_packages(evaluation.__path__, evaluation.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
run(main)"""
    process = run_python("-c", code)
    assert loaded(process) == []
    assert "pefomed_recipes.evaluation" in process.stdout


@pytest.mark.integration
def test_scoring_a_file_loads_no_model_library(
    repo: Path, tiny_predictions: Path, run_python: RunPython, tmp_path: Path
) -> None:
    launcher = repo / "recipes" / "score.py"
    code = f"{PROBE}\nimport runpy\nrun(lambda: runpy.run_path({str(launcher)!r}, run_name='__main__'), *sys.argv[1:])"
    process = run_python("-c", code, tiny_predictions, "--out", "results.json")
    assert loaded(process) == []
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["rows"][0]["score"]["value"] == 0.5


@pytest.mark.parametrize("name", ["transformers", "torch"])
def test_the_probe_names_a_library_that_was_loaded(run_python: RunPython, name: str) -> None:
    assert name in loaded(run_python("-c", f"{PROBE}\nrun(lambda: __import__({name!r}))"))

# SPDX-License-Identifier: Apache-2.0
"""The `pefomed` command: help, one-line errors, and the tracebacks that --debug shows."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from PIL import Image

from pefomed_recipes import cli
from pefomed_recipes.errors import PeFoMedError

RunPython = Callable[..., CompletedProcess[str]]
Pefomed = Callable[..., tuple[int, str, str]]

# Each command, and a word that its help must say.
COMMANDS = {
    "quickstart": "--stage0-steps",
    "stage1": "--learning_rate",
    "stage2": "--early_stopping_patience",
    "predict": "--control",
    "predict-api": "--max-cost",
    "score": "--train",
    "merge": "--out",
    "compose": "--vision-tower",
    "doctor": "--batch-size",
    "plan": "--hours",
    "ask": "--task",
    "phantoms": "--preview",
    "data": "duplicates",
    "publish": "--allow-credentialed",
    "verify": "--revision",
    "bundle": "--wheels",
    "space": "--adapter",
}


@pytest.fixture
def pefomed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Pefomed:
    """`pefomed(*arguments)` runs the command in `tmp_path`: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFOMED_DEBUG", "0")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pefomed", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        code = stop.value.code
        return (code if isinstance(code, int) else int(code is not None)), out, err

    return run


def test_help_lists_every_command(pefomed: Pefomed) -> None:
    code, out, _ = pefomed("--help")
    assert code == 0
    assert [command for command in COMMANDS if command not in out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(pefomed: Pefomed, command: str) -> None:
    code, out, err = pefomed(command, "--help")
    assert code == 0
    assert COMMANDS[command] in out
    assert "usage" in out.lower()
    assert err == ""


def test_an_unknown_command_is_refused(pefomed: Pefomed) -> None:
    code, out, err = pefomed("quickstrat")
    assert code == 2
    assert "quickstart" in err
    assert out == ""


def test_a_preview_is_a_picture(pefomed: Pefomed, tmp_path: Path) -> None:
    code, out, err = pefomed("phantoms", "--preview", "sheet.png", "--cases", "2", "--size-px", "32")
    assert (code, out) == (0, "")
    assert err == "wrote sheet.png\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 2 * 32
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_phantom_data_set_has_three_splits(pefomed: Pefomed, tmp_path: Path) -> None:
    code, _, _ = pefomed("phantoms", "--out", "data", "--cases", "3", "--size-px", "32")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "data").glob("*.jsonl")) == [
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]


@pytest.mark.parametrize("arguments", [(), ("--out", "data", "--preview", "sheet.png")], ids=["neither", "both"])
def test_phantoms_wants_a_folder_or_a_preview(pefomed: Pefomed, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, _, err = pefomed("phantoms", *arguments)
    assert code == 2
    assert "either --out FOLDER or --preview FILE.png" in err
    assert list(tmp_path.iterdir()) == []


# Mistakes that are found before a model is loaded: the arguments, the exit code, what the line must say.
MISTAKES = {
    "image": (("ask", "missing.png", "why?"), 1, "missing.png: no such file"),
    "difficulty": (("phantoms", "--preview", "x.png", "--difficulty", "eazy"), 2, "did you mean easy?"),
    "predictions": (("score", "missing.jsonl"), 1, "missing.jsonl: no such file"),
    "data": (("predict", "model", "--data-root", "missing"), 1, "missing: no such folder"),
    "split": (("predict", "model", "--data-root", ".", "--split", "tset"), 2, "did you mean test?"),
    "setting": (("stage2", "--lerning_rate=1"), 2, "did you mean --learning_rate?"),
    "config": (("stage1", "--config", "stage1/papper"), 2, "did you mean stage1/paper?"),
    "quickstart": (("quickstart", "--cases", "0"), 2, "0 cases in split train"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line(pefomed: Pefomed, tmp_path: Path, mistake: str) -> None:
    arguments, expected, said = MISTAKES[mistake]
    code, out, err = pefomed(*arguments)
    assert code == expected
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_debug_shows_the_traceback_of_a_mistake(
    pefomed: Pefomed, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    arguments, _, said = MISTAKES[mistake]
    for debug in ((*arguments, "--debug"), ("--debug", *arguments)):
        monkeypatch.setattr(sys, "argv", ["pefomed", *debug])
        with pytest.raises(PeFoMedError) as shown:
            cli.main()
        assert said in str(shown.value)


@pytest.mark.parametrize("option", [("window", "lung"), ("frame", "1"), ("plane", "axial"), ("slice", "1")])
def test_ask_takes_what_is_to_be_shown_of_a_scan(pefomed: Pefomed, tmp_path: Path, option: tuple[str, str]) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "image.png")
    code, out, err = pefomed("ask", "image.png", "why?", f"--{option[0]}", option[1])
    assert (code, out) == (1, "")
    assert "image.png: only" in err and f"files have a {option[0]} to choose" in err


def test_an_unknown_task_is_refused(pefomed: Pefomed) -> None:
    code, _, err = pefomed("ask", "missing.png", "why?", "--task", "vqaa")
    assert code == 2
    assert "expected one of caption, vqa, report, refer" in err


@pytest.mark.integration
def test_the_command_itself_ends_in_one_line(tmp_path: Path, run_python: RunPython) -> None:
    command = Path(sys.executable).with_name("pefomed")
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    runner = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    for arguments, said in (
        (("missing.png", "why?"), "missing.png: no such file"),
        (("image.png", "why?", "--model", "missing"), "missing: cannot load an adapter or a base model"),
    ):
        process = run_python("-c", runner, command, "ask", *arguments)
        assert process.returncode == 1
        assert process.stdout == ""
        assert len(process.stderr.splitlines()) == 1, process.stderr
        assert process.stderr.startswith("error: ")
        assert said in process.stderr
    process = run_python("-c", runner, command, "ask", "missing.png", "why?", "--debug")
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "ImageError" in process.stderr
    assert os.listdir(tmp_path) == ["image.png"]

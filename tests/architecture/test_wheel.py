# SPDX-License-Identifier: Apache-2.0
"""The wheel: every room under its own name, with its data, and nothing else; and it works without the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path
from subprocess import CompletedProcess

import pytest

RunPython = Callable[..., CompletedProcess[str]]
pytestmark = pytest.mark.integration

WHOLE_INSTALL = """
import importlib.util, sys
import modeling_pefomed, pefomed_demo, pefomed_hub, pefomed_recipes.data, pefomed_recipes.records
for name in ("modeling_pefomed", "pefomed_demo", "pefomed_hub", "pefomed_recipes", "pefomed_recipes.records"):
    assert sys.modules[name].__file__.startswith(sys.argv[1]), sys.modules[name].__file__
for name in ("recipes", "hub", "demo", "tests"):
    assert importlib.util.find_spec(name) is None, name
print(modeling_pefomed.PeFoMedConfig().image_seq_length)
"""


@pytest.fixture(scope="module")
def wheel(repo: Path, rooms: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a clean copy: an old build/ folder would add the files of yesterday."""
    copy = tmp_path_factory.mktemp("source")
    for room in rooms:
        shutil.copytree(repo / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo / file, copy)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_nothing.py").touch()
    (copy / "runs").mkdir()
    (copy / "runs" / "results.json").touch()
    build = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what pip makes of the wheel."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True)
    return target


def test_the_wheel_holds_every_file_of_the_rooms_and_nothing_else(
    wheel: Path, repo: Path, rooms: dict[str, str]
) -> None:
    expected = {
        "/".join([name, *path.relative_to(repo / room).parts])
        for room, name in rooms.items()
        for path in (repo / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"modeling_pefomed/chat_template.jinja", "modeling_pefomed/py.typed", "pefomed_recipes/py.typed"} <= held
    assert any(name.startswith("pefomed_recipes/configs/") for name in held)


def test_the_wheel_says_its_licence_command_and_requirements(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name.split(".dist-info/")[1]: name for name in archive.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(files["METADATA"]).decode())
        assert "pefomed = pefomed_recipes.cli:main" in archive.read(files["entry_points.txt"]).decode()
        assert "Apache License" in archive.read(files["licenses/LICENSE"]).decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    requirements = metadata.get_all("Requires-Dist") or []
    assert any(requirement.startswith("torch>=") for requirement in requirements)
    assert [requirement for requirement in requirements if "torchvision" in requirement] == []


def test_an_installed_wheel_works_outside_the_clone(installed: Path, run_python: RunPython) -> None:
    environment = {"PYTHONPATH": os.pathsep.join([str(installed), os.environ["PYTHONPATH"]])}
    process = run_python("-c", WHOLE_INSTALL, installed, env=environment)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "256"


def test_launchers_run_as_modules_of_an_installed_wheel(installed: Path, run_python: RunPython) -> None:
    environment = {"PYTHONPATH": os.pathsep.join([str(installed), os.environ["PYTHONPATH"]])}
    process = run_python("-m", "pefomed_recipes.score", "--help", env=environment)
    assert process.returncode == 0, process.stderr
    assert "usage" in process.stdout.lower()

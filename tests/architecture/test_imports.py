# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the rooms' unique names, and import-linter's contracts, each shown to catch what it forbids."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from subprocess import CompletedProcess

import pytest

BANNED = {
    "recipes": "import pefomed_recipes",
    "hub": "import pefomed_hub",
    "demo": "import pefomed_demo",
    "torchvision": "never needed, and a broken one breaks transformers' imports",
}


def banned_imports(source: str) -> list[str]:
    """The imports in `source` that no file of the project may have, as `line: module`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        else:
            continue
        found += [f"{node.lineno}: {module}" for module in modules if module.split(".")[0] in BANNED]
    return found


def test_no_file_imports_a_room_by_its_folder_or_torchvision(python_files: list[Path]) -> None:
    found = {str(path): banned_imports(path.read_text(encoding="utf-8")) for path in python_files}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_the_scan_finds_banned_imports_wherever_they_stand() -> None:
    source = "import recipes.data\ndef late():\n    from hub import push\n    import torchvision.ops\n"
    assert banned_imports(source) == ["1: recipes.data", "3: hub", "4: torchvision.ops"]
    assert (
        banned_imports("from . import demo\nimport pefomed_recipes.data, huggingface_hub, recipes_of_others\n") == []
    )


@cache
def owners_of_modules() -> Mapping[str, list[str]]:
    """The distributions that each installed module belongs to: reading them takes a third of a second."""
    return packages_distributions()


def required_distributions(source: str) -> set[str]:
    """The distributions whose modules `source` imports, wherever the import stands, but for the project's own."""
    owners = owners_of_modules()
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        else:
            continue
        for module in {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names):
            found |= {owner.lower().replace("_", "-") for owner in owners.get(module, [module])}
    found -= {"radeval"}  # its file runs in an environment of its own
    return found - {"pefomed"} - {"modeling-pefomed", "pefomed-demo", "pefomed-hub", "pefomed-recipes"}


def test_what_the_rooms_import_is_a_declared_requirement(repo: Path, room_files: list[Path]) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [
        requirement
        for extra, group in project["optional-dependencies"].items()
        if extra != "dev"
        for requirement in group
    ]
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in project["dependencies"] + extras}
    needed = {str(path): required_distributions(path.read_text(encoding="utf-8")) for path in room_files}
    assert {path: names - declared for path, names in needed.items() if names - declared} == {}


def test_imports_are_traced_to_their_distributions() -> None:
    source = "import os, yaml\ndef late():\n    from PIL import Image\n    import pefomed_hub, nowhere.to_be_found"
    assert required_distributions(source) == {"pyyaml", "pillow", "nowhere"}


@pytest.mark.integration
def test_import_contracts_hold_and_each_catches_a_breach(
    repo: Path, rooms: dict[str, str], tmp_path: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    def lint(contracts: Path) -> CompletedProcess[str]:
        path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
        script = Path(sys.executable).with_name("lint-imports")
        return run_python(script, "--config", contracts, "--no-cache", env={"PYTHONPATH": path, "COLUMNS": "200"})

    for folder, name in rooms.items():
        shutil.copytree(repo / folder, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    settings = repo / "pyproject.toml"
    names = [contract["name"] for contract in tomllib.loads(settings.read_text())["tool"]["importlinter"]["contracts"]]
    kept = lint(settings)
    assert kept.returncode == 0, kept.stdout
    assert f"{len(names)} kept, 0 broken" in kept.stdout

    breaches = {
        "modeling_pefomed/breach.py": "import pefomed_recipes.records",
        "pefomed_recipes/data/breach.py": "import pefomed_recipes.training",
        "pefomed_recipes/evaluation/breach.py": "def late():\n    import torch",
        "pefomed_recipes/errors.py": "import transformers",
        "pefomed_demo/breach.py": "import pefomed_recipes.evaluation",
    }
    for file, source in breaches.items():
        (tmp_path / file).write_text(source + "\n", encoding="utf-8")
    broken = lint(settings)
    assert broken.returncode != 0
    assert [name for name in names if f"{name} BROKEN" not in broken.stdout] == []

# SPDX-License-Identifier: Apache-2.0
"""The flat files travel to the Hub as remote code: what transformers' loader cannot follow must not stand in them.

transformers finds a file's relative imports with a regular expression, copies the files into one flat cache folder,
and hashes each file on its own when it loads a local folder. Each rule has an example that it must catch.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

FLAT_FILES = ("configuration_pefomed", "image_processing_pefomed", "modeling_pefomed", "processing_pefomed")
THIRD_PARTY = {"PIL", "huggingface_hub", "numpy", "torch", "transformers"}
OWN_NAMES = {"demo", "hub", "modeling_pefomed", "pefomed_demo", "pefomed_hub", "pefomed_recipes", "recipes"}
LOOKS_LIKE_RELATIVE_IMPORT = re.compile(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+)\s*$)", re.MULTILINE)


def relative_imports(source: str) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level]


def absolute_imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and top module of each absolute import outside `try`, which alone may miss what it imports."""
    guarded = {
        inner
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Try)
        for inner in range(node.lineno, node.handlers[0].lineno if node.handlers else node.lineno)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        else:
            continue
        if node.lineno not in guarded:
            yield from ((node.lineno, module.split(".")[0]) for module in modules)


def other_relative_forms(source: str) -> list[str]:
    """Relative imports that are not `from .file import name`: they save, and fail when loaded, or fail to save."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in relative_imports(source)
        if node.level > 1 or not node.module or "." in node.module or node.names[0].name == "*"
    ]


def strangers(source: str) -> list[str]:
    """Relative imports of files that do not travel along."""
    return [
        f"line {node.lineno}: .{node.module}"
        for node in relative_imports(source)
        if node.module and node.module.split(".")[0] not in FLAT_FILES
    ]


def own_packages(source: str) -> list[str]:
    """Absolute imports of the project's own packages, which are not installed where remote code runs."""
    return [f"line {line}: {module}" for line, module in absolute_imports(source) if module in OWN_NAMES]


def third_parties(source: str) -> list[str]:
    """Imports outside `try` that an installation of transformers need not have."""
    known = THIRD_PARTY | OWN_NAMES | set(sys.stdlib_module_names)
    return [f"line {line}: {module}" for line, module in absolute_imports(source) if module not in known]


def look_alikes(source: str) -> list[str]:
    """Lines of text that the loader's regular expression takes for a relative import."""
    real = {line for node in relative_imports(source) for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    found = []
    for match in LOOKS_LIKE_RELATIVE_IMPORT.finditer(source):
        text = match.group()
        line = source.count("\n", 0, match.start() + len(text) - len(text.lstrip())) + 1
        if line not in real:
            found.append(f"line {line}: {text.strip()}")
    return found


def identity_checks(source: str) -> list[str]:
    """`isinstance` and `issubclass` against a class of another flat file: after a local load it is another object."""
    imported = {alias.asname or alias.name for node in relative_imports(source) for alias in node.names}
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"isinstance", "issubclass"}
        and imported & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
    ]


def files_read_at_import(source: str) -> list[str]:
    """Uses of `__file__` outside functions: files beside the code, but for .py, are not in the loader's cache."""
    tree = ast.parse(source)
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    inside = {id(inner) for function in functions for inner in ast.walk(function)}
    return [
        f"line {node.lineno}: __file__"
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "__file__" and id(node) not in inside
    ]


RULES: list[tuple[Callable[[str], list[str]], str]] = [
    (other_relative_forms, "from . import processing_pefomed"),
    (other_relative_forms, "from .sub.modeling_pefomed import PeFoMedModel"),
    (other_relative_forms, "from ..modeling_pefomed import PeFoMedModel"),
    (other_relative_forms, "from .modeling_pefomed import *"),
    (strangers, "from .convert_pefomed_weights_to_hf import convert"),
    (strangers, "def late():\n    from .helpers import pad"),
    (own_packages, "from modeling_pefomed.configuration_pefomed import PeFoMedConfig"),
    (own_packages, "def late():\n    import pefomed_recipes.records"),
    (third_parties, "import peft"),
    (third_parties, "def late():\n    from torchvision import ops"),
    (third_parties, "try:\n    import numpy\nexcept ImportError:\n    import jax"),
    (look_alikes, '"""Usage:\n\n    from .nothere import Foo\n"""'),
    (look_alikes, 'TEXT = """\nimport .nothere\n"""'),
    (identity_checks, "from .configuration_pefomed import PeFoMedConfig\nisinstance(config, (dict, PeFoMedConfig))"),
    (files_read_at_import, "TEMPLATE = open(__file__ + '.jinja').read()"),
]
ALLOWED = [
    "from .configuration_pefomed import PeFoMedConfig",
    "from .modeling_pefomed import (\n    PeFoMedModel,\n    group_patch_tokens,\n)",
    "import math\nfrom PIL import Image\nimport torch.nn as nn\nfrom transformers.utils import logging",
    "try:\n    import flash_attn\nexcept ImportError:\n    flash_attn = None",
    "class Own: ...\nisinstance(value, (Own, dict))",
    "def read():\n    return open(__file__)",
    '"""Say `from .file import name` inside a line."""',
]


@pytest.fixture(scope="module", params=FLAT_FILES)
def flat_file(request: pytest.FixtureRequest, repo: Path) -> Path:
    """Each of the files that travel."""
    return repo / "modeling_pefomed" / f"{request.param}.py"


def problems_of(flat_file: Path, rule: Callable[[str], list[str]]) -> list[str]:
    return rule(flat_file.read_text(encoding="utf-8"))


def test_flat_files_use_only_the_relative_imports_that_load(flat_file: Path) -> None:
    assert problems_of(flat_file, other_relative_forms) == []


def test_flat_files_import_only_flat_files(flat_file: Path) -> None:
    assert problems_of(flat_file, strangers) == []


def test_flat_files_do_not_import_installed_packages_of_the_project(flat_file: Path) -> None:
    assert problems_of(flat_file, own_packages) == []


def test_flat_files_import_nothing_that_transformers_does_not_bring(flat_file: Path) -> None:
    assert problems_of(flat_file, third_parties) == []


def test_no_text_in_flat_files_looks_like_a_relative_import(flat_file: Path) -> None:
    assert problems_of(flat_file, look_alikes) == []


def test_flat_files_compare_no_class_of_another_flat_file(flat_file: Path) -> None:
    assert problems_of(flat_file, identity_checks) == []


def test_flat_files_read_no_file_when_imported(flat_file: Path) -> None:
    assert problems_of(flat_file, files_read_at_import) == []


def test_the_loader_finds_exactly_the_imports_that_stand_there(flat_file: Path) -> None:
    source = flat_file.read_text(encoding="utf-8")
    assert sorted(get_relative_imports(flat_file)) == sorted({str(node.module) for node in relative_imports(source)})
    assert set(get_imports(flat_file)) <= THIRD_PARTY | set(sys.stdlib_module_names)


@pytest.mark.parametrize(("rule", "example"), RULES)
def test_each_rule_catches_its_example(rule: Callable[[str], list[str]], example: str) -> None:
    assert len(rule(example)) == 1


@pytest.mark.parametrize("example", ALLOWED)
def test_no_rule_refuses_what_loads(example: str) -> None:
    assert [rule(example) for rule, _ in RULES if rule(example)] == []

# SPDX-License-Identifier: Apache-2.0
"""A launcher's folder is first on `sys.path`: nothing in it may hide a module that somebody else imports."""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from pathlib import Path

# Imported by our libraries or extras where they are installed, which is not everywhere.
OFTEN_INSTALLED = {
    "bitsandbytes",
    "deepspeed",
    "evaluate",
    "gradio",
    "nibabel",
    "openpyxl",
    "playwright",
    "pydicom",
    "vllm",
}


def hidden_modules(names: set[str]) -> set[str]:
    """Those of `names` that are modules of the standard library, of an installed distribution or of an extra."""
    installed = {module for module, owners in packages_distributions().items() if set(owners) != {"pefomed"}}
    return names & (set(sys.stdlib_module_names) | installed | OFTEN_INSTALLED)


def test_no_file_beside_a_launcher_hides_a_module(repo: Path) -> None:
    for folder in ("recipes", "demo"):
        entries = [path for path in (repo / folder).iterdir() if path.is_dir() or path.suffix == ".py"]
        names = {path.stem for path in entries}
        assert "__init__" in names
        assert hidden_modules(names) == set()


def test_the_check_knows_standard_installed_and_optional_modules() -> None:
    assert hidden_modules({"profile", "datasets", "evaluate", "records"}) == {"profile", "datasets", "evaluate"}

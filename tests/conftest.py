# SPDX-License-Identifier: Apache-2.0
"""What all tests share: an offline, quiet, one-thread environment, set before anything heavy is imported."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
NO_NETWORK = REPO / "tests" / "no_network"

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HOME=str(REPO / ".cache" / "huggingface"),
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
# Tiny tensors are done before a second thread wakes up: waiting for it takes ten times as long.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# This process and, through PYTHONPATH, every one that a test starts.
runpy.run_path(str(NO_NETWORK / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(NO_NETWORK), os.environ.get("PYTHONPATH")]))

RunPython = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return REPO


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """`run_python(*arguments, env={}, without=(), cwd=tmp_path, timeout=300)` runs Python and captures its text.

    `env` is laid over the tests' environment, from which the names in `without` are removed first.
    """

    def run(
        *arguments: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        without: tuple[str, ...] = (),
        cwd: Path | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in without} | dict(env or {})
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment,
            cwd=cwd or tmp_path,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )

    return run

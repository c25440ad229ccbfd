# SPDX-License-Identifier: Apache-2.0
"""Publishing an adapter of the paper's size streams it: memory stays far below the size of the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ..loopback_hub import LoopbackHub
from .loopback import MAIN, REPO, environment_of, seal, write_adapter

PARAMETERS = 56_627_200  # of the paper's adapter, 226 MB in float32
LIMIT_MIB = 286  # 300 MB
# A light process in between: a child counts the memory of what starts it.
MEASURE = """
import sys
from pefomed_recipes.benchmarks.measuring import measured
print(measured(sys.argv[1:])["peak_memory_mib"])
"""


def peak_mib(hub: LoopbackHub, folder: Path, home: Path, xet: bool) -> int:
    """Publish and return the largest resident memory, in MiB."""
    publish = [sys.executable, "-c", MAIN, "publish", str(folder), "--repo", REPO, "--yes"]
    environment = environment_of(hub, home, xet=xet)
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, *publish],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return int(process.stdout)


@pytest.mark.parametrize(
    "xet", [pytest.param(False, marks=pytest.mark.integration), pytest.param(True, marks=pytest.mark.slow)], ids=str
)
def test_an_adapter_of_the_papers_size_adds_little_memory(hub: LoopbackHub, tmp_path: Path, xet: bool) -> None:
    folder = write_adapter(tmp_path / "adapter")
    small = peak_mib(hub, folder, tmp_path, xet)
    values = np.random.default_rng(0).standard_normal(PARAMETERS, np.float32)
    save_file({"a": values}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    del values
    seal(folder)
    large = peak_mib(hub, folder, tmp_path, xet)
    print(f"{small} MiB with 40 kB, {large} MiB with 226 MB")
    assert large - small < LIMIT_MIB

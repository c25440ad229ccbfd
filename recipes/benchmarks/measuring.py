# SPDX-License-Identifier: Apache-2.0
"""What a command takes. Light on purpose: until its own program runs, a child counts the memory of what starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"


def measured(command: list[str]) -> dict[str, Any]:
    """Run a command to success; return its wall time and CPU time in seconds and its peak memory in MiB.

    A child counts the memory of the process that starts it until its own program runs: 0.2 GiB where torch is loaded.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": round(usage.ru_maxrss / unit),
    }

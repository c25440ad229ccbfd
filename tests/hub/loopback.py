# SPDX-License-Identifier: Apache-2.0
"""What the tests of publishing share: a small publishable folder, and the real command against the loopback Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pefomed_hub.manifest import Base, Manifest, Run, list_files, write_manifest

from ..loopback_hub import LoopbackHub
from ..loopback_hub.server import WRITER

Pefomed = Callable[..., subprocess.CompletedProcess[str]]
REPO = "ada/lung-adapter"
CARD = "---\nlicense: apache-2.0\nlibrary_name: peft\n---\n# An adapter\nNot a medical device.\n"
# The command as its users have it, but for waits, which are as short as they can be.
MAIN = """
import sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.02))
sys.argv = ["pefomed", *sys.argv[1:]]
from pefomed_recipes.cli import main
main()
"""
WORKER = """
import contextlib, io, json, os, sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.02))
from pefomed_recipes.cli import main
before = dict(os.environ)
for line in sys.stdin:
    job = json.loads(line)
    os.environ.clear()
    os.environ.update(before | job["changes"])
    sys.argv = ["pefomed", *job["arguments"]]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}), flush=True)
"""


def write_adapter(
    folder: Path, *, credentialed: bool | None = False, sources: tuple[str, ...] = ("phantoms",)
) -> Path:
    """Write a folder as `pefomed export` leaves it, with random weights of 40 kB."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "ada/base"}\n', encoding="utf-8")
    weights = {"a": np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    run = Run(
        name="stage2",
        seconds=1.0,
        steps=1,
        trainable_parameters=10_000,
        seed=1,
        template="paper",
        settings={},
        data={"train": {"sources": list(sources), "licences": [], "credentialed": credentialed}},
        peft_type="LORA",
        quantization="none",
        validation_loss_before=None,
        validation_loss_after=None,
        environment={},
        finished="2026-11-24T12:00:00+00:00",
        code_commit=None,
    )
    seal(folder, [run], credentialed)
    return folder


def seal(
    folder: Path, runs: list[Run] | None = None, credentialed: bool | None = False, kind: str = "adapter"
) -> None:
    """Write the manifest of what the folder holds now."""
    manifest = Manifest(
        repo=REPO,
        kind=kind,
        base=Base("ada/base", None, {}) if kind == "adapter" else None,
        dtype="float32",
        template="paper",
        licence="apache-2.0",
        credentialed=credentialed,
        runs=runs or [],
        seconds=1.0,
        incomplete_history=False,
        code_commit=None,
        packages={},
    )
    (folder / "pefomed_manifest.json").unlink(missing_ok=True)
    manifest.files = list_files(folder)
    write_manifest(folder, manifest)


def environment_of(hub: LoopbackHub | None, home: Path, *, token: str = WRITER, xet: bool = False) -> dict[str, str]:
    """The environment of a client of the loopback Hub; without one, of an address where nothing listens."""
    return os.environ | {
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
        "COLUMNS": "200",
    }


def start(arguments: tuple[object, ...], environment: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    """Start the command."""
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Worker:
    """One process that runs the command again and again, to spare each test the start of Python."""

    def __init__(self, environment: dict[str, str], cwd: Path):
        command = [sys.executable, "-c", WORKER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, cwd=cwd, text=True, **pipes)  # type: ignore[call-overload]

    def run(self, arguments: tuple[object, ...], changes: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run the command with this environment on top."""
        job = {"arguments": [str(argument) for argument in arguments], "changes": changes}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        done = json.loads(self.process.stdout.readline())
        return subprocess.CompletedProcess(arguments, done["code"], done["out"], done["err"])


def pefomed_of(hub: LoopbackHub | None, home: Path, worker: Worker | None = None) -> Pefomed:
    """`pefomed(*arguments, token=WRITER, xet=False, **environment)` runs the command to its end.

    What the client reads only at its start (HF_...) takes a process of its own.
    """

    def run(
        *arguments: object, token: str = WRITER, xet: bool = False, **more: str
    ) -> subprocess.CompletedProcess[str]:
        if worker is not None and not xet and not any(name.startswith("HF_") for name in more):
            return worker.run(arguments, {"HF_TOKEN": token} | more)
        process = start(arguments, environment_of(hub, home, token=token, xet=xet) | more, home)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return run

# SPDX-License-Identifier: Apache-2.0
"""The record of a run: what was trained on what, with which code, for how long. No host names, no paths of users."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..data.image_facts import encoded_size
from ..records import Sample
from ..staging import whole_file

PACKAGES = (
    "pefomed",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "numpy",
    "pillow",
)


def code_commit() -> str | None:
    """Return the git commit of the code, with `+dirty` when files differ from it; `None` outside a clone."""
    folder = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+dirty" if dirty else "")


def data_fingerprint(samples: Iterable[Sample]) -> dict[str, Any]:
    """Return the number of samples and images, and a sha256 over the samples' contents and their images' sizes, their
    sources and licences, and whether any is `credentialed`, so that nothing made of it may leave the house.

    Image paths are left out: the same data in another folder has the same fingerprint.
    """
    sources, licences, credentialed = set(), set(), False
    digest, count = hashlib.sha256(), 0
    images: dict[str, int] = {}
    for sample in samples:
        row = asdict(sample)
        paths = row.pop("image_paths")
        for path in paths:
            images[path] = images.get(path) or encoded_size(path)
        row["image_bytes"] = [images[path] for path in paths]
        digest.update(json.dumps(row, sort_keys=True).encode())
        count += 1
        sources.add(sample.source)
        licences.add(sample.licence)
        credentialed |= sample.credentialed
    return {
        "samples": count,
        "images": len(images),
        "sha256": digest.hexdigest(),
        "sources": sorted(filter(None, sources)),
        "licences": sorted(filter(None, licences)),
        "credentialed": credentialed,
    }


def environment() -> dict[str, Any]:
    """Return package versions, Python, the processor's or GPU's kind, and the number of threads."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {
        "python": platform.python_version(),
        "packages": versions,
        "device": device,
        "threads": torch.get_num_threads(),
    }


def utc_now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that the file appears only when it is whole."""
    with whole_file(path) as staged:
        staged.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")

# SPDX-License-Identifier: Apache-2.0
"""Shards of a feature cache: safetensors files with the features of some images each.

A shard holds one tensor `features` of shape (images, patches, width). Its header names the images by their keys, the
cache that it belongs to, and a checksum. It appears under its name when it is whole, and safetensors refuses a file
that is shorter or longer than its header says: no list of shards has to be kept beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..staging import whole_file

SHARD_BYTES = 2**27  # a write's memory, and what is lost of a killed run


@dataclass(frozen=True)
class Shard:
    """A whole shard: its file, the keys of its images in order, and the checksum that its features should have."""

    file: Path
    keys: tuple[str, ...]
    checksum: str

    def features(self) -> torch.Tensor:
        """Return the features of all its images, mapped: nothing is read before it is looked at."""
        with safe_open(self.file, framework="pt") as handle:
            return handle.get_tensor("features")

    def is_intact(self) -> bool:
        """Whether every bit of the features is as it was written; reads all of them."""
        return _checksum(self.features()) == self.checksum


def images_per_shard(bytes_per_image: int) -> int:
    """Return how many images a shard holds."""
    return max(1, min(4096, SHARD_BYTES // bytes_per_image))


def write_shard(folder: Path, cache_id: str, keys: Sequence[str], features: torch.Tensor) -> Path:
    """Write one shard under a name of its own and return its file; only whole shards ever have such a name.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    features = features.cpu().contiguous()
    described = {"cache": cache_id, "keys": json.dumps(list(keys)), "checksum": _checksum(features)}
    file = folder / f"shard-{secrets.token_hex(8)}.safetensors"
    with whole_file(file) as staged, staged.open("wb") as out:
        out.write(save({"features": features}, metadata=described))
        out.flush()
        os.fsync(out.fileno())  # else a power cut could leave a file of the right length and no content
    return file


def find_shards(folder: Path, cache_id: str) -> tuple[list[Shard], list[Path]]:
    """Return the whole shards of a cache and the damaged files among them, by headers and lengths alone."""
    whole, damaged = [], []
    for file in sorted(folder.glob("shard-*.safetensors")):
        try:
            with safe_open(file, framework="pt") as handle:
                described = handle.metadata()
                rows = handle.get_slice("features").get_shape()[0]
            keys = tuple(json.loads(described["keys"]))
            if described["cache"] != cache_id or len(keys) != rows:
                raise ValueError("of another cache")
            whole.append(Shard(file, keys, described["checksum"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            damaged.append(file)
    return whole, damaged


def _checksum(features: torch.Tensor) -> str:
    return hashlib.blake2b(features.reshape(-1).view(torch.uint8).numpy().data, digest_size=16).hexdigest()

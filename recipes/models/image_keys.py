# SPDX-License-Identifier: Apache-2.0
"""Images known by content: the hash of a file's bytes, which is worked out again only where the file has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from ..data.parquet_images import is_parquet_reference, read_parquet_image
from ..errors import PeFoMedError
from ..staging import whole_file

# A file changed a moment ago can change again within one tick of the file system's clock.
_SETTLED_NS = 2 * 10**9


class ImageKeys:
    """Gives each image file the key of its content, 32 hexadecimal digits.

    A file's hash is remembered with its size, inode, and the times of its last change and last change of state. The
    latter is set by the system alone, so that a file that is replaced is noticed even if its time is set back. No path
    is stored: files are known by hashes of their paths.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}  # hash of the path -> state of the file and key

    def key(self, image: str | os.PathLike[str]) -> str:
        """Return the key of an image: a path, or `/folder/file.parquet#ROW` for an image in a Parquet file.

        Raises:
            PeFoMedError: it is missing or cannot be read.
        """
        name = os.fspath(image)
        file = name.rpartition("#")[0] if is_parquet_reference(name) else name
        place = short_hash(os.path.abspath(file).encode() + name[len(file) :].encode())
        state = _state(file)
        known_state, _, known_key = self._known.get(place, "").rpartition(" ")
        if known_state == state:
            return known_key
        now = time.time_ns()
        key = short_hash(_content(name))
        if _state(file) == state and now - max(map(int, state.split()[:2])) > _SETTLED_NS:
            self._known[place] = f"{state} {key}"
        return key

    def load(self, file: Path) -> None:
        """Remember what [`ImageKeys.save`] wrote; nothing where there is no such file, or none that can be read."""
        with contextlib.suppress(OSError, ValueError):
            self._known |= json.loads(file.read_text(encoding="ascii"))

    def save(self, file: Path) -> None:
        """Write what is known, for another run."""
        with whole_file(file) as staged:
            staged.write_text(json.dumps(self._known), encoding="ascii")

    def merge(self, others: list[dict[str, str]]) -> None:
        """Take over what other processes know."""
        for other in others:
            self._known |= other

    @property
    def known(self) -> dict[str, str]:
        """What is remembered, for other processes."""
        return self._known


def short_hash(content: bytes) -> str:
    """Return 128 bits of a hash as hexadecimal digits: enough to tell any number of files apart."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _state(file: str) -> str:
    try:
        found = os.stat(file)
    except (OSError, ValueError):  # a null byte in a name is a ValueError
        raise PeFoMedError(f"{file}: no such file; expected an image file") from None
    return f"{found.st_mtime_ns} {found.st_ctime_ns} {found.st_size} {found.st_ino}"


def _content(name: str) -> bytes:
    if is_parquet_reference(name):
        return read_parquet_image(name)
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise PeFoMedError(f"{name}: the file cannot be read ({error.strerror}); check its permissions") from None

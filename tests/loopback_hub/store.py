# SPDX-License-Identifier: Apache-2.0
"""What the loopback Hub keeps: repositories with commits, tags and settings in one JSON file, contents beside it.

All of it is on disk after every change, so that a server can end and another go on from the same folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TYPES = ("model", "dataset", "space")
# Contents that the Hub keeps outside git, whatever their size.
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".zip", ".parquet", ".model", ".png")
LFS_BYTES = 10_000_000
GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Refusal(Exception):
    """A request that the Hub answers with an error: its status, the client's error code, a sentence."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers
        self.more: dict[str, str] = {}


@dataclass
class Repository:
    """One repository. `files` of a commit: path -> git oid, sha256 and size, and whether it is kept outside git."""

    id: str
    type: str
    private: bool = False
    gated: str | bool = False
    sdk: str | None = None
    commits: list[dict[str, Any]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision: str) -> dict[str, Any]:
        """Return the commit that a branch, a tag or a sha names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit["oid"] == oid:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """The files at the head of `main`."""
        return self.commit_of("main")["files"]


class Store:
    """Repositories and contents under one folder."""

    def __init__(self, root: Path):
        self.root, self.lock = root, threading.RLock()
        for folder in ("objects", "partial", "cas"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        state = root / "state.json"
        rows = json.loads(state.read_text()) if state.exists() else []
        self.repositories = {(row["type"], row["id"]): Repository(**row) for row in rows}

    def save(self) -> None:
        """Write the state to disk, whole or not at all."""
        staged = self.root / "state.json.partial"
        with staged.open("w") as file:
            json.dump([asdict(repository) for repository in self.repositories.values()], file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, self.root / "state.json")

    def object(self, sha256: str) -> Path:
        """Where the content of this sha256 lies, or would."""
        return self.root / "objects" / sha256

    def keep(self, content: bytes) -> dict[str, Any]:
        """Keep a content and return its entry: git oid, sha256 and size."""
        sha256 = hashlib.sha256(content).hexdigest()
        staged = self.root / "partial" / f"{sha256}-{threading.get_ident()}"
        staged.write_bytes(content)
        os.replace(staged, self.object(sha256))
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"oid": oid, "sha256": sha256, "size": len(content), "lfs": False}

    def create(self, type_: str, name: str, private: bool, sdk: str | None) -> Repository:
        """Create a repository with the commit that the Hub itself makes."""
        if (type_, name) in self.repositories:
            raise Refusal(409, "You already created this repo")
        repository = Repository(name, type_, private=private, sdk=sdk)
        self.repositories[type_, name] = repository
        self.commit(repository, "main", "initial commit", {".gitattributes": self.keep(GIT_ATTRIBUTES)}, [])
        return repository

    def commit(
        self,
        repository: Repository,
        branch: str,
        title: str,
        added: dict[str, dict[str, Any]],
        deleted: list[str],
        parent: str | None = None,
    ) -> dict[str, Any]:
        """Add a commit to a branch, whose head must be `parent` where one is named."""
        head = repository.branches.get(branch)
        if parent is not None and parent != head:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commit_of(head)["files"]) if head else {}
        for path in deleted:
            if path not in files:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            del files[path]
        files |= added
        number = f"{repository.type}/{repository.id}/{len(repository.commits)}/{title}"
        oid = hashlib.sha1(number.encode()).hexdigest()
        commit = {"oid": oid, "parent": head, "title": title, "files": files}
        repository.commits.append(commit)
        repository.branches[branch] = oid
        self.save()
        return commit

    def receive(self, sha256: str, size: int, read: Callable[[int], bytes]) -> int:
        """Keep an upload if it is whole and of this sha256; return the number of bytes that came."""
        staged = self.root / "partial" / f"{sha256}-{threading.get_ident()}"
        digest, came = hashlib.sha256(), 0
        with staged.open("wb") as file:
            while came < size and (chunk := read(min(1 << 20, size - came))):
                digest.update(chunk)
                came += file.write(chunk)
        if came < size or digest.hexdigest() != sha256:
            staged.unlink()
            raise Refusal(400, f"the upload is cut or damaged: {came} of {size} bytes")
        os.replace(staged, self.object(sha256))
        return came

    def xet_hashes(self) -> dict[str, str]:
        """Return sha256 -> Xet hash of all that hf_xet has uploaded, read from the shards that it leaves.

        A shard is a row of 48-byte records: a header, then for each file its hash with flags and a count, that many
        segments, as many checks where flag 31 is set, and where flag 30 is set the sha256. A hash of ones ends it.
        """
        found = {}
        for shard in (self.root / "cas").rglob("*.mdb"):
            content = shard.read_bytes()
            place = 48
            while place + 48 <= len(content) and content[place : place + 32] != b"\xff" * 32:
                file, flags, count = _hex(content[place : place + 32]), *struct.unpack_from("<II", content, place + 32)
                place += 48 * (1 + count * (2 if flags >> 31 & 1 else 1))
                if flags >> 30 & 1:
                    found[_hex(content[place : place + 32])] = file
                    place += 48
        return found

    def materialize(self, sha256: str, size: int) -> None:
        """Make a file of what hf_xet has uploaded, so that clients without it can have it.

        Raises:
            Refusal: nothing of this sha256 was uploaded.
        """
        if self.object(sha256).exists():
            return
        xet_hash = self.xet_hashes().get(sha256)
        if xet_hash is None:
            raise Refusal(400, f"no object {sha256} was uploaded")
        from hf_xet import XetFileInfo, XetSession

        staged, copy = self.root / "partial" / sha256, self.root / "partial" / "cas"
        # the client still holds the lock of the store itself
        shutil.copytree(self.root / "cas", copy)
        store = {"endpoint": f"local://{copy}", "token": "t", "token_expiry_unix_secs": 1 << 40}
        with XetSession().new_file_download_group(**store) as group:
            group.start_download_file(XetFileInfo(xet_hash, size), str(staged))
        shutil.rmtree(copy)
        os.replace(staged, self.object(sha256))

    @property
    def cas(self) -> str:
        """The address of the content store that hf_xet writes to by itself."""
        return f"local://{self.root / 'cas'}"


def _hex(raw: bytes) -> str:
    """Xet writes a hash as four little-endian numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))

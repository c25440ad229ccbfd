# SPDX-License-Identifier: Apache-2.0
"""Replies of paid or slow models, kept one a line as they come: a rerun asks nothing twice, a killed run loses none.

A reply is found again by the fingerprint of its request. The request itself, which may hold a patient's text or image,
is not stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError, PeFoMedError
from .records import append_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What a model replied to one request.

    `key` fingerprints the request, `model` is the model as it called itself, `finish_reason` why it stopped. `seconds`
    is the time of the attempt that succeeded, `attempts` how many were made, `replied_at` a time in ISO 8601 UTC.
    Token counts are null where they were not reported.
    """

    key: str
    text: str
    model: str = ""
    system_fingerprint: str = ""
    finish_reason: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    seconds: float = 0.0
    attempts: int = 1
    replied_at: str = ""


Record = TypeVar("Record")


def fingerprint(request: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a request's canonical JSON: equal content, equal fingerprint, whatever the keys' order."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_appended(path: Path, record_type: type[Record], what: str) -> list[Record]:
    """Return the records that [`append_records`] wrote to a file, none where there is no file.

    The last line is left out where a kill has torn it. Keys that the type does not have are passed over.

    Args:
        what: what a line should be, for the error.

    Raises:
        PeFoMedError: another line is not such a record.
    """
    names = {f.name for f in fields(record_type)}  # type: ignore[arg-type]
    try:
        content = path.read_bytes() if path.exists() and path != Path(os.devnull) else b""
    except OSError as error:
        raise PeFoMedError(f"{path}: cannot be read ({error.strerror}); name another file") from None
    lines = content.splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            records.append(record_type(**{name: value for name, value in row.items() if name in names}))
        except (ValueError, TypeError, AttributeError):
            if number == len(lines) and not content.endswith(b"\n"):
                break
            raise PeFoMedError(f"{path}, line {number}: found no {what}") from None
    return records


def refuse_unwritable(path: str | os.PathLike[str]) -> None:
    """Make sure that a file can be written, before anything is paid for that would go there.

    Raises:
        ConfigError: its folder cannot be made or written to, or it is a folder.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(0, "is a folder")
        if path.exists():
            path.open("ab").close()
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another place") from None


class Ledger:
    """An append-only file of replies, read whole when it is opened.

    The last line is left out where a kill has torn it. Where two runs replied to the same request, the first stands.

    Raises:
        PeFoMedError: another line is not a reply.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.replies: dict[str, Reply] = {}
        self._read()

    def _read(self) -> None:
        for reply in read_appended(self.path, Reply, "reply of a model; this is no ledger, or it was edited"):
            self.replies.setdefault(reply.key, reply)

    def __len__(self) -> int:
        return len(self.replies)

    def __contains__(self, key: str) -> bool:
        return key in self.replies

    def __getitem__(self, key: str) -> Reply:
        return self.replies[key]

    def add(self, reply: Reply) -> None:
        """Keep a reply; it is on disk when this returns.

        Raises:
            PeFoMedError: it cannot be written.
        """
        try:
            append_records(self.path, [reply])
        except OSError as error:
            raise PeFoMedError(f"{self.path}: cannot be written ({error.strerror}); what it holds is kept") from None
        self.replies.setdefault(reply.key, reply)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs from asking for the same: wait until they are through, and read what they wrote.

        Raises:
            ConfigError: the ledger cannot be written.
        """
        import fcntl  # as `append_records`

        refuse_unwritable(self.path)
        lock = self.path.with_name(f".{self.path.name}.lock")
        while True:
            with lock.open("w") as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    logger.info("waiting for another run that writes to %s", self.path)
                    fcntl.flock(held, fcntl.LOCK_EX)
                # The run that held it before has taken the file away: what is locked now is nobody else's.
                if not lock.exists() or not os.path.samestat(os.fstat(held.fileno()), lock.stat()):
                    continue
                try:
                    self._read()
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return

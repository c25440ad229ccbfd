# SPDX-License-Identifier: Apache-2.0
"""The loopback Hub's HTTP: the requests that huggingface_hub 2.4 makes, faults to order, a log of all that came."""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .routes import ROUTES, Reply, routes_of
from .store import Refusal, Store

# No token of the real Hub looks like a word; a scanner for secrets must still take these for tokens.
WRITER, READER, OTHER = ("hf_" + letter * 34 for letter in "wro")
USERS = {WRITER: ("ada", "write"), READER: ("ada", "read"), OTHER: ("bob", "write")}


@dataclass
class Fault:
    """What happens instead at the next `times` requests whose "METHOD path" the pattern finds.

    `kind`: a status such as "503"; "drop" (no reply, nothing done); "lose_reply" (done, but no reply); "truncate"
    (half of the content); "corrupt" (a wrong byte); "hang" (no reply until the server ends); "" (only the action).
    """

    pattern: str
    kind: str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    action: Callable[[], Any] | None = None


@dataclass
class Request:
    """One line of the log."""

    method: str
    path: str
    host: str
    token: str | None
    status: int = 0
    received_bytes: int = 0
    fault: str = ""


class LoopbackHub(ThreadingHTTPServer):
    """A Hub on a free port of this machine, for the users `ada` (a token that writes, one that reads) and `bob`."""

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mistakes: list[str] = []
        self.ended = threading.Event()
        self.reset(root)

    def reset(self, root: Path) -> None:
        """Go on with what lies under `root`, without faults and with an empty log."""
        self.store = Store(root)
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.reached = threading.Event()
        self.spaces_cost_money = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def content_url(self) -> str:
        """The same server under another name, as contents lie on another host than the Hub."""
        return f"http://localhost:{self.server_address[1]}"

    def fault(self, pattern: str, kind: str, times: int = 1, **more: Any) -> None:
        """Order a fault."""
        self.faults.append(Fault(pattern, kind, times, **more))

    def writes(self) -> list[str]:
        """The requests that could have changed something, and those that asked for leave to."""
        asked = re.compile(r"/(xet-write-token|preupload|info/lfs)")
        return [
            f"{line.method} {line.path}"
            for line in self.log
            if line.method not in ("GET", "HEAD") or asked.search(line.path)
        ]

    def leaks(self) -> list[Request]:
        """Requests that carried a token to the host of the contents."""
        return [line for line in self.log if line.token and line.host.startswith("localhost")]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no news; a mistake of this server is."""
        if not isinstance(sys.exc_info()[1], OSError):
            self.mistakes.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"
    # headers and content in one packet: the client would wait for the second one
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        line = Request(self.command, url.path, self.headers.get("host", ""), token)
        self.server.log.append(line)
        self.unread = int(self.headers.get("content-length") or 0)
        fault = self._fault(f"{self.command} {unquote(url.path)}")
        line.fault = fault.kind if fault else ""
        if fault and fault.action:
            fault.action()
        if fault and fault.kind == "hang":
            self.rfile.read(min(self.unread, 1 << 16))
            self.server.reached.set()
            self.server.ended.wait()
        if fault and fault.kind in ("hang", "drop"):
            self.close_connection = True
            return
        if fault and fault.kind.isdigit():
            reply = Reply(int(fault.kind), {"error": "ordered"}, dict(fault.headers))
        else:
            reply = self._reply(url.path, token)
        line.status = reply.status
        while self.unread > 0 and self.read(1 << 20):
            pass
        line.received_bytes = int(self.headers.get("content-length") or 0) - self.unread
        if fault and fault.kind == "lose_reply":
            self.close_connection = True
            return
        self._send(reply, fault.kind if fault else "")

    def _fault(self, asked: str) -> Fault | None:
        with self.server.store.lock:
            for fault in self.server.faults:
                if fault.times > 0 and re.search(fault.pattern, asked):
                    fault.times -= 1
                    return fault
        return None

    def _reply(self, path: str, token: str | None) -> Reply:
        try:
            if token is not None and token not in USERS:
                raise Refusal(401, "Invalid credentials in Authorization header")
            self.user, self.role = USERS[token] if token else ("", "none")
            for method, pattern, route in ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, path)):
                    names = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                    return route(self, **routes_of(self.server.store, self.user, self.role, names))
            raise Refusal(404, f"the loopback Hub has no {self.command} {path}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | refusal.headers
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            return Reply(refusal.status, {"error": refusal.message} | refusal.more, headers)

    def read(self, size: int) -> bytes:
        """Read of the request's body."""
        chunk = self.rfile.read(min(size, self.unread))
        self.unread -= len(chunk)
        return chunk

    def body(self) -> bytes:
        """The whole of the request's body."""
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.read(self.unread)

    def json(self) -> Any:
        """The request's body as JSON."""
        return json.loads(self.body())

    def commit_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The lines of a commit: kind and value; contents are decoded."""
        for row in self.body().splitlines():
            line = json.loads(row)
            if line["key"] == "file":
                line["value"]["content"] = base64.b64decode(line["value"]["content"])
            yield line["key"], line["value"]

    def _send(self, reply: Reply, fault: str) -> None:
        content = reply.content
        if isinstance(content, Path):
            content = content.read_bytes()
            first, last = 0, len(content) - 1
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or ""):
                first, last = int(asked[1]), int(asked[2] or last)
                reply.status = 206
                reply.headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        elif not isinstance(content, bytes):
            reply.headers.setdefault("Content-Type", "application/json")
            content = json.dumps(content).encode()
        if fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "truncate":
            content = content[: len(content) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()


@contextmanager
def loopback_hub(root: Path) -> Iterator[LoopbackHub]:
    """Serve in a thread until the block ends. A later server on the same `root` goes on with what this one kept."""
    server = LoopbackHub(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        assert server.mistakes == []

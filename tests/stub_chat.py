# SPDX-License-Identifier: Apache-2.0
"""A stub of an OpenAI-compatible endpoint on this machine, with faults to order and a log of what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], str]


class StubChat(ThreadingHTTPServer):
    """Answers `POST /v1/chat/completions` with what `answer(body)` returns.

    `fault(body, attempt)` may name what happens instead at that attempt of the same body: a status as "429", "429 0.2"
    (with Retry-After), "slow SECONDS", "torn", "garbage", or "" for none.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer, fault: Callable[[dict[str, Any], int], str] | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.fault = answer, fault or (lambda body, attempt: "")
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.attempts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: StubChat

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        body, key = json.loads(raw), raw.decode()
        with self.server.lock:
            self.server.attempts[key] += 1
            attempt = self.server.attempts[key]
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers.items()))
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            self._reply(key, body, self.server.fault(body, attempt).split())
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def _reply(self, key: str, body: dict[str, Any], fault: list[str]) -> None:
        kind = fault[0] if fault else ""
        if kind == "slow":
            time.sleep(float(fault[1]))
        if kind == "torn":
            self.wfile.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{"choi')
            self.wfile.flush()
            self.close_connection = True
            return
        if kind.isdigit():
            headers = {"retry-after": fault[1]} if len(fault) > 1 else {}
            if kind.startswith("3"):
                headers["location"] = "http://127.0.0.1:9/elsewhere"
            self._send(int(kind), b'{"error": {"message": "no"}}', headers)
            return
        if kind == "garbage":
            self._send(200, b"<html>the proxy says hello</html>", {})
            return
        completion = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": f"{body['model']}-2026-11",
            "system_fingerprint": "fp_1",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": self.server.answer(body)},
                }
            ],
            "usage": {"prompt_tokens": 50, "completion_tokens": 5, "total_tokens": 55},
        }
        self._send(200, json.dumps(completion).encode(), {})
        with self.server.lock:
            self.server.answered[key] += 1

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(content)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def stub_chat(answer: Answer, fault: Callable[[dict[str, Any], int], str] | None = None) -> Iterator[StubChat]:
    """Serve in a thread until the block ends."""
    server = StubChat(answer, fault)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

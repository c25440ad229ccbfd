# SPDX-License-Identifier: Apache-2.0
"""JSON lines: read to the last one, or refused with the line's number."""

from __future__ import annotations

from pathlib import Path

import pytest

from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.records import read_jsonl


def test_a_byte_order_mark_blank_lines_and_any_line_end_are_read(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n\n{"b": 2}')
    assert list(read_jsonl(file)) == [(1, {"a": "é"}), (3, {"b": 2})]


@pytest.mark.parametrize(
    ("line", "said"),
    [(b"{", "not JSON"), (b"[1]", "found list"), (b'{"a": "\xe9"}', "not UTF-8")],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    file = tmp_path / "some.jsonl"
    file.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(PeFoMedError, match=f"some.jsonl, line 2: {said}"):
        list(read_jsonl(file))

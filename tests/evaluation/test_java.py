# SPDX-License-Identifier: Apache-2.0
"""METEOR's final formula against the Java program's own output, and what is said where Java is missing or fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pefomed_recipes.evaluation.java import (
    METEOR_JAR,
    TOKENIZER_JAR,
    JavaUnavailableError,
    meteor,
    meteor_counts,
    meteor_of_counts,
    ptb_words,
    why_no_java,
)

from .report_texts import coco_values

# A stub of Java: tokenizes by putting blanks around dots, and aligns by counting one matched word of two and three.
STUB = """#!/bin/sh
case "$*" in
  *PTBTokenizer*) sed 's/\\./ ./g' ;;
  *) while read -r line; do echo "2 3 0 0 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1"; done ;;
esac
"""


def test_meteor_of_each_item_and_of_all_is_what_the_java_program_prints() -> None:
    values = coco_values()
    counts = meteor_counts(values["meteor_lines"])
    assert meteor_of_counts(counts) == pytest.approx(values["meteor_items"], abs=1e-12)
    assert meteor_of_counts(counts.sum(axis=0, keepdims=True))[0] == pytest.approx(values["meteor"], abs=1e-12)
    assert 0 in values["meteor_items"] and 1 in values["meteor_items"]


def test_meteor_of_nothing_is_0() -> None:
    assert meteor_of_counts(np.zeros((1, 23)))[0] == 0


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`install(script)` puts a stub of Java and of pycocoevalcap's files where they are looked for."""

    def put(script: str) -> None:
        java = tmp_path / "bin" / "java"
        java.parent.mkdir()
        java.write_text(script)
        java.chmod(0o755)
        monkeypatch.setenv("PATH", f"{java.parent}:/usr/bin:/bin")
        for jar in (METEOR_JAR, TOKENIZER_JAR):
            path = tmp_path / "site" / "pycocoevalcap" / jar
            path.parent.mkdir(parents=True)
            path.write_bytes(b"")
        monkeypatch.syspath_prepend(tmp_path / "site")

    return put


def test_every_text_comes_back_in_its_place(install: Callable[[str], None]) -> None:
    install(STUB)
    assert why_no_java() == ""
    assert ptb_words(["clear.", "", "two\nlines."]) == [["clear"], [], ["two", "lines"]]
    values = meteor({"one": [["a", "b"]] * 2, "other": [["a", "|||"]] * 2}, [[["a", "b", "c"]], [["a"]]])
    # P = 1/2, R = 1/3, in one piece of one matched word
    expected = (1 / 2) * (1 / 3) / (0.85 / 2 + 0.15 / 3) * (1 - 0.6)
    for each in values.values():
        assert each(np.ones((1, 2)))["meteor"] == pytest.approx([expected])


def test_no_java_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_no_java() == "java not found"


def test_missing_files_of_pycocoevalcap_are_said(install: Callable[[str], None], tmp_path: Path) -> None:
    install(STUB)
    (tmp_path / "site" / "pycocoevalcap" / METEOR_JAR).unlink()
    assert "pycocoevalcap has no meteor/meteor-1.5.jar" in why_no_java()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("#!/bin/sh\ncat > /dev/null\necho secret >&2\nexit 3\n", "java ended with 3"),
        ("#!/bin/sh\ncat > /dev/null\necho one\n", "after 1 of 2 lines"),
    ],
)
def test_a_failing_java_is_a_reason_without_the_texts(
    install: Callable[[str], None], script: str, message: str
) -> None:
    install(script)
    with pytest.raises(JavaUnavailableError, match=message) as error:
        ptb_words(["secret", "text"])
    assert "secret" not in str(error.value)

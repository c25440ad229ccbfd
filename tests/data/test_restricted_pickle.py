# SPDX-License-Identifier: Apache-2.0
"""Pickles of plain data are loaded whole; whatever would run is refused before it does."""

from __future__ import annotations

import collections
import datetime
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest

from pefomed_recipes.data.reading import DatasetError
from pefomed_recipes.data.restricted_pickle import load_plain_pickle

PLAIN = [{"a": "é", "n": -(2**60), "f": 0.5, "t": [1, -2, 300, 70000], "none": None, "yes": True, "l": [[], {}]}]


def load(folder: Path, content: bytes) -> Any:
    path = folder / "x.pkl"
    path.write_bytes(content)
    return load_plain_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back_as_it_was(tmp_path, protocol):
    assert load(tmp_path, pickle.dumps(PLAIN, protocol)) == PLAIN
    assert load(tmp_path, pickletools.optimize(pickle.dumps(PLAIN, protocol))) == PLAIN


def test_text_of_python_2_is_read_as_utf_8(tmp_path):
    assert load(tmp_path, b"(lp0\nS'liver'\np1\naU\x03f\xc3\xa9a.") == ["liver", "fé"]


class Runs:
    def __reduce__(self) -> Any:
        return (os.system, ("true",))


class Built:
    def __init__(self) -> None:
        self.value = 1


@pytest.mark.parametrize(
    "thing",
    [Runs(), Built(), datetime.date(2020, 1, 1), collections.OrderedDict(a=1), len, {1, 2}, b"bytes", bytearray(b"x")],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_anything_but_plain_data_is_refused(tmp_path, thing, protocol):
    with pytest.raises(DatasetError, match=r"x\.pkl: refused\. At byte \d+ it asks to (import code|make an object)"):
        load(tmp_path, pickle.dumps([thing], protocol))


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02\x82\x01.",  # an object by its number in a registry
        b"(lp0\nPid\n.",  # an object by a name of the reader's
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    ],
)
def test_every_way_to_import_or_call_is_refused(tmp_path, content):
    with pytest.raises(DatasetError, match=r"refused\. At byte"):
        load(tmp_path, content)


def test_a_number_that_would_fill_the_memory_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="stores an object under a number too high"):
        load(tmp_path, b"\x80\x02]r\xff\xff\xff\x7f.")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"<html>", pickle.dumps(PLAIN)[:-5], b"h\x05.", b"a.", b"\x80\x63]."],
)
def test_damage_is_no_traceback(tmp_path, content):
    with pytest.raises(DatasetError, match=r"x\.pkl: no whole pickle \(\w+\); download it again"):
        load(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps([("a",)]),
        pickle.dumps([()]),
        b"\x80\x04]})" + b"2\x86" * 60 + b"Nsa.",  # each tuple holds the one before twice: 2**60 steps to hash
        b"\x80\x04]})" + b"\x85" * 2_000_000 + b"Nsa.",  # nested too deep for the stack
    ],
    ids=["a tuple", "an empty one", "wide", "deep"],
)
def test_tuples_which_could_hang_or_kill_as_keys_are_refused(tmp_path, content):
    with pytest.raises(DatasetError, match="it asks to make a tuple"):
        load(tmp_path, content)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_numbers_that_make_a_dict_slow_as_keys_are_refused(tmp_path, protocol):
    with pytest.raises(DatasetError, match="a number larger than any answer is"):
        load(tmp_path, pickle.dumps({n * (2**61 - 1): None for n in range(1, 9)}, protocol))


def test_large_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "x.pkl"
    with pytest.raises(DatasetError, match="cannot be read"):
        load_plain_pickle(path)
    with path.open("wb") as stream:
        stream.truncate(2**28 + 1)
    with pytest.raises(DatasetError, match="268,435,457 bytes, expected a pickle of at most 268,435,456"):
        load_plain_pickle(path)

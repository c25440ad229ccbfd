# SPDX-License-Identifier: Apache-2.0
"""Loads pickles that hold nothing but plain data. A pickle is a program: any other one is refused before it runs."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from .reading import DatasetError

MAX_BYTES = 2**28
# Instructions that make lists, dicts, text, numbers, None and booleans. Whatever imports, calls or builds an object is
# not among them, nor are tuples: as the key of a dict, one of a few bytes can take for ever to hash, or overflow the
# stack.
ALLOWED = frozenset(
    "PROTO FRAME MARK STOP POP POP_MARK DUP EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING "
    "SHORT_BINSTRING INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT NONE NEWTRUE NEWFALSE "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET".split()
)
_STORING = {"PUT", "BINPUT", "LONG_BINPUT"}
_INTEGERS = {"INT", "LONG", "LONG1", "LONG4"}
MAX_INTEGER = 2**60  # multiples of 2**61 - 1 have one hash, and a dict of many such keys never ends


class _PlainUnpickler(pickle.Unpickler):
    """A second lock behind the list of instructions: there is nothing that a pickle could import."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError("refused")


def load_plain_pickle(path: Path) -> Any:
    """Return the lists, dicts, texts and numbers of a pickle; text of Python 2 is read as UTF-8.

    Every instruction is looked at before the first one runs, so that a pickle that would import, call or build
    anything is refused as a whole.

    Raises:
        DatasetError: the file cannot be read, is larger than 256 MiB, is no whole pickle, or holds more than data,
            tuples, or integers beyond 2**60.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DatasetError(f"{path}: {size:,} bytes, expected a pickle of at most {MAX_BYTES:,}")
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: the file cannot be read ({error.strerror}); check its permissions") from None
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(content)):
            if opcode.name not in ALLOWED:
                raise DatasetError(
                    f"{path}: refused. At byte {position} it asks to {_plain_words(opcode.name)} ({opcode.name}); "
                    "expected lists, dicts, texts and numbers only. Do not load this file otherwise: it may run "
                    "anything. Download it again from the data set's own place"
                )
            # the table of stored objects grows to the highest number: one of 2**31 would fill the memory
            if opcode.name in _STORING and (argument or 0) > count:
                raise DatasetError(f"{path}: refused. At byte {position} it stores an object under a number too high")
            if opcode.name in _INTEGERS and abs(argument or 0) > MAX_INTEGER:
                raise DatasetError(f"{path}: refused. At byte {position} it holds a number larger than any answer is")
        return _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()
    except DatasetError:
        raise
    except Exception as error:  # damage shows in many ways, none of which may end in a traceback
        raise DatasetError(f"{path}: no whole pickle ({type(error).__name__}); download it again") from None


def _plain_words(opcode: str) -> str:
    if "GLOBAL" in opcode or opcode == "INST" or opcode.startswith("EXT"):
        return "import code"
    if "TUPLE" in opcode:
        return "make a tuple"
    return "call code" if opcode in ("REDUCE", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD") else "make an object"

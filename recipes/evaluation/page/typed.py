# SPDX-License-Identifier: Apache-2.0
"""Typed records from the JSON that `dataclasses.asdict` made of them."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_stored(kind: type[T], stored: Any) -> T:
    """Return `stored`, an object read from JSON, as the dataclass `kind` with all that it holds.

    Raises:
        ValueError: a key is unknown or missing, or a value has another type.
    """
    built = _built(kind, stored, "")
    assert isinstance(built, kind)
    return built


def _built(kind: Any, stored: Any, place: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        [inner] = [arg for arg in args if arg is not type(None)]
        return None if stored is None else _built(inner, stored, place)
    if is_dataclass(kind):
        return _dataclass(kind, stored, place)
    if origin in (list, tuple):
        _check(isinstance(stored, list), "list", stored, place)
        return origin(_built(args[0], one, f"{place}[{at}]") for at, one in enumerate(stored))
    if origin is dict:
        _check(isinstance(stored, dict), "object", stored, place)
        return {name: _built(args[1], one, f"{place}.{name}") for name, one in stored.items()}
    if origin is Literal:
        _check(stored in args, f"one of {', '.join(args)}", stored, place)
        return stored
    if kind is float and isinstance(stored, int) and not isinstance(stored, bool):
        return float(stored)
    if kind is not Any:
        _check(
            isinstance(stored, kind) and (kind is bool or not isinstance(stored, bool)), kind.__name__, stored, place
        )
    return stored


def _dataclass(kind: Any, stored: Any, place: str) -> Any:
    _check(isinstance(stored, dict), "object", stored, place)
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(stored) - known):
        raise ValueError(f"{place or 'top level'}: unknown key {unknown[0]!r}")
    hints = get_type_hints(kind)
    try:
        return kind(**{name: _built(hints[name], one, f"{place}.{name}") for name, one in stored.items()})
    except TypeError as error:  # a key is missing
        raise ValueError(f"{place or 'top level'}: {str(error).split(') ')[-1]}") from None


def _check(fits: bool, expected: str, stored: Any, place: str) -> None:
    if not fits:
        raise ValueError(f"{place.lstrip('.')}: found {type(stored).__name__}, expected {expected}")

# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can act on: what was found, what was expected, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PeFoMedError(Exception):
    """A user's mistake or bad input. Launchers print its text as one line and exit with code 1."""


class ConfigError(PeFoMedError):
    """A configuration that cannot be used. Launchers exit with code 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" (did you mean X?)"` for the nearest known word, or `""` when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""

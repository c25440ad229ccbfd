# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can act on: what was found, what was expected, what to do next."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Iterable, Iterator


class PeFoMedError(Exception):
    """A user's mistake or bad input. Launchers print its text as one line and exit with code 1."""


class ConfigError(PeFoMedError):
    """A configuration that cannot be used. Launchers exit with code 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" (did you mean X?)"` for the nearest known word, or `""` when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program on a user's mistake with one line on stderr: exit code 2 for settings, 1 for everything else.

    `--debug` on the command line (or PEFOMED_DEBUG=1) shows the traceback instead. Meanwhile the project's own log
    goes to stderr, that of the main process only.
    """
    if os.environ.get("RANK", "0") == "0" and logging.lastResort is not None:
        logging.getLogger(__package__).setLevel(logging.INFO)
        logging.lastResort.setLevel(logging.INFO)  # the handler that stands in where a program has set up none
    try:
        yield
    except PeFoMedError as error:
        if os.environ.get("PEFOMED_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None

# SPDX-License-Identifier: Apache-2.0
"""The record of one check of a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["problem", "caution", "unchecked", "clear"]
LEVELS: tuple[Level, ...] = ("problem", "caution", "unchecked", "clear")


@dataclass(frozen=True)
class Finding:
    """What one check says.

    `name` is stable, the texts are for people. `problem` and `caution`: its signature was found; `clear`: it was not;
    `unchecked`: what the check needs is not there, and `evidence` says what. `command` is what to run next, "" for
    none.
    """

    name: str
    level: Level
    title: str
    evidence: str
    command: str = ""

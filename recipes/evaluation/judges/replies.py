# SPDX-License-Identifier: Apache-2.0
"""Strict reading of a judge's reply: a score that is certain, or none with the reason; never clamped or guessed."""

from __future__ import annotations

import json
import re

_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_LINE = re.compile(r"^[ \t>*_#-]*(?:score|correctness)[ \t*_]*:[ \t*_]*(.*?)[ \t*_]*$", re.IGNORECASE | re.MULTILINE)


def read_score(reply: str, top: int) -> tuple[int | None, str]:
    """Return `(score, "")`, or `(None, reason)` where the reply does not give one whole score in 0..`top`.

    A reply is a JSON object with an integer `score`, alone or in a code fence, or a text with exactly one line
    `Score: N` or `Correctness: N`. `3.5`, `4/5`, `"3"`, `true`, two scores, a score beside the scale, and a number
    somewhere in a sentence are no scores.

    Source: the two forms that the paper's judge prompts ask for. Differs: the released code takes the first digit
    0..5 it finds, and drops answers that it cannot read from the denominator.
    """
    if not reply.strip():
        return None, "empty reply"
    fenced = _FENCE.match(reply)
    text = fenced[1] if fenced else reply
    try:
        found = json.loads(text, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError):
        return _from_line(reply, top)
    if not isinstance(found, dict) or "score" not in found:
        return None, "JSON without a score"
    score = found["score"]
    if isinstance(score, bool) or not isinstance(score, int):
        return None, f"score of the type {type(score).__name__}, expected an integer"
    return _in_range(score, top)


def _from_line(reply: str, top: int) -> tuple[int | None, str]:
    lines = _LINE.findall(reply)
    if len(lines) != 1:
        return None, "several scores" if lines else "no score"
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", lines[0]):
        return None, "the score is no whole number"
    return _in_range(int(lines[0]), top)


def _in_range(score: int, top: int) -> tuple[int | None, str]:
    return (score, "") if 0 <= score <= top else (None, f"score {score} is off the scale 0..{top}")


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found

# SPDX-License-Identifier: Apache-2.0
"""How ways of doing the same work are compared: interleaved, so that a busy machine slows them alike."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..training.provenance import environment, utc_now, write_json
from .measuring import RESULTS

logger = logging.getLogger(__name__)

ROUNDS = 5


def seconds_of(way: Callable[[], Any]) -> float:
    """Return what one run takes: CPU seconds of this process, or seconds between two events of the GPU."""
    if torch.cuda.is_available():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    before = time.process_time()
    way()
    return time.process_time() - before


def interleaved(ways: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Run all ways in turn, once to warm up and then `rounds` times; return each one's seconds, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            taken = seconds_of(way)
            logger.info("round %d of %d, %s: %.2f s", number, rounds, name, taken)
            if number:
                seconds[name].append(taken)
    return seconds


def summary(seconds: Mapping[str, Sequence[float]], questions: Mapping[str, int] | int) -> dict[str, Any]:
    """Return median, least and most milliseconds a question of each way, and the rounds they are of."""
    rows = {}
    for name, values in seconds.items():
        count = questions if isinstance(questions, int) else questions[name]
        each = [1000 * value / count for value in values]
        rows[name] = {
            "ms_per_question": round(statistics.median(each), 3),
            "least": round(min(each), 3),
            "most": round(max(each), 3),
            "rounds": len(each),
        }
    return rows


def speedup(rows: Mapping[str, Mapping[str, Any]], plain: str, ours: str) -> float:
    """Return how many times faster one way is than another, by their medians."""
    return round(rows[plain]["ms_per_question"] / rows[ours]["ms_per_question"], 2)


def save(name: str, result: dict[str, Any], json_path: Path | None, *, full_size: bool) -> dict[str, Any]:
    """Return the result with method, versions and time added, after writing it.

    Args:
        name: of the file in `results/`, which is written for full sizes only.
        json_path: where else it is written.
    """
    how = "events of the GPU" if torch.cuda.is_available() else "CPU seconds of the process, one thread"
    result = {
        **result,
        "method": f"{how}; ways interleaved in one process, one warm-up, medians",
        "environment": environment(),
        "finished": utc_now(),
    }
    if full_size:
        write_json(RESULTS / f"{name}.json", result)
    if json_path is not None:
        write_json(json_path, result)
    return result

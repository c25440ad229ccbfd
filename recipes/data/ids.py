# SPDX-License-Identifier: Apache-2.0
"""Finds ids that come twice in a million rows, of one file or several, without keeping the ids."""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from .reading import MAX_LISTED_PROBLEMS, DatasetError, Problems


class Ids:
    """Notes the ids of a file in 16 bytes each, and says at its end which came twice."""

    def __init__(self) -> None:
        self.hashes, self.numbers = array("Q"), array("Q")

    def add(self, identifier: str, number: int) -> None:
        """Note the id of the row with this number."""
        # 64 bits: two different ids of a million meet with a chance of 3e-8
        digest = hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self.hashes.append(int.from_bytes(digest, "little"))
        self.numbers.append(number)

    def note_repeats(self, problems: Problems) -> None:
        """Add a problem for each id that an earlier row has; the text names that row, and not the id."""
        for first, second in _pairs(np.array(self.hashes, np.uint64)):
            problems.add(
                self.numbers[second], f"the id of {problems.unit} {self.numbers[first]} again; ids must differ"
            )


def refuse_repeats_over_files(root: Path, files: Sequence[tuple[Problems, Ids]]) -> None:
    """Check that no id of one file of a split is in another one, too.

    Args:
        root: the data set's folder.
        files: of the split, each with its ids.

    Raises:
        DatasetError: there are such ids; both places of each are named, the first 20 listed.
    """
    if len(files) < 2:
        return
    starts = list(accumulate((len(ids.hashes) for _, ids in files), initial=0))

    def named(at: int) -> str:
        file = bisect_right(starts, at) - 1
        problems, ids = files[file]
        name = Path(os.path.relpath(problems.path, root)).as_posix()
        return f"{name}, {problems.unit} {ids.numbers[at - starts[file]]}"

    hashes = np.concatenate([np.array(ids.hashes, np.uint64) for _, ids in files])
    found = sorted(_pairs(hashes), key=lambda pair: pair[1])
    if found:
        lines = [f"  {named(after)}: the id of {named(before)} again" for before, after in found[:MAX_LISTED_PROBLEMS]]
        lines += [f"  and {len(found) - MAX_LISTED_PROBLEMS} more"] if len(found) > MAX_LISTED_PROBLEMS else []
        text = f"{root}: {len(found)} ids come again; they must differ over all files of a split"
        raise DatasetError("\n".join([text, *lines]))


def _pairs(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (place of the earlier one, place of the later one) of neighbours among equal hashes."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    for at in np.flatnonzero(ordered[1:] == ordered[:-1]):
        yield int(order[at]), int(order[at + 1])

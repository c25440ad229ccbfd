# SPDX-License-Identifier: Apache-2.0
"""Finds ids that come twice in a file of a million rows without keeping the ids."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np

from .reading import Problems


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
        if not self.hashes:
            return
        hashes, numbers = np.frombuffer(self.hashes, np.uint64), np.frombuffer(self.numbers, np.uint64)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        for at in np.flatnonzero(ordered[1:] == ordered[:-1]):
            before, after = int(numbers[order[at]]), int(numbers[order[at + 1]])
            problems.add(after, f"the id of {problems.unit} {before} again; ids must differ")

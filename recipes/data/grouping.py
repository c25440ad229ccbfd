# SPDX-License-Identifier: Apache-2.0
"""Which samples belong together: those that share an image, a study or a patient, be it through others."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from ..records import Sample

Key = TypeVar("Key", bound=Hashable)


def group_keys(sample: Sample) -> list[tuple[str, str]]:
    """Return what a sample may share with others: images, image id, study and patient; itself where it has none."""
    keys = [("path", path) for path in sample.image_paths]
    labels = (("image", sample.image_id), ("study", sample.study_id), ("patient", sample.patient_id))
    return keys + [label for label in labels if label[1]] or [("sample", sample.id)]


def connected(keys: Iterable[Sequence[Key]]) -> list[Key]:
    """Return for each entry the name of its group: entries with a key in common, be it through others, are in one.

    Args:
        keys: at least one for each entry.
    """
    parents: dict[Key, Key] = {}

    def find(key: Key) -> Key:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    firsts = []
    for first, *others in keys:
        firsts.append(first)
        for other in others:
            parents[find(other)] = find(first)
    return [find(first) for first in firsts]

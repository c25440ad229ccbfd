# SPDX-License-Identifier: Apache-2.0
"""Which datasets there are by slug, and what stands in for a validation split that is not there."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import ConfigError, did_you_mean
from ..records import Sample
from .jsonl import DatasetError, MissingSplitError, canonical_split, keep_task, read_jsonl_samples

logger = logging.getLogger(__name__)

# Each reader takes (folder, split) and raises MissingSplitError where the folder has no such split.
READERS: dict[str, Callable[[str | os.PathLike[str], str], list[Sample]]] = {
    "jsonl": read_jsonl_samples,
    "phantoms": read_jsonl_samples,
}
# One fixed seed, whatever the run's: training and validation must agree on who is held out.
HOLD_OUT_SHARE, HOLD_OUT_SEED = 0.1, 0


def load_samples(dataset: str, data_root: str | os.PathLike[str], split: str, task: str | None = None) -> list[Sample]:
    """Return the samples of one split of a dataset.

    Where the dataset has no validation split, 10 % of its training images, with all their samples, are held out:
    always the same ones, whatever the task, so that no stage trains on an image that another one validates on.

    Args:
        dataset: slug of the dataset: `jsonl`, `phantoms`.
        data_root: the dataset's folder.
        split: `train`, `validation` or `test`.
        task: keep the samples of this task only; all without.

    Raises:
        ConfigError: the slug, split or task is unknown.
        DatasetError: the folder or split is missing, its content cannot be used, or nothing is left for the task.
    """
    if dataset not in READERS:
        raise ConfigError(
            f"Unknown dataset {dataset!r}{did_you_mean(dataset, READERS)}; expected one of {', '.join(READERS)}"
        )
    split = canonical_split(split)

    def read(root: str | os.PathLike[str], split: str) -> list[Sample]:
        return _named(READERS[dataset](root, split), dataset)

    if split == "test":
        return keep_task(read(data_root, split), task, data_root, split)
    try:
        samples = read(data_root, "validation")
    except MissingSplitError:
        train = read(data_root, "train")
        kept, held_out = hold_out(train, HOLD_OUT_SHARE, HOLD_OUT_SEED)
        logger.warning(
            "%s has no validation split: %d of %d training samples (%.0f %% of the images) are held out for it",
            *(data_root, len(held_out), len(train), 100 * HOLD_OUT_SHARE),
        )
        samples = kept if split == "train" else [replace(sample, split=split) for sample in held_out]
    else:
        samples = samples if split == "validation" else read(data_root, split)
    return keep_task(samples, task, data_root, split)


def _named(samples: Sequence[Sample], dataset: str) -> list[Sample]:
    """Return samples that know where they are from; a reader may have said it more precisely."""
    return [sample if sample.source else replace(sample, source=dataset) for sample in samples]


def hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split samples in two, (kept, held out): samples that share an image, study or patient stay together.

    Args:
        samples: in any order; both parts keep it.
        share: of the groups to hold out, 0..1; at least one group lands on each side.
        seed: decides which groups; the same on every machine and wherever the folder lies.

    Raises:
        DatasetError: all samples belong to one group.
    """
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def find(key: tuple[str, str]) -> tuple[str, str]:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for sample in samples:
        first, *others = _group_keys(sample)
        for other in others:
            parents[find(other)] = find(first)
    roots = [find(_group_keys(sample)[0]) for sample in samples]
    # A group is ranked by its smallest image id: unlike the paths, it names no machine.
    names: dict[tuple[str, str], str] = {}
    for sample, group in zip(samples, roots, strict=True):
        name = sample.image_id or sample.id
        names[group] = min(names.get(group, name), name)
    if len(names) < 2:
        raise DatasetError(
            f"Cannot hold out: found {len(names)} group(s) by image, study and patient, expected at least 2; "
            "add images or a validation split"
        )
    ranked = sorted(names, key=lambda group: hashlib.sha256(f"{seed}:{names[group]}".encode()).digest())
    chosen = set(ranked[: min(max(round(share * len(ranked)), 1), len(ranked) - 1)])
    kept = [sample for sample, group in zip(samples, roots, strict=True) if group not in chosen]
    held_out = [sample for sample, group in zip(samples, roots, strict=True) if group in chosen]
    return kept, held_out


def _group_keys(sample: Sample) -> list[tuple[str, str]]:
    keys = [("path", path) for path in sample.image_paths]
    labels = (("image", sample.image_id), ("study", sample.study_id), ("patient", sample.patient_id))
    return keys + [label for label in labels if label[1]] or [("sample", sample.id)]

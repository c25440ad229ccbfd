# SPDX-License-Identifier: Apache-2.0
"""Several data sets in one training run, each drawn from as often as its weight says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, interleave_datasets

from ..errors import PeFoMedError
from ..records import Sample
from .datasets_index import load_samples


def load_mixture(
    mixture: Mapping[str, float],
    dataset: str,
    data_root: str | os.PathLike[str],
    split: str,
    task: str,
    limit: int | None = None,
    **reading: Any,
) -> dict[str, list[Sample]]:
    """Return the samples of one split of every data set of a mixture, by the name of its folder in `data_root`.

    Args:
        mixture: the names; the weights are for [`mix_rows`].
        dataset: how each folder is read, see [`load_samples`]; `by_name` reads each as the data set of its name.
        limit: samples of each data set.
        reading: `language` and `on_missing` of [`load_samples`].

    Raises:
        PeFoMedError: folders are missing; all of them are named.
        DatasetError: the content of one cannot be used.
    """
    missing = [name for name in mixture if not (Path(data_root) / name).is_dir()]
    if missing:
        raise PeFoMedError(f"{data_root}: the mixture's folders {', '.join(missing)} are missing there")
    slug_of = {name: name if dataset == "by_name" else dataset for name in mixture}
    return {
        name: [
            replace(sample, source=name)
            for sample in load_samples(slug_of[name], Path(data_root) / name, split, task, **reading)[:limit]
        ]
        for name in mixture
    }


def mix_rows(rows: Mapping[str, Dataset], mixture: Mapping[str, float], *, training: bool, seed: int) -> Dataset:
    """Return the rows of all data sets as one: drawn by weight in training, one set behind the other elsewhere.

    In training each row is drawn from a set with the probability weight / sum of weights, until every set has been
    seen whole; smaller sets are repeated.

    Args:
        rows: packed rows by name of the set.
        mixture: weight by name of the set, above 0.

    Source: the sampling ratios in the released code's file for stage 1.
    Differs: the released code names these ratios, but concatenates the sets; every sample is as likely there.
    """
    sets = [rows[name] for name in mixture]
    if not training:
        return concatenate_datasets(sets)
    total = sum(mixture.values())
    shares = [weight / total for weight in mixture.values()]
    return interleave_datasets(sets, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")

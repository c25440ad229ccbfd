# SPDX-License-Identifier: Apache-2.0
"""Reads what `pefomed data prepare` writes: Parquet shards with embedded images, and `prepared.json`, the manifest.

A row is a sample: its columns are those of `Sample`, with `image_paths` as names below the original folder, and
`images`, the bytes of its images in the same order. Rows about the same image stand together in a shard, and their
samples name it alike, so that training packs its questions and nothing is decoded twice.

The terms of the original data set go with each row: a credentialed one stays so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records import TASKS, Sample
from .parquet_images import open_parquet, parquet_reference, read_rows
from .reading import DatasetError, Layout, MissingSplitError, Source, canonical_split, sample_features

if TYPE_CHECKING:
    from datasets import Features

MANIFEST = "prepared.json"
FORM_VERSION = 1
IMAGES = "images"
COLUMNS = [column.name for column in fields(Sample)]


def prepared_features() -> Features:
    """Return the columns of a shard: those of a sample, and its encoded images."""
    from datasets import Features, Image, List

    return Features({**sample_features(), IMAGES: List(Image(decode=False))})


def read_manifest(root: Path) -> dict[str, Any]:
    """Return the manifest of prepared shards.

    Raises:
        DatasetError: it cannot be read, is of another version, or a shard is missing or not as long as it should be.
    """
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, shards = manifest["form_version"], manifest["shards"]
        expected = {shard["file"]: shard["bytes"] for shard in shards}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: no manifest of prepared shards ({type(error).__name__}); prepare again") from None
    if version != FORM_VERSION:
        raise DatasetError(f"{path}: found form version {version}, expected {FORM_VERSION}; prepare again")
    wrong = [
        f"  {name}: missing or not whole"
        for name, size in expected.items()
        if Path(name).name != name or not (root / name).is_file() or (root / name).stat().st_size != size
    ]
    if wrong:
        raise DatasetError("\n".join([f"{path}: {len(wrong)} of {len(shards)} shards cannot be used", *wrong[:20]]))
    return manifest


def read_prepared(root: Path, split: str) -> Iterator[Sample]:
    """Yield the samples of a split, shard after shard.

    Raises:
        MissingSplitError: no shard is of this split.
        DatasetError: the manifest or a shard cannot be used.
    """
    split = canonical_split(split)
    names = [shard["file"] for shard in read_manifest(root)["shards"] if shard["split"] == split]
    if not names:
        raise MissingSplitError(f"{root / MANIFEST}: no shard of the {split} split")
    for name in names:
        with open_parquet(root / name) as parquet:
            if parquet.schema_arrow.names != [*COLUMNS, IMAGES]:
                raise DatasetError(f"{root / name}: other columns than those of prepared samples; prepare again")
        references: dict[str, str] = {}
        for row, cells in read_rows(root / name, COLUMNS, batch_rows=1024):
            for place, image in enumerate(cells["image_paths"]):
                references.setdefault(image, parquet_reference(root / name, row, place))
            yield Sample(**{**cells, "image_paths": [references[image] for image in cells["image_paths"]]})


SOURCE = Source(
    "prepared",
    "prepared shards",
    TASKS,
    "",
    (
        Layout(
            "prepared parquet",
            lambda root: (root / MANIFEST).is_file(),
            read_prepared,
            "prepared.json and the shards that it names, as `pefomed data prepare` writes them",
        ),
    ),
    languages=(),
)

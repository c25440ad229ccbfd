# SPDX-License-Identifier: Apache-2.0
"""Writes one Parquet shard of samples with embedded images.

All questions about an image stand in neighbouring rows, and Parquet's dictionaries hold equal images of a row group
once. Row groups are small, since an image drawn at random costs the reading of its whole group.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..records import Sample
from .bare_images import bare_image
from .image_facts import relative_name
from .prepared import IMAGES, prepared_features
from .tallies import image_keys

GROUP_BYTES = 2**22  # of different images in a row group
REPEATED_GROUP_BYTES = 2**26  # of a row group once each row has a copy of its images
GROUP_ROWS = 1000
DICTIONARY_BYTES = 2**28  # images larger than Parquet's usual limit would end a dictionary
FACTS_KEY = b"pefomed"  # of a shard's own metadata: its fingerprint and counts


def image_names(sample: Sample, root: str) -> list[str]:
    """Return what a sample's images are called in a shard: their names below the data set's folder, alike for the
    same image."""
    keys = zip(image_keys(sample), sample.image_paths, strict=True)
    return [relative_name(path, root) if key == path else key for key, path in keys]


def write_shard(path: Path, samples: Sequence[Sample], root: str, max_side_px: int | None, fingerprint: str) -> None:
    """Write a shard; it appears under its name only when it is whole.

    Args:
        path: of the shard.
        samples: in any order; those about the same images are put side by side.
        root: the data set's folder.
        max_side_px: as for [`bare_image`].
        fingerprint: of settings and samples, kept in the shard.

    Raises:
        PeFoMedError: an image cannot be used.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = prepared_features().arrow_schema
    # another process may be at the same shard, left over from a run that was killed
    staged = path.with_name(f".{path.name}.{os.getpid()}.partial")
    facts = {"fingerprint": fingerprint, "rows": len(samples), "images": 0, "encoded_anew": 0}
    try:
        with pq.ParquetWriter(
            staged, schema, compression="zstd", dictionary_pagesize_limit=DICTIONARY_BYTES
        ) as writer:
            for rows in _row_groups(samples, root, max_side_px, facts):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=len(rows))
            writer.add_key_value_metadata({FACTS_KEY: json.dumps(facts).encode()})
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _row_groups(
    samples: Sequence[Sample], root: str, max_side_px: int | None, facts: dict[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one row group after the other; count images in `facts`."""
    by_images: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        by_images.setdefault(tuple(image_names(sample, root)), []).append(sample)
    seen: set[str] = set()
    rows: list[dict[str, Any]] = []
    contents: dict[str, bytes] = {}
    repeated = 0
    for names, about in by_images.items():
        for sample in about:
            for name, image in zip(names, sample.image_paths, strict=True):
                if name not in contents:
                    contents[name], anew = bare_image(image, max_side_px)
                    if name not in seen:
                        facts["images"] += 1
                        facts["encoded_anew"] += anew
                        seen.add(name)
            own = [contents[name] for name in names]
            repeated += sum(map(len, own))
            embedded = {IMAGES: [{"bytes": content, "path": None} for content in own]}
            rows.append(asdict(sample) | {"image_paths": list(names)} | embedded)
            total = sum(map(len, contents.values()))
            if len(rows) >= GROUP_ROWS or total >= GROUP_BYTES or repeated >= REPEATED_GROUP_BYTES:
                yield rows
                rows, repeated, contents = [], 0, {}
    if rows:
        yield rows


def stored_facts(path: Path) -> dict[str, Any]:
    """Return what a shard says of itself: `fingerprint`, `rows`, `images`, `encoded_anew`; {} for no whole shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return json.loads((pq.read_metadata(path).metadata or {}).get(FACTS_KEY, b"{}"))
    except (OSError, ValueError, pa.ArrowException):
        return {}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

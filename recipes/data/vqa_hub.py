# SPDX-License-Identifier: Apache-2.0
"""Reads question-and-answer sets from the Hub's Parquet mirrors: columns `image`, `question`, `answer`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..records import Sample
from .parquet_images import image_column, open_parquet, parquet_reference, read_rows
from .reading import SPLIT_SPELLINGS, DatasetError
from .vqa_rows import VqaRows, find_all, require_split, split_names

EXPECTED = "data/train-00000-of-00001-*.parquet with image, question and answer"
_TEMPLATES = ("{}.parquet", "{}-*.parquet", "{}/*.parquet")
_SHARD = re.compile(r"-of-(\d+)")


def is_hub_form(root: Path) -> bool:
    """Whether a folder holds Parquet files with an image column, questions and answers."""
    for split in SPLIT_SPELLINGS:
        for path in find_all(root, *split_names(split, *_TEMPLATES))[:1]:
            return _columns(path) is not None
    return False


def read_hub_samples(slug: str, root: Path, split: str) -> Iterator[tuple[Sample, str]]:
    """Yield `(sample, file name of its image)` for the rows of a split, file after file.

    Ids count the rows of the split from 0, as `datasets` does. `image_id` is a hash of the image's bytes, so that rows
    about the same image have the same one. The file name is "" where the mirror kept none.

    Raises:
        MissingSplitError: there is no file of the split.
        DatasetError: a file is damaged, a column or one of the split's files is missing, or rows have problems.
    """
    rows = VqaRows(slug, root, split)
    references: dict[str, str] = {}
    for index, (image, cells) in enumerate(_cells(root, split)):
        content, name = _image_of(cells, image)
        number = index + 1
        if not content:
            rows.problems.add(number, "holds no image")
        image_id = hashlib.sha256(content).hexdigest()[:16]
        # one name for all rows about an image: training packs its questions, and nothing is decoded twice
        reference = references.setdefault(image_id, parquet_reference(cells["file"], cells["row"]))
        sample = rows.sample(
            number, index, [reference if content else None], cells["question"], cells["answer"], image_id=image_id
        )
        if sample:
            yield sample, name
    rows.finish()


def _cells(root: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `(path of the column with the images, cells)`, with `file` and `row` among them."""
    files = find_all(root, *split_names(split, *_TEMPLATES))
    first = require_split(files[0] if files else None, root, split, f"{split}-*.parquet")
    shards = _SHARD.search(first.name)
    if shards and len(files) != int(shards[1]):
        raise DatasetError(
            f"{first.parent}: found {len(files)} Parquet file(s) of the {split} split, expected {int(shards[1])}; "
            "download the others"
        )
    for path in files:
        columns = _columns(path)
        if columns is None:
            raise DatasetError(f"{path}: expected the columns question and answer, and one with the images' bytes")
        for row, cells in read_rows(path, columns):
            yield columns[0], {**cells, "file": path, "row": row}


def _columns(path: Path) -> list[str] | None:
    """Return the paths of the columns to read, the image's bytes first; None where one is missing."""
    with open_parquet(path) as parquet:
        schema = parquet.schema_arrow
    image = image_column(schema)
    if image is None or not {"question", "answer"} <= set(schema.names):
        return None
    column = image.partition(".")[0]
    has_name = column != image and schema.field(column).type.get_field_index("path") >= 0
    return [image, *([f"{column}.path"] if has_name else []), "question", "answer"]


def _image_of(cells: dict[str, Any], image: str) -> tuple[bytes, str]:
    """Return the bytes and the file name of a row's image, empty where there are none."""
    value = cells[image.partition(".")[0]]
    if isinstance(value, dict):
        return value["bytes"] or b"", Path(value.get("path") or "").name
    return value or b"", ""

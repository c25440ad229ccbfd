# SPDX-License-Identifier: Apache-2.0
"""Reads people's own folders in the form that `datasets` calls imagefolder: images beside a metadata file.

    data/train/metadata.csv        file_name,question,answer
    data/train/0001.png
    data/test/metadata.csv

`metadata.csv` or `metadata.jsonl` has one row a sample. `file_name` names the image, relative to the metadata file;
`file_names` (in JSON lines) a list of them. `text` is a caption. All other columns are those of the JSON lines form
(see `jsonl`). Metadata files may also lie in folders deeper down.

A folder called after a split, in any spelling, holds that split. A single metadata file right in the data's folder
holds all splits, told apart by its column `split`; `train` where there is none.

Differs: from `datasets` in that images without a row are left alone, and that there are no labels by folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..records import TASKS, Sample
from .csv_form import table_rows
from .ids import Ids, refuse_repeats_over_files
from .jsonl import KNOWN_KEYS, parse_lines, row_samples
from .reading import SPLIT_SPELLINGS, DatasetError, Layout, MissingSplitError, Problems, Source, canonical_split

NAMES = ("metadata.csv", "metadata.jsonl")
# What the convention calls our keys.
RENAMED = {"file_name": "image", "file_names": "image", "text": "caption"}


def stream_image_folder(root: Path, split: str) -> Iterator[Sample]:
    """Yield the samples of one split, metadata file after metadata file.

    Raises:
        MissingSplitError: there is no folder or row of the split.
        DatasetError: columns are unknown or missing, or rows have problems: all of a file, at its end; at the end of
            all, ids of one file that another one has.
    """
    root, split = Path(os.path.abspath(root)), canonical_split(split)
    folders = [root / spelling for spelling in SPLIT_SPELLINGS[split] if (root / spelling).is_dir()]
    files = sorted(path for folder in folders for path in folder.rglob("metadata.*") if path.name in NAMES)
    shared = [root / name for name in NAMES if (root / name).is_file()]
    if len(shared) > 1 or (shared and files):
        found = ", ".join(path.relative_to(root).as_posix() for path in [*shared, *files][:5])
        raise DatasetError(f"{root}: found {found}; expected one metadata file here, or one in each split's folder")
    if not shared and not files:
        raise MissingSplitError(f"{root}: found no metadata file of the {split} split; expected {split}/metadata.csv")
    read: list[tuple[Problems, Ids]] = []
    for path in shared or files:
        folder = path.parent.relative_to(root)
        problems, ids = Problems(path, "line"), Ids()
        read.append((problems, ids))
        if path.suffix == ".csv":
            known = tuple(key for key in KNOWN_KEYS if key != "image") + tuple(RENAMED)
            rows = table_rows(path, problems, known, required="file_name")
        else:
            rows = parse_lines(path, problems)
        renamed = ((number, _renamed(row, folder)) for number, row in rows)
        prefix = "-".join((split, *folder.parts[1:]))
        yield from row_samples(renamed, root, split, problems, is_shared=bool(shared), id_prefix=prefix, ids=ids)
    refuse_repeats_over_files(root, read)


def _renamed(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a row under our keys, its images named from the data's folder."""
    row = {RENAMED.get(key, key): value for key, value in row.items()}
    image = row.get("image")
    if isinstance(image, str):
        row["image"] = str(folder / image)
    elif isinstance(image, list):
        row["image"] = [str(folder / name) if isinstance(name, str) else name for name in image]
    return row


def _is_image_folder(root: Path) -> bool:
    folders = [root / spelling for spellings in SPLIT_SPELLINGS.values() for spelling in spellings]
    return any(
        path.name in NAMES
        for path in [*root.glob("metadata.*"), *(path for folder in folders for path in folder.rglob("metadata.*"))]
    )


SOURCE = Source(
    "imagefolder",
    "a folder of images with metadata",
    TASKS,
    "",
    (
        Layout(
            "imagefolder",
            _is_image_folder,
            stream_image_folder,
            "train/metadata.csv or metadata.jsonl with file_name and the columns of a task, beside the images",
        ),
    ),
    languages=(),
)

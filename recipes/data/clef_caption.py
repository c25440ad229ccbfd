# SPDX-License-Identifier: Apache-2.0
"""ImageCLEFmedical Caption 2022: figures of open-access articles with their captions.

- original: `caption_prediction_train.csv` and `caption_prediction_valid.csv`, TAB separated in spite of their names
  (`ID`, `caption`), and `train/ID.jpg`, `valid/ID.jpg`. The captions of `test/` were not given out: it is missing.
- prepared: `train.json` and so on, a list of `{"image", "caption"}`, as PeFoMed writes it.

Source: imageclef.org/2022/medical/caption. Licence: registration and the user agreement of ImageCLEF.

Known defects: a subset of extended ROCO, so it overlaps ROCO and ROCOv2; empty captions are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..records import Sample
from .caption_forms import PREPARED_EXPECTED, has_prepared_captions, read_caption_table, read_prepared_captions
from .files import read_tsv
from .reading import SPLIT_SPELLINGS, Layout, MissingSplitError, Source, canonical_split

# The prepared form names images with folders that people do not have; the file names alone tell them apart.
PREPARED_PLACES = ("{file}", "images/{file}", "train/{file}", "valid/{file}", "test/{file}")


def _spelling(root: Path, split: str) -> str | None:
    """Return how the folder spells a split, None where it has none."""
    spellings = SPLIT_SPELLINGS[split]
    return next((s for s in spellings if (root / f"caption_prediction_{s}.csv").is_file()), None)


def _read_original(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    spelling = _spelling(root, split)
    if spelling is None:
        raise MissingSplitError(f"{root}: no captions of the {split} split; expected caption_prediction_{split}.csv")
    path = root / f"caption_prediction_{spelling}.csv"
    places = (f"{spelling}/{{name}}", f"images/{spelling}/{{name}}", "images/{name}")
    yield from read_caption_table(path, split, read_tsv, places)


SOURCE = Source(
    slug="clef_caption",
    title="ImageCLEFmedical Caption 2022",
    tasks=("caption",),
    licence="ImageCLEF user agreement",
    layouts=(
        Layout(
            "original",
            lambda root: any(_spelling(root, split) for split in SPLIT_SPELLINGS),
            _read_original,
            "caption_prediction_train.csv (TAB separated) and the folder train",
            {"train": {"samples": 83275}, "validation": {"samples": 7645}},
        ),
        Layout(
            "prepared",
            has_prepared_captions,
            lambda root, split: read_prepared_captions("clef_caption", root, split, PREPARED_PLACES),
            PREPARED_EXPECTED,
        ),
    ),
)

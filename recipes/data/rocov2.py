# SPDX-License-Identifier: Apache-2.0
"""ROCOv2: radiology figures of open-access articles with their captions.

- original: `train_captions.csv` (`ID,Caption`; also `valid_`, `test_`), `license_information.csv`, and the zip files
  unpacked: `train/ID.jpg` or `train_images/ID.jpg`.
- Hub: Parquet files with `image`, `image_id`, `caption`, `cui`.

Source: zenodo.org/records/8333645, huggingface.co/datasets/eltorio/ROCOv2-radiology. Licence: CC BY-NC-SA 4.0, each
figure under its article's own, which stays with the sample where `license_information.csv` is there.

Known defects: overlaps ROCO and ImageCLEFmedical Caption, so captions of one are no zero-shot test for a model of the
other; empty captions are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..records import Sample
from .caption_forms import HUB_EXPECTED, has_hub_captions, read_caption_table, read_hub_captions
from .files import read_csv
from .reading import SPLIT_SPELLINGS, Layout, MissingSplitError, Problems, Source, canonical_split

COUNTS = {"train": {"samples": 60163}, "validation": {"samples": 9945}, "test": {"samples": 9972}}


def _spelling(root: Path, split: str) -> str | None:
    """Return how the folder spells a split, None where it has none."""
    return next((s for s in SPLIT_SPELLINGS[split] if (root / f"{s}_captions.csv").is_file()), None)


def _read_original(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    spelling = _spelling(root, split)
    if spelling is None:
        raise MissingSplitError(f"{root}: no captions of the {split} split; expected {split}_captions.csv")
    path = root / f"{spelling}_captions.csv"
    licences = _licences(root / "license_information.csv")
    folders = (spelling, f"{spelling}_images", f"{spelling}_images/{spelling}", "images")
    places = [f"{folder}/{{name}}" for folder in folders]
    yield from read_caption_table(path, split, read_csv, places, licences)


def _licences(path: Path) -> dict[str, str]:
    """Return the licence of each figure, with whom it credits: the cell that begins with CC. None without the file."""
    if not path.is_file():
        return {}
    problems = Problems(path, "line")
    licences = {}
    for _, row in read_csv(path, problems, ("id",)):
        licence = next((cell.strip() for cell in row.values() if cell.strip().startswith("CC")), "")
        licences[row["id"].strip()] = licence
    problems.raise_if_any()
    return licences


SOURCE = Source(
    slug="rocov2",
    title="ROCOv2",
    tasks=("caption",),
    licence="CC BY-NC-SA 4.0",
    layouts=(
        Layout(
            "original",
            lambda root: any(_spelling(root, split) for split in SPLIT_SPELLINGS),
            _read_original,
            "train_captions.csv and the images of train_images.zip in train or train_images",
            COUNTS,
        ),
        Layout("Hub", has_hub_captions, read_hub_captions, HUB_EXPECTED, COUNTS),
    ),
)

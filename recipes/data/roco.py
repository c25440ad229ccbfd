# SPDX-License-Identifier: Apache-2.0
"""ROCO v1: figures of open-access articles with their captions. Radiology, and a part that is not.

- original: `{train,validation,test}/{radiology,non-radiology}/captions.txt` (id, TAB, blank, caption), `licences.txt`
  and `images/ID.jpg`, in the folder or in `data/` below it. Radiology is read; a folder in which only `non-radiology`
  lies is read as that.
- prepared: `train.json` and so on, a list of `{"image", "caption"}`, as PeFoMed and its kin write it.
- Hub: Parquet files with `image`, `image_id`, `caption`.

Source: github.com/razorx89/roco-dataset. Licence: each figure's own, as `licences.txt` says, which stays with the
sample; 12 % of the training figures have no Creative Commons licence.

Known defects: figures that the publisher no longer serves are missing (reading them fails or skips, as `on_missing`
says); 12 % non-ASCII captions, captions of one word, and captions that name arrows and sub-figures stay as they are;
empty captions are left out and counted. ROCO overlaps ROCOv2 and ImageCLEFmedical Caption.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..records import Sample
from .caption_forms import (
    EMPTY,
    HUB_EXPECTED,
    PREPARED_EXPECTED,
    has_hub_captions,
    has_prepared_captions,
    read_hub_captions,
    read_prepared_captions,
)
from .files import ImageFinder, read_csv, text_lines, text_of
from .ids import Ids
from .reading import SPLIT_SPELLINGS, Layout, LeftOut, MissingSplitError, Problems, Source, canonical_split

PREPARED_PLACES = ("{name}", "images/{name}", "data/{name}")


def _part(root: Path, split: str, kind: str) -> Path | None:
    """Return the folder of a split's `radiology` or `non-radiology` part, None where it has none."""
    folders = [base / spelling / kind for base in (root, root / "data") for spelling in SPLIT_SPELLINGS[split]]
    return next((folder for folder in folders if (folder / "captions.txt").is_file()), None)


def _has_part(kind: str, root: Path) -> bool:
    return any(_part(root, split, kind) for split in SPLIT_SPELLINGS)


def _read_original(kind: str, root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    folder = _part(root, split, kind)
    if folder is None:
        raise MissingSplitError(
            f"{root}: no {kind} captions of the {split} split; expected {split}/{kind}/captions.txt"
        )
    path = folder / "captions.txt"
    licences = _licences(folder / "licences.txt")
    problems = Problems(path, "line")
    left_out = LeftOut(problems)
    ids, images = Ids(), ImageFinder(root, [f"{folder.relative_to(root).as_posix()}/images/{{name}}"])
    for number, line in text_lines(path, problems):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        name, caption = name.strip(), text_of({"caption": caption}, "caption", number, problems) or ""
        if not tab or not re.fullmatch(r"[\w-]+", name, re.ASCII):
            problems.add(number, "expected an id, a TAB and a caption")
            continue
        ids.add(name, number)
        if not caption:
            left_out.add(EMPTY, number)
        elif image := images.find_or_note(f"{name}.jpg", number, problems):
            yield Sample(name, "caption", [image], "", [caption], image_id=name, licence=licences.get(name, ""))
    ids.note_repeats(problems)
    problems.raise_if_any()
    left_out.log(split)


def _licences(path: Path) -> dict[str, str]:
    """Return the licence of each figure; none where the file is not there."""
    if not path.is_file():
        return {}
    problems = Problems(path, "line")
    # interned: six licences for 65,000 figures
    licences = {
        row["roco_id"].strip(): sys.intern(row["cc"].strip()) for _, row in read_csv(path, problems, ("roco_id", "cc"))
    }
    problems.raise_if_any()
    return licences


SOURCE = Source(
    slug="roco",
    title="ROCO",
    tasks=("caption",),
    licence="per figure (licences.txt)",
    layouts=(
        Layout(
            "original, radiology",
            partial(_has_part, "radiology"),
            partial(_read_original, "radiology"),
            "train/radiology/captions.txt and train/radiology/images",
            {"train": {"samples": 65448}, "validation": {"samples": 8180}, "test": {"samples": 8179}},
        ),
        Layout(
            "original, non-radiology",
            partial(_has_part, "non-radiology"),
            partial(_read_original, "non-radiology"),
            "the same with non-radiology, where no radiology lies beside it",
            {"train": {"samples": 4895}, "validation": {"samples": 611}, "test": {"samples": 612}},
        ),
        Layout(
            "prepared",
            has_prepared_captions,
            lambda root, split: read_prepared_captions("roco", root, split, PREPARED_PLACES),
            PREPARED_EXPECTED,
        ),
        # the mirror of the training split lacks the 25 figures that were never fetched
        Layout("Hub", has_hub_captions, read_hub_captions, HUB_EXPECTED, {"train": {"samples": 65423}}),
    ),
)

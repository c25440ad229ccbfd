# SPDX-License-Identifier: Apache-2.0
"""Reads PathVQA: questions generated from the captions of 4,998 pathology figures (UCSD-AI4H/PathVQA).

Licence: its card says MIT, but images and captions belong to the publishers of the books that they were taken from;
use it for research only.

Layouts:

- `original`: `pvqa/qas/train/train_qa.pkl`, a pickled list of objects with `image`, `question` and `answer`, and
  `pvqa/images/train/train_0422.jpg`. A pickle can run programs: only plain data is accepted, see `restricted_pickle`.
- `prepared`: `pathvqa_train.json`, `pathvqa_val.json`, `pathvqa_test.json` of MUMC and PeFoMed, and `images/`.
- `hub`: the Parquet mirror, which dropped rows that repeat.

Original and mirror state neither answer types nor question types: yes and no are `CLOSED`, marked as derived, and the
type is the question's first word, such as `WHERE`.

Known defects, and what becomes of them: blanks of any kind, doubled and around texts, are made one. Rows that repeat
and images without questions stay as they are. The yes-or-no questions can be answered to 75 % without an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..records import Sample
from .files import numbered_objects, read_json_rows
from .reading import DatasetError, Layout, Source, canonical_split
from .restricted_pickle import load_plain_pickle
from .vqa_hub import EXPECTED, is_hub_form, read_hub_samples
from .vqa_rows import VqaRows, find, first_row, image_places, require_split, split_names

SLUG = "path_vqa"
COUNTS = {
    "train": {"samples": 19755, "images": 2599, "closed": 9806},
    "validation": {"samples": 6279, "images": 832, "closed": 3135},
    "test": {"samples": 6761, "images": 858, "closed": 3391},
}
HUB_COUNTS = {"train": {"samples": 19654}, "validation": {"samples": 6259}, "test": {"samples": 6719}}


def _pickle(root: Path, split: str) -> Path | None:
    return find(root, *split_names(split, "qas/{0}/{0}_qa.pkl"))


def _prepared(root: Path, split: str) -> Path | None:
    path = find(root, *split_names(split, "pathvqa_{}.json"))
    return path if "image_name" in first_row(path) else None


def _read_original(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    path = require_split(_pickle(root, split), root, split, f"qas/{split}/{split}_qa.pkl")
    content = load_plain_pickle(path)
    if not isinstance(content, list):
        raise DatasetError(f"{path}: found a {type(content).__name__}, expected a list of objects")
    rows = VqaRows(SLUG, path, split)
    folder = path.parent.name  # images lie in a folder that is spelt as the one of the questions
    # qas/{split}/ lies beside images/
    base = path.parents[2].relative_to(root) / "images"
    cells = (
        (number, {**row, "image_name": _file_name(row.get("image"), folder)})
        for number, row in numbered_objects(content, rows.problems)
    )
    yield from _samples(root, rows, cells, [base.as_posix(), "images"])


def _file_name(image: Any, folder: str) -> Any:
    """Return `train/train_0422.jpg` for `train_0422`; whatever is no text stays as it is, to be told as a problem."""
    return f"{folder}/{image.strip()}.jpg" if isinstance(image, str) and image.strip() else image


def _read_prepared(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    path = require_split(_prepared(root, split), root, split, f"pathvqa_{split}.json")
    rows = VqaRows(SLUG, path, split)
    base = path.parent.relative_to(root) / "images"
    yield from _samples(root, rows, read_json_rows(path, rows.problems), [base.as_posix(), "images"])


def _samples(
    root: Path, rows: VqaRows, cells: Iterable[tuple[int, dict[str, Any]]], folders: list[str]
) -> Iterator[Sample]:
    images = image_places(root, root / "any", *folders)
    for number, row in cells:
        name = rows.text(number, "the image's name", row.get("image_name"))
        sample = rows.sample(
            number,
            row.get("qid", number),
            [images.find_or_note(name, number, rows.problems)],
            row.get("question"),
            row.get("answer"),
            answer_type=row.get("answer_type"),
            question_type=row.get("question_type"),
            image_id=name,
        )
        if sample:
            yield _with_type(sample)
    rows.finish()


def _read_hub(root: Path, split: str) -> Iterator[Sample]:
    for sample, _ in read_hub_samples(SLUG, root, canonical_split(split)):
        yield _with_type(sample)


def _with_type(sample: Sample) -> Sample:
    """Return the sample with its question's first word as its type, where the data names none."""
    word = re.search("[A-Za-z]+", sample.instruction)
    if word and not sample.question_types:
        sample.question_types = [word[0].upper()]
    return sample


SOURCE = Source(
    SLUG,
    "PathVQA",
    ("vqa",),
    "research only (card: MIT; images: their publishers)",
    (
        Layout(
            "original",
            lambda root: any(_pickle(root, split) for split in COUNTS),
            _read_original,
            "pvqa/qas/train/train_qa.pkl and pvqa/images/",
            COUNTS,
        ),
        Layout(
            "prepared",
            lambda root: any(_prepared(root, split) for split in COUNTS),
            _read_prepared,
            "pathvqa_train.json, pathvqa_val.json, pathvqa_test.json and images/",
            COUNTS,
        ),
        Layout("hub", is_hub_form, _read_hub, EXPECTED, HUB_COUNTS),
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""Reads SLAKE 1.0: questions in English and Chinese about 642 images (CC BY 4.0, med-vqa.com/slake).

Layouts:

- `original`: `train.json`, `validate.json`, `test.json` and `imgs/xmlab0/source.jpg`.
- `hub`: the same with `validation.json`, as in BoKelvin/SLAKE. Its `imgs.zip` has to be unpacked first.
- `prepared`: `slake_train.json`, `slake_val.json`, `slake_test.json` of MUMC and PeFoMed, in the folder or in `en/`
  and `zh/` below it, and `imgs/`.

`organ` is the set's `location`, `question_types` its `content_type` in upper case.

Known defects, and what becomes of them: one training row (qid 1622) has no answer and is left out, with a word in the
log. Each language is split by image, but the two splits differ: read together, 70 images of the Chinese test split are
in the English training split, so a language has to be chosen. Numbers are text. Rows that repeat, lists of answers in
any order, and questions that only outside knowledge answers (`KG`) stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..records import Sample
from .files import read_json_rows
from .ids import refuse_repeats_over_files
from .reading import DatasetError, Layout, Source, canonical_split
from .vqa_rows import VqaRows, find, find_all, first_row, image_places, require_split, split_names

SLUG = "slake"
LANGUAGES = ("en", "zh")
_CHINESE = re.compile("[\u4e00-\u9fff]")
# 9,835 rows in training: one has no answer
COUNTS = {
    "train": {"samples": 9834, "samples_en": 4918, "samples_zh": 4916, "images_en": 450},
    "validation": {"samples": 2099, "samples_en": 1053, "samples_zh": 1046, "images_en": 96},
    "test": {"samples": 2094, "samples_en": 1061, "samples_zh": 1033, "images_en": 96},
}


def _original(root: Path, split: str) -> Path | None:
    path = find(root, *split_names(split, "{}.json"))
    return path if "img_name" in first_row(path) else None


def _prepared(root: Path, split: str) -> list[Path]:
    found = find_all(root, *split_names(split, "slake_{}.json"))
    return [path for path in found if "image_name" in first_row(path)]


def _is_original(root: Path) -> bool:
    return any(_original(root, split) for split in COUNTS)


def _is_hub(root: Path) -> bool:
    return _is_original(root) and find(root, "validation.json", "imgs.zip") is not None


def _is_prepared(root: Path) -> bool:
    return any(_prepared(root, split) for split in COUNTS)


def _read_original(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    path = require_split(_original(root, split), root, split, f"{split}.json")
    yield from _samples(root, VqaRows(SLUG, path, split), "img_name")


def _read_prepared(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    paths = _prepared(root, split)
    require_split(paths[0] if paths else None, root, split, f"slake_{split}.json")
    files = [VqaRows(SLUG, path, split) for path in paths]
    for rows in files:
        yield from _samples(root, rows, "image_name")
    refuse_repeats_over_files(root, [(rows.problems, rows.ids) for rows in files])


def _samples(root: Path, rows: VqaRows, image_key: str) -> Iterator[Sample]:
    path = Path(rows.problems.path)
    archive = find(root, "imgs.zip")
    if archive and find(root, "imgs") is None:
        raise DatasetError(
            f"{archive}: the images are still packed; unpack them: unzip '{archive}' -d '{path.parent}'"
        )
    images = image_places(root, path, "imgs")
    for number, row in read_json_rows(path, rows.problems):
        name = rows.text(number, image_key, row.get(image_key))
        sample = rows.sample(
            number,
            row.get("qid"),
            [images.find_or_note(name, number, rows.problems)],
            row.get("question"),
            row.get("answer"),
            answer_type=row.get("answer_type"),
            question_type=row.get("content_type") or row.get("question_type"),
            language=_language(row),
            organ=row.get("location") or row.get("image_organ"),
            modality=row.get("modality"),
            image_id=name,
        )
        if sample:
            yield sample
    rows.finish()


def _language(row: dict[str, Any]) -> str:
    """Return the language that a row names, else the one that its question is written in."""
    named = row.get("q_lang")
    if named in LANGUAGES:
        return str(named)
    return "zh" if _CHINESE.search(str(row.get("question"))) else "en"


SOURCE = Source(
    SLUG,
    "SLAKE",
    ("vqa",),
    "CC-BY-4.0",
    (
        Layout(
            "hub", _is_hub, _read_original, "train.json, validation.json, test.json, and imgs.zip unpacked", COUNTS
        ),
        Layout("original", _is_original, _read_original, "train.json, validate.json, test.json and imgs/", COUNTS),
        Layout("prepared", _is_prepared, _read_prepared, "slake_train.json (also in en/ or zh/) and imgs/", COUNTS),
    ),
    languages=LANGUAGES,
)

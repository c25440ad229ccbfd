# SPDX-License-Identifier: Apache-2.0
"""Reads PMC-VQA: multiple-choice questions generated from the captions of figures in PubMed Central.

Licence: CC BY-SA for the questions; each figure has the licence of its article.

Layouts:

- `v1`: `train.csv` and `test.csv` with Figure_path, Question, Answer, Choice A to D, Answer_label; `images.zip`
  unpacked into `images/`.
- `v2`: `train_2.csv` and `test_2.csv` with index, Figure_path, Caption, Question, Choice A to D, Answer, split;
  `images_2.zip` unpacked. Figures of one panel only.
- `clean`: `test_clean.csv` alone, the 2,000 questions that people have checked.

A folder with files of v1 and v2 is read as v1.

The instruction is the question without its choices, and the answer is the text of the right choice, so the task is
open-ended and not multiple choice: scores do not compare with published choice accuracies. Answer types are derived.
Samples of one article share their `study_id`.

Known defects, and what becomes of them: the column of the right letter is called `Answer_label`, `Anwser_label`,
`Answer` or `Anwser`; cells are padded with blanks; choices begin with their letter ("A: ") or do not; rows whose
answer names no choice are left out and counted. The validation split is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..records import Sample
from .files import read_csv
from .reading import DatasetError, Layout, Source, canonical_split
from .vqa_rows import VqaRows, find, image_places, require_split

SLUG = "pmc_vqa"
FILES = {
    "v1": {"train": "train.csv", "test": "test.csv"},
    "v2": {"train": "train_2.csv", "test": "test_2.csv"},
    "clean": {"test": "test_clean.csv"},
}
FOLDERS = {"v1": ("images", "figures"), "v2": ("images_2", "figures", "images"), "clean": ("images", "figures")}
ARCHIVES = {"v1": "images.zip", "v2": "images_2.zip", "clean": "images.zip"}
COUNTS = {
    "v1": {"train": {"samples": 176946}, "test": {"samples": 50000}},
    "v2": {},
    "clean": {"test": {"samples": 2000}},
}
LETTERS = "abcd"
# Which column says what is right; the first of these that a file has.
LABEL_COLUMNS = ("answer_label", "anwser_label", "answer", "anwser")


def _is_form(form: str, root: Path) -> bool:
    return find(root, *FILES[form].values()) is not None


def _read(form: str, root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    name = FILES[form].get(split, "")
    path = require_split(find(root, name) if name else None, root, split, name or "train or test")
    archive = find(root, ARCHIVES[form])
    if archive and find(root, *FOLDERS[form]) is None:
        raise DatasetError(
            f"{archive}: the images are still packed; unpack them: unzip -j '{archive}' -d '{path.parent / 'images'}'"
        )
    rows = VqaRows(SLUG, path, split, "line")
    images = image_places(root, path, *FOLDERS[form])
    for number, row in read_csv(path, rows.problems, ("figure_path", "question", "choice a")):
        figure = rows.text(number, "Figure_path", row["figure_path"])
        article = re.match(r"PMC\d+", figure)
        sample = rows.sample(
            number,
            number,
            [images.find_or_note(figure, number, rows.problems)],
            row["question"],
            right_choice(row),
            image_id=figure,
            study_id=article[0] if article else "",
        )
        if sample:
            yield sample
    rows.finish()


def right_choice(row: dict[str, str]) -> str:
    """Return the text of a row's right choice, without its letter; "" where the row names none."""
    choices = {
        letter: re.sub(rf"^\s*{letter}\s*:", "", row.get(f"choice {letter}", ""), flags=re.IGNORECASE).strip()
        for letter in LETTERS
    }
    said = next((row[column] for column in LABEL_COLUMNS if column in row), "").strip()
    if said.strip(" :.()").lower() in choices:
        return choices[said.strip(" :.()").lower()]
    # the choice itself, spelt out
    return next((text for text in choices.values() if text and text.lower() == said.lower()), "")


SOURCE = Source(
    SLUG,
    "PMC-VQA",
    ("vqa",),
    "CC-BY-SA (figures: their articles' licences)",
    tuple(
        Layout(
            form,
            partial(_is_form, form),
            partial(_read, form),
            f"{' and '.join(FILES[form].values())}, and {ARCHIVES[form]} unpacked into {FOLDERS[form][0]}/",
            COUNTS[form],
        )
        for form in FILES
    ),
)

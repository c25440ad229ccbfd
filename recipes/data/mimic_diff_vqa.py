# SPDX-License-Identifier: Apache-2.0
"""Reads MIMIC-Diff-VQA: questions about chest radiographs and about what changed since an earlier one. Credentialed.

Layout: `mimic_pair_questions.csv` (study_id, subject_id, ref_id, question_type, question, answer, split) in the folder
or below it (`medical-diff-vqa/1.0.0`), and beside it the images of MIMIC-CXR-JPG, see `mimic_cxr`.

Questions of the type `difference` have two images, the main study's and then the reference study's; all others are
about the main image and have that one alone. Which image of a study it is, is told by `mimic_all.csv` of the set where
it is there, else by the metadata table of MIMIC-CXR-JPG (a frontal view, PA before AP, then the dicom_id that comes
first), else it is the first file of the study's folder. Of a study without such an image, the folder is named as the
missing file.

The set does not state answer types: they are derived, and marked as such. `question_types` are its own, in upper case.

Source: physionet.org/content/medical-diff-vqa. Licence: PhysioNet Credentialed Health Data License 1.5.0: not to be
sent to third parties, nor published.

Known defects: answers are made by rules from the reports, so they miss what a report does not say. All are kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from ..records import Sample
from .files import read_csv, split_of
from .mimic_cxr import find_trees, frontal_images
from .reading import Layout, MissingSplitError, Source, canonical_split
from .vqa_rows import VqaRows

SLUG = "mimic_diff_vqa"
COLUMNS = ("study_id", "subject_id", "ref_id", "question_type", "question", "answer", "split")
PLACES = ("", "medical-diff-vqa/", "medical-diff-vqa/*/", "*/", "physionet.org/files/medical-diff-vqa/*/")


def _find(root: Path, name: str) -> Path | None:
    return next((path for place in PLACES for path in sorted(root.glob(place + name), reverse=True)), None)


def _read(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    path = _find(root, "mimic_pair_questions.csv")
    assert path is not None  # it was recognised
    rows = VqaRows(SLUG, path, split, "line")
    image_of = _images(root)
    has_split = False
    for number, row in read_csv(path, rows.problems, COLUMNS):
        found_split = split_of(row["split"])
        if found_split is None:
            rows.problems.add(number, "split is none of train, val, test")
        if found_split != split:
            continue
        has_split = True
        study, reference, patient = (row[name].strip() for name in ("study_id", "ref_id", "subject_id"))
        asks_change = row["question_type"].strip().lower() == "difference"
        studies = [study, reference] if asks_change else [study]
        if not all(part.isascii() and part.isdecimal() for part in (*studies, patient)):
            rows.problems.add(number, "study_id, ref_id and subject_id must be whole numbers")
            continue
        images = [image_of(patient, name) for name in studies]
        sample = rows.sample(
            number,
            number,
            images,
            row["question"],
            row["answer"],
            question_type=row["question_type"],
            organ="CHEST",
            modality="X-Ray",
            image_id=Path(images[0]).stem,
            study_id=f"s{study}",
            patient_id=f"p{patient}",
        )
        if sample:
            yield sample
    if not has_split and not rows.problems.found:
        raise MissingSplitError(f"{path}: no row of the {split} split")
    rows.finish()


def _images(root: Path) -> Callable[[str, str], str]:
    """Return a function from patient and study, digits only, to the path of the study's image, or of its folder."""
    trees = find_trees(root)
    own = _find(root, "mimic_all.csv")
    table = own or trees.metadata
    chosen = frontal_images(table, "view" if own else "viewposition") if table else {}

    @lru_cache(maxsize=1024)  # the questions about a study stand together
    def image_of(patient: str, study: str) -> str:
        folder = f"{trees.images}/files/p{patient[:2]}/p{patient}/s{study}"
        if study in chosen:
            return f"{folder}/{chosen[study][1:]}{trees.suffix}"
        names = [] if table or not os.path.isdir(folder) else sorted(os.listdir(folder))
        return next((f"{folder}/{name}" for name in names if name.endswith(trees.suffix)), folder)

    return image_of


SOURCE = Source(
    SLUG,
    "MIMIC-Diff-VQA",
    ("vqa",),
    "PhysioNet Credentialed Health Data License 1.5.0",
    (
        Layout(
            "csv",
            lambda root: _find(root, "mimic_pair_questions.csv") is not None,
            _read,
            "mimic_pair_questions.csv, and files/p10/... of MIMIC-CXR-JPG",
        ),
    ),
    credentialed=True,
)

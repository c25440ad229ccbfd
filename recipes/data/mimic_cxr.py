# SPDX-License-Identifier: Apache-2.0
"""MIMIC-CXR: chest radiographs with the report of each study. Credentialed.

- JPG: the tree of MIMIC-CXR-JPG, `files/p10/p10000032/s50414267/DICOM_ID.jpg`, with `mimic-cxr-2.0.0-split.csv.gz`
  and `mimic-cxr-2.0.0-metadata.csv.gz`; and the reports of MIMIC-CXR (`mimic-cxr-reports.zip` unpacked),
  `files/p10/p10000032/s50414267.txt`. In one tree, or in the trees that PhysioNet's download makes
  (`mimic-cxr-jpg/2.0.0`, `mimic-cxr/2.0.0`, also below `physionet.org/files`).
- DICOM: the same with `.dcm` files; the two tables still come from MIMIC-CXR-JPG, which alone has them.
- prepared: `train.json` and so on, an object `{path of the image: [report]}`, as PeFoMed writes it.

One sample a study, with one image: a frontal view, PA before AP, of several the one whose dicom_id comes first. The
view is `ViewPosition`, else `ViewCodeSequence_CodeMeaning`; studies without a frontal view are left out and counted.
Lateral views are not read: the paper's stage 1, for which this set is, learns from pairs of one image and one text,
and PeFoMed's prepared files hold such pairs. IU-Xray's studies, on which reports are tested, keep both views. To train
on both views of MIMIC-CXR, name them in JSON lines of your own: `"image": ["pa.jpg", "lateral.jpg"]`.

The answer is one section of the report, chosen by [`described`]; studies in which it finds none are counted, too.

Source: physionet.org/content/mimic-cxr, physionet.org/content/mimic-cxr-jpg, github.com/MIT-LCP/mimic-cxr. Licence:
PhysioNet Credentialed Health Data License 1.5.0: not to be sent to third parties, nor published.

Known defects: findings that compare with an earlier image nobody sees, names removed as `___`, verbatim repeats: all
kept. JPG files are equalised copies of the DICOM files, so their pixels differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..records import Sample
from .files import (
    ImageFinder,
    json_of_split,
    peek_json,
    read_csv,
    read_json,
    split_of,
    text_of,
)
from .ids import Ids
from .mimic_sections import described
from .reading import DatasetError, Layout, LeftOut, MissingSplitError, Problems, Source, as_text, canonical_split

VIEWS = {"PA": 0, "POSTERO-ANTERIOR": 0, "AP": 1, "ANTERO-POSTERIOR": 1}  # the rank of the frontal ones
MAX_REPORT_BYTES = 2**20
# Where the trees lie below the folder that is named: it, or what PhysioNet's download makes of them.
TREES = ("", "mimic-cxr-jpg/", "mimic-cxr/", "mimic-cxr-reports/", "mimic-cxr-jpg/*/", "mimic-cxr/*/")
PATH_IDS = re.compile(r"(?:^|/)(p\d+)/(s\d+)/[^/]+$")
COUNTS = {
    "all": {"listed_studies": 227835, "listed_images": 377110},
    "train": {"listed_images": 368960},
    "validation": {"listed_images": 2991},
    "test": {"listed_images": 5159},
}


class Trees(NamedTuple):
    """Where the parts of MIMIC-CXR lie below one folder."""

    split: Path | None
    metadata: Path | None
    images: Path  # the folder that holds `files`
    reports: Path | None
    suffix: str  # of the images


def count_listed(root: Path) -> dict[str, dict[str, int]]:
    """Return how many images the split table lists, by split, and of how many studies: what is published.

    Raises:
        DatasetError: the table cannot be read.
    """
    path = find_trees(root).split
    if path is None:
        return {}
    images, studies = Counter[str](), set[str]()
    for _, row in read_csv(path, Problems(path), ("study_id", "split")):
        images[split_of(row["split"]) or ""] += 1
        studies.add(row["study_id"].strip())
    listed = {split: {"listed_images": count} for split, count in images.items() if split}
    return {**listed, "all": {"listed_studies": len(studies), "listed_images": images.total()}}


def find_trees(root: Path) -> Trees:
    """Return where tables, images and reports lie below a folder."""
    folders = _folders(root)
    split = next((path for folder in folders for path in sorted(folder.glob("mimic-cxr-*-split.csv*"))), None)
    metadata = next((path for folder in folders for path in sorted(folder.glob("mimic-cxr-*-metadata.csv*"))), None)
    trees = [(folder, _contents(folder)) for folder in folders if (folder / "files").is_dir()]
    with_images = [(folder, suffix) for suffix in (".jpg", ".dcm") for folder, found in trees if suffix in found]
    images, suffix = with_images[0] if with_images else (split.parent if split else root, ".jpg")
    return Trees(split, metadata, images, next((folder for folder, found in trees if ".txt" in found), None), suffix)


def image_places(root: Path) -> list[str]:
    """Return where `files/p10/...` may lie below a folder, as patterns for [`ImageFinder`]."""
    below = [folder.relative_to(root).as_posix() for folder in _folders(root)]
    return [f"{folder}/{inner}{{name}}" for inner in ("", "files/") for folder in below]


def group_ids(path: str) -> tuple[str, str]:
    """Return (study, patient) as a path of MIMIC-CXR names them, ("", "") where it does not."""
    found = PATH_IDS.search(path)
    return (found[2], found[1]) if found else ("", "")


def _folders(root: Path) -> list[Path]:
    """Return the folders below which trees may lie; of several versions the newest first."""
    patterns = [prefix + tree for prefix in ("", "physionet.org/files/") for tree in TREES]
    found = [sorted(root.glob(pattern), reverse=True) if pattern else [root] for pattern in patterns]
    return list(dict.fromkeys(folder for folders in found for folder in folders if folder.is_dir()))


def _contents(folder: Path) -> set[str]:
    """Return which kinds of files the first patients of a tree have: whole trees have 65,000."""
    patients = islice((folder / "files").glob("p*/p*"), 100)
    return {path.suffix for patient in patients for pattern in ("s*.txt", "s*/*") for path in patient.glob(pattern)}


def _is_tree(suffix: str, root: Path) -> bool:
    trees = find_trees(root)
    return trees.split is not None and trees.suffix == suffix


def _read_tree(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    trees = find_trees(root)
    if trees.split is None or trees.metadata is None:
        raise DatasetError(f"{root}: no mimic-cxr-2.0.0-metadata.csv.gz with the views; it is in MIMIC-CXR-JPG")
    if trees.reports is None:
        raise DatasetError(f"{root}: no reports; unpack mimic-cxr-reports.zip of MIMIC-CXR into the folder")
    problems = Problems(trees.split, "line")
    left_out = LeftOut(problems)
    frontal, ids = frontal_images(trees.metadata), Ids()
    without_frontal: set[str] = set()
    has_split = False
    for number, row in read_csv(trees.split, problems, ("dicom_id", "study_id", "subject_id", "split")):
        dicom, study, patient = (row[key].strip() for key in ("dicom_id", "study_id", "subject_id"))
        found_split = split_of(row["split"])
        if found_split is None or not _are_ids(dicom, study, patient):
            problems.add(number, "expected dicom_id, study_id, subject_id and a split train, validate or test")
            continue
        has_split |= found_split == split
        if found_split != split or frontal.get(study, "")[1:] != dicom:
            if found_split == split and study not in frontal:
                without_frontal.add(study)
            continue
        below = f"files/p{patient[:2]}/p{patient}/s{study}"
        ids.add(study, number)
        report = _read_report(trees.reports / f"{below}.txt", number, problems)
        if report is None:
            continue
        section, text = described(report)
        if not section:
            left_out.add("studies whose report says nothing", number)
        else:
            image = (trees.images / below / f"{dicom}{trees.suffix}").as_posix()
            yield _sample(f"s{study}", image, [as_text(text)], dicom, f"s{study}", f"p{patient}")
    ids.note_repeats(problems)
    problems.raise_if_any()
    if not has_split:
        raise MissingSplitError(f"{trees.split}: no row of the {split} split")
    for _ in without_frontal:
        left_out.add("studies without a frontal view")
    left_out.log(split)


def frontal_images(path: Path, view_column: str = "viewposition") -> dict[str, str]:
    """Return for each study with a frontal view the image to use, as its rank (one digit) and dicom_id."""
    problems = Problems(path, "line")
    chosen: dict[str, str] = {}
    for _, row in read_csv(path, problems, ("dicom_id", "study_id", view_column)):
        view = row[view_column].strip() or row.get("viewcodesequence_codemeaning", "").strip()
        rank, dicom = VIEWS.get(view.upper()), row["dicom_id"].strip()
        if rank is not None and re.fullmatch(r"[\w-]+", dicom, re.ASCII):
            study, image = row["study_id"].strip(), f"{rank}{dicom}"
            chosen[study] = min(chosen.get(study, image), image)
    problems.raise_if_any()
    return chosen


def _are_ids(dicom: str, study: str, patient: str) -> bool:
    """Whether these can be parts of a path: they come from a table and must lead nowhere else."""
    return bool(re.fullmatch(r"[\w-]+", dicom, re.ASCII)) and study.isdecimal() and patient.isdecimal()


def _read_report(path: Path, number: int, problems: Problems) -> str | None:
    """Return a report file's text, None where it cannot be had, which is noted for row `number`."""
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            problems.add(number, f"its report {path.name} is larger than {MAX_REPORT_BYTES:,} bytes")
            return None
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        problems.add(number, f"its report {path.name} is not UTF-8 text")
    except OSError:
        problems.add(number, f"its report {path.name} is missing; unpack mimic-cxr-reports.zip")
    return None


def _is_prepared(peeked: Any) -> bool:
    """Whether a JSON file maps images to lists of reports."""
    if not isinstance(peeked, dict) or not peeked:
        return False
    path, reports = next(iter(peeked.items()))
    is_list = isinstance(reports, list) and bool(reports) and isinstance(reports[0], str)
    return is_list and Path(path).suffix.lower() in (".jpg", ".png", ".dcm")


def _read_prepared(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    path = json_of_split(root, split, _is_prepared)
    problems = Problems(path, "entry")
    left_out = LeftOut(problems)
    ids, images = Ids(), ImageFinder(root, image_places(root))
    for number, (name, reports) in enumerate(read_json(path, as_pairs=True), start=1):
        image = images.find_or_note(name, number, problems)
        ids.add(name, number)
        values = reports if isinstance(reports, list) else [reports]
        texts = [text_of({"report": value}, "report", number, problems) for value in values]
        if None in texts or not image:
            continue
        answers = [text for text in texts if text]
        if answers:
            study, patient = group_ids(name)
            yield _sample(f"mimic_cxr-{split}-{name}", image, answers, Path(name).stem, study, patient)
        else:
            left_out.add("with an empty report", number)
    ids.note_repeats(problems)
    problems.raise_if_any()
    left_out.log(split)


def _sample(id: str, image: str, answers: list[str], dicom: str, study: str, patient: str) -> Sample:
    return Sample(
        id=id,
        task="report",
        image_paths=[image],
        instruction="",
        answers=answers,
        organ="CHEST",
        modality="X-Ray",
        image_id=dicom,
        study_id=study,
        patient_id=patient,
    )


SOURCE = Source(
    slug="mimic_cxr",
    title="MIMIC-CXR",
    tasks=("report",),
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    credentialed=True,
    layouts=(
        Layout(
            "JPG",
            partial(_is_tree, ".jpg"),
            _read_tree,
            "files/p10 with images and reports, mimic-cxr-2.0.0-split.csv.gz and mimic-cxr-2.0.0-metadata.csv.gz",
            COUNTS,
            count_listed,
        ),
        Layout("DICOM", partial(_is_tree, ".dcm"), _read_tree, "the same with .dcm files", COUNTS, count_listed),
        Layout(
            "prepared",
            lambda root: any(_is_prepared(peek_json(path)) for path in sorted(root.glob("*.json"))),
            _read_prepared,
            "train.json, an object {path of the image: [report]}, and the images that it names",
        ),
    ),
)

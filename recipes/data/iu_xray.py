# SPDX-License-Identifier: Apache-2.0
"""IU-Xray (Indiana University chest radiographs, Open-i's NLMCXR): one report for all images of a study.

- R2Gen: `annotation.json`, an object of the three splits, and `images/CXR2384_IM-0942/{0,1}.png`. A study stays one
  sample with its two images.
- prepared: `train.json` and so on, a list of `{"image_path", "report"}` with one image a row, as PeFoMed writes it; or
  one file like R2Gen's with one image a row.
- XML: `ecgen-radiology/*.xml` and `NLMCXR_png/*.png`, below the folder or folders named `NLMCXR_reports`, `images`.
- Kaggle: `indiana_reports.csv`, `indiana_projections.csv` and `images/images_normalized/*.png`, frontal images first.

XML and Kaggle know no splits: all is `train`. Their answer is `FINDINGS: ... IMPRESSION: ...` where a report has both,
else the one that it has, without a header. R2Gen's and the prepared reports stay as they are.

Source: openi.nlm.nih.gov, github.com/zhjohnchan/R2Gen. Licence: CC BY-NC-ND 4.0.

Known defects: `XXXX` for removed words is kept; 274 of R2Gen's 590 test reports are train reports verbatim, and its
zip holds 181 images that no study names. Reports without images, or with neither findings nor impression, are left out
and counted. Patient 1's images bear a `_1` that a pattern for the others misses: both spellings are found. Which
image is the frontal one is not stated in the XML, and in R2Gen by habit only (0.png).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..records import Sample
from .files import (
    ImageFinder,
    json_of_split,
    numbered_objects,
    peek_json,
    read_csv,
    read_json,
    split_of,
    text_of,
)
from .ids import Ids
from .openi_xml import image_names, read_openi_report
from .reading import DatasetError, Layout, LeftOut, MissingSplitError, Problems, Source, as_text, canonical_split

PATIENT = re.compile(r"(CXR\d+)_")
EMPTY = "with neither findings nor impression"
JSON_PLACES = ("images/{name}", "{name}")
PNG_PLACES = ("NLMCXR_png/{name}", "images/{name}", "images/NLMCXR_png/{name}", "png/{name}", "{name}")
XML_FOLDERS = tuple(
    above + inner for above in ("", "NLMCXR_reports/", "reports/") for inner in ("", "ecgen-radiology/")
)


def joined_report(findings: str, impression: str) -> str:
    """Return a report's two sections as one text: each under its header where both are there, else the one alone."""
    if findings and impression:
        return f"FINDINGS: {findings} IMPRESSION: {impression}"
    return findings or impression


# ------------------------------------------------------------------------------------------------ R2Gen and prepared


def _first_row(peeked: Any) -> Any:
    """Return the first row of R2Gen's form (an object of splits) or the prepared one (a list), as peeked at."""
    rows = next(iter(peeked.values()), None) if isinstance(peeked, dict) else peeked
    return rows[0] if isinstance(rows, list) and rows else None


def _is_reports(peeked: Any, image_type: type) -> bool:
    row = _first_row(peeked)
    return isinstance(row, dict) and "report" in row and isinstance(row.get("image_path"), image_type)


def _is_r2gen(peeked: Any) -> bool:
    return isinstance(peeked, dict) and _is_reports(peeked, list)


def _is_prepared(peeked: Any) -> bool:
    return _is_reports(peeked, str)


def _has_json(root: Path, form: Callable[[Any], bool]) -> bool:
    return any(form(peek_json(path)) for path in sorted(root.glob("*.json")))


def _read_r2gen(root: Path, split: str) -> Iterator[Sample]:
    path = next(path for path in sorted(root.glob("*.json")) if _is_r2gen(peek_json(path)))
    return _read_reports(root, path, canonical_split(split))


def _read_prepared(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    files = [path for path in sorted(root.glob("*.json")) if _is_prepared(peek_json(path))]
    path = files[0] if len(files) == 1 and isinstance(peek_json(files[0]), dict) else None
    yield from _read_reports(root, path or json_of_split(root, split, _is_prepared), split)


def _read_reports(root: Path, path: Path, split: str) -> Iterator[Sample]:
    content = read_json(path)
    if isinstance(content, dict):
        content = next((rows for name, rows in content.items() if split_of(name) == split), None)
        if content is None:
            raise MissingSplitError(f"{path}: no {split} split")
    if not isinstance(content, list):
        raise DatasetError(f"{path}: found no list of {split} studies")
    problems = Problems(path, f"{split} row")
    left_out = LeftOut(problems)
    ids, images = Ids(), ImageFinder(root, JSON_PLACES)
    for number, row in numbered_objects(content, problems):
        names = row.get("image_path") if isinstance(row.get("image_path"), list) else [row.get("image_path")]
        texts = [text_of({"image_path": name}, "image_path", number, problems) for name in names or [None]]
        report, study = text_of(row, "report", number, problems), text_of(row, "id", number, problems)
        if None in texts or report is None or study is None:
            continue
        paths = [images.find_or_note(name or "", number, problems) for name in texts]
        if not report:
            left_out.add("with an empty report", number)
        elif all(paths):
            found = [path for path in paths if path]
            image_id = images.relative(found[0])
            id = study or f"iu_xray-{split}-{texts[0]}"
            ids.add(id, number)
            yield _sample(id, found, report, image_id, study or _study_in(image_id))
    ids.note_repeats(problems)
    problems.raise_if_any()
    left_out.log(split)


def _study_in(path: str) -> str:
    """Return the folder of R2Gen's form that names a study, "" where a path has none."""
    return next((part for part in Path(path).parent.parts if PATIENT.match(part)), "")


# ---------------------------------------------------------------------------------------------------- XML and Kaggle


def _xml_files(root: Path) -> list[Path]:
    """Return the report files in the order of their numbers, none where there are none."""
    for folder in XML_FOLDERS:
        files = [path for path in (root / folder).glob("*.xml") if path.stem.isdecimal()]
        if files:
            return sorted(files, key=lambda path: int(path.stem))
    return []


def _read_xml(root: Path, split: str) -> Iterator[Sample]:
    _require_train(root, split)
    files = _xml_files(root)
    problems = Problems(files[0].parent, "report")
    left_out = LeftOut(problems)
    ids, images = Ids(), ImageFinder(root, PNG_PLACES)
    for path in files:
        number = int(path.stem)
        try:
            report = read_openi_report(path)
        except (ValueError, OSError) as error:
            problems.add(number, str(error) if isinstance(error, ValueError) else "cannot be read")
            continue
        uid = report.uid or f"CXR{number}"
        ids.add(uid, number)
        text = joined_report(*(as_text(report.sections.get(key)) for key in ("FINDINGS", "IMPRESSION")))
        paths = [_find_png(name, images, number, problems) for name in report.images]
        if not text or not report.images:
            left_out.add("without images" if text else EMPTY, None if text else number)
        elif all(paths):
            yield _sample(uid, [path for path in paths if path], text, report.images[0], uid)
    ids.note_repeats(problems)
    problems.raise_if_any()
    left_out.log("train")


def _find_png(name: str, images: ImageFinder, number: int, problems: Problems) -> str | None:
    """Return the path of an image under the first of its spellings that is there, the first one where none is."""
    paths = [images.find_or_note(spelling, number, problems) for spelling in image_names(name)]
    return next((path for path in paths if path and Path(path).is_file()), paths[0])


def _read_kaggle(root: Path, split: str) -> Iterator[Sample]:
    _require_train(root, split)
    shown = _projections(root / "indiana_projections.csv")
    path = root / "indiana_reports.csv"
    problems = Problems(path, "line")
    left_out = LeftOut(problems)
    places = ("images/images_normalized/{name}", "images_normalized/{name}", "images/{name}", "{name}")
    ids, images = Ids(), ImageFinder(root, places)
    for number, row in read_csv(path, problems, ("uid", "findings", "impression")):
        uid, findings, impression = (text_of(row, key, number, problems) for key in ("uid", "findings", "impression"))
        if not uid:
            problems.add(number, "uid is missing or empty")
        elif findings is not None and impression is not None:
            ids.add(uid, number)
            text, names = joined_report(findings, impression), shown.get(uid, [])
            paths = [images.find_or_note(name, number, problems) for name in names]
            if not text or not names:
                left_out.add("without images" if text else EMPTY, None if text else number)
            elif all(paths):
                yield _sample(f"CXR{uid}", [path for path in paths if path], text, names[0], f"CXR{uid}")
    ids.note_repeats(problems)
    problems.raise_if_any()
    left_out.log("train")


def _projections(path: Path) -> dict[str, list[str]]:
    """Return the images of each report, frontal ones first."""
    problems = Problems(path, "line")
    shown: dict[str, list[tuple[bool, str]]] = {}
    for _, row in read_csv(path, problems, ("uid", "filename", "projection")):
        view = (row["projection"].strip().lower() != "frontal", row["filename"].strip())
        shown.setdefault(as_text(row["uid"]), []).append(view)
    problems.raise_if_any()
    return {uid: [name for _, name in sorted(views, key=lambda view: view[0])] for uid, views in shown.items()}


def _count_xml(root: Path) -> dict[str, dict[str, int]]:
    """Return how many reports there are, and how many images they name; broken ones are told when they are read."""
    files = _xml_files(root)
    images = set[str]()
    for path in files:
        with contextlib.suppress(ValueError, OSError):
            images.update(read_openi_report(path).images)
    return {"all": {"listed_reports": len(files), "listed_images": len(images)}}


def _count_kaggle(root: Path) -> dict[str, dict[str, int]]:
    """Return how many reports and images the two tables list."""
    numbers = {}
    for name, table in (("listed_reports", "indiana_reports.csv"), ("listed_images", "indiana_projections.csv")):
        path = root / table
        numbers[name] = sum(1 for _ in read_csv(path, Problems(path), ("uid",)))
    return {"all": numbers}


def _require_train(root: Path, split: str) -> None:
    if canonical_split(split) != "train":
        raise MissingSplitError(f"{root}: this form has no splits, all is train; R2Gen's annotation.json has them")


def _sample(id: str, images: list[str], report: str, image_id: str, study: str) -> Sample:
    patient = PATIENT.match(f"{study}_")
    return Sample(
        id=id,
        task="report",
        image_paths=images,
        instruction="",
        answers=[report],
        organ="CHEST",
        modality="X-Ray",
        image_id=image_id,
        study_id=study,
        patient_id=patient[1] if patient else "",
    )


SOURCE = Source(
    slug="iu_xray",
    title="IU-Xray",
    tasks=("report",),
    licence="CC BY-NC-ND 4.0",
    layouts=(
        Layout(
            "R2Gen",
            lambda root: _has_json(root, _is_r2gen),
            _read_r2gen,
            "annotation.json and images",
            {
                "train": {"samples": 2069, "images": 4138},
                "validation": {"samples": 296, "images": 592},
                "test": {"samples": 590, "images": 1180},
            },
        ),
        Layout(
            "prepared",
            lambda root: _has_json(root, _is_prepared),
            _read_prepared,
            "train.json, a list of {image_path, report}, and images",
        ),
        Layout(
            "XML",
            lambda root: bool(_xml_files(root)),
            _read_xml,
            "ecgen-radiology/*.xml and NLMCXR_png",
            {"all": {"listed_reports": 3955, "listed_images": 7470}},
            _count_xml,
        ),
        Layout(
            "Kaggle",
            lambda root: (root / "indiana_reports.csv").is_file() and (root / "indiana_projections.csv").is_file(),
            _read_kaggle,
            "indiana_reports.csv, indiana_projections.csv and images/images_normalized",
            {"all": {"listed_reports": 3851, "listed_images": 7466}},
            _count_kaggle,
        ),
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""Reads VQA-RAD: questions about 314 radiological images of MedPix (CC0 1.0, osf.io/89kps).

Layouts:

- `osf json`: `VQA_RAD Dataset Public.json` as downloaded, 2,248 rows, and `VQA_RAD Image Folder/`. The test split is
  where `phrase_type` begins with `test_`.
- `osf xlsx`: the same rows in `VQA_RAD Dataset Public.xlsx`, for whom the JSON file is not at hand.
- `prepared`: `trainset.json` and `testset.json` of MEVF, which MUMC and PeFoMed took over, and `images/`: 3,515 rows,
  1,267 of them (`frame`) generated from the others.
- `hub`: the Parquet mirror. It holds neither answer types nor question types. Where the OSF JSON file lies beside it,
  they are looked up there by image name, question and answer, or by question and answer where the mirror kept no name;
  a row that the file does not decide gets a derived answer type, marked as such.

Known defects, and what becomes of them: blanks and tabs around and inside texts are made one; integer answers become
text; the types `PRSE` and `ATRIB` are mended, `CLOSED ` is trimmed; types such as "POS, PRES" become two. Rows that
repeat, and test images that also occur in training (all 203), stay as they are: `image_id` and, from the OSF files,
`patient_id` (the MedPix case) let checks and splits see them. VQA-Med 2019, which is handed on in the same shape, is
told by its question types and refused.

There is no validation split.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..records import Sample
from .files import read_json_rows, require_columns
from .reading import DatasetError, Layout, MissingSplitError, Source, as_text, canonical_split
from .vqa_hub import EXPECTED, is_hub_form, read_hub_samples
from .vqa_rows import VqaRows, find, first_row, image_places, question_codes, require_split, split_names

SLUG = "vqa_rad"
IMAGE_FOLDERS = ("VQA_RAD Image Folder", "images")
XLSX_COLUMNS = {
    "qid_unique": "qid",
    "qid_para": "phrase_type",
    "imageid_case": "image_case_url",
    "image": "image_name",
    "image_organ": "image_organ",
    "question": "question",
    "q_type": "question_type",
    "answer": "answer",
    "a_type": "answer_type",
}
XLSX_LINK = {"qid_linked": "qid_linked_id"}  # copies without it are read too
MAX_XLSX_BYTES = 2**29  # unpacked; the real file has 2 MB
VQA_MED_TYPES = {"MODALITY", "PLANE", "ORGAN", "ABN"}
OSF_COUNTS = {
    "train": {"samples": 1797},
    "test": {"samples": 451, "images": 203, "closed": 272, "open": 179},
}
PREPARED_COUNTS = {
    "train": {"samples": 3064, "images": 314, "closed": 1823, "open": 1241},
    "test": {"samples": 451, "images": 203, "closed": 272, "open": 179},
}
HUB_COUNTS = {"train": {"samples": 1793}, "test": {"samples": 451}}


def _osf_json(root: Path) -> Path | None:
    """Return the file whose rows look like OSF's, whatever its name."""
    files = sorted(root.glob("*.json")) + sorted(root.glob("*/*.json"))
    return next((path for path in files if "image_case_url" in first_row(path)), None)


def _osf_xlsx(root: Path) -> Path | None:
    return find(root, "VQA_RAD*.xlsx")


def _prepared(root: Path, split: str) -> Path | None:
    return find(root, *split_names(split, "{}set.json"))


def _is_prepared(root: Path) -> bool:
    return any("phrase_type" in first_row(_prepared(root, split)) for split in ("train", "test"))


def _read_osf_json(root: Path, split: str) -> Iterator[Sample]:
    path = _osf_json(root)
    assert path is not None  # it was recognised
    rows = VqaRows(SLUG, path, canonical_split(split))
    yield from _osf_samples(root, rows, read_json_rows(path, rows.problems))


def _read_osf_xlsx(root: Path, split: str) -> Iterator[Sample]:
    path = _osf_xlsx(root)
    assert path is not None
    rows = VqaRows(SLUG, path, canonical_split(split))
    yield from _osf_samples(root, rows, _xlsx_rows(path))


def _osf_samples(root: Path, rows: VqaRows, cells: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Sample]:
    path = Path(rows.problems.path)
    if rows.split == "validation":
        raise MissingSplitError(f"{path}: VQA-RAD has no validation split; expected train or test")
    images = image_places(root, path, *IMAGE_FOLDERS)
    for number, row in cells:
        is_test = rows.text(number, "phrase_type", row.get("phrase_type")).startswith("test")
        if is_test == (rows.split == "test"):
            case = rows.text(number, "image_case_url", row.get("image_case_url"))
            sample = _to_sample(rows, number, row, images.find_or_note, patient_id=case_of(case))
            if sample:
                yield sample
    rows.finish()


def _read_prepared(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    path = require_split(_prepared(root, split), root, split, f"{split}set.json")
    rows = VqaRows(SLUG, path, split)
    images = image_places(root, path, *IMAGE_FOLDERS)
    seen: Counter[str] = Counter()
    for number, row in read_json_rows(path, rows.problems):
        sample = _to_sample(rows, number, row, images.find_or_note)
        if sample:
            seen.update(sample.question_types)
            yield sample
    if len(seen) >= 3 and set(seen) <= VQA_MED_TYPES:
        raise DatasetError(
            f"{path}: found the question types {', '.join(sorted(seen))} only, as in VQA-Med 2019; expected "
            "VQA-RAD's, such as PRES and POS. Read it as your own data (--dataset csv or jsonl)"
        )
    rows.finish()


def _to_sample(rows: VqaRows, number: int, row: dict[str, Any], find_image: Any, **groups: str) -> Sample | None:
    name = rows.text(number, "image_name", row.get("image_name"))
    return rows.sample(
        number,
        row.get("qid"),
        [find_image(name, number, rows.problems)],
        row.get("question"),
        row.get("answer"),
        answer_type=row.get("answer_type"),
        question_type=row.get("question_type"),
        organ=row.get("image_organ"),
        image_id=name,
        linked_id=linked_of(row),
        **groups,
    )


def linked_of(row: dict[str, Any]) -> str:
    """Return what a question and its rephrasing share (`qid_linked_id`); "" where the row is linked to none."""
    linked = row.get("qid_linked_id")
    return linked if isinstance(linked, str) and linked != "NULL" else ""


def case_of(url: str) -> str:
    """Return the MedPix case that a link names, or a hash of the link where it names none; "" for no link."""
    named = re.search(r"[?&](?:id|caseid|case)=([^&#\s]+)", url)
    if named:
        return named[1]
    return "" if url in ("", "NULL") else hashlib.sha256(url.encode()).hexdigest()[:16]


def _xlsx_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the sheet's row, cells under the JSON file's keys).

    Raises:
        DatasetError: openpyxl is missing, or the file is damaged, too large, or has other columns.
    """
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise DatasetError(
            f"{path}: reading .xlsx needs openpyxl; install it with pip install 'pefomed[xlsx]', or take the JSON file"
        ) from None
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_XLSX_BYTES:
            raise DatasetError(f"{path}: unpacks to {size:,} bytes, expected at most {MAX_XLSX_BYTES:,}")
        with closing(load_workbook(path, read_only=True, data_only=True)) as book:
            sheet = book.worksheets[0].iter_rows(values_only=True)
            header = [str(name or "").strip().lower() for name in next(sheet, ())]
            require_columns(path, header, list(XLSX_COLUMNS))
            keys = [{**XLSX_COLUMNS, **XLSX_LINK}.get(name) for name in header]
            for number, cells in enumerate(sheet, start=2):
                row = {key: cell for key, cell in zip(keys, cells, strict=False) if key}
                if any(cell is not None for cell in row.values()):
                    yield number, row
    except DatasetError:
        raise
    except Exception as error:  # whatever a damaged archive or XML raises
        raise DatasetError(f"{path}: cannot be read as .xlsx ({type(error).__name__}); download it again") from None


def _read_hub(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    official = _osf_json(root)
    facts = OfficialFacts(official) if official else None
    for sample, file_name in read_hub_samples(SLUG, root, split):
        name = file_name if file_name.startswith("synpic") else ""
        sample.image_id = name or sample.image_id
        yield facts.restore(sample, name) if facts else sample


class OfficialFacts:
    """What the OSF file knows about a row of the mirror: answer type, question types, organ, MedPix case."""

    def __init__(self, path: Path) -> None:
        self.rows: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        reader = VqaRows(SLUG, path, "")
        for _, row in read_json_rows(path, reader.problems):
            key = (_joinable(row.get("question")), _joinable(row.get("answer")))
            self.rows[key].append(row)
            self.rows[(str(row.get("image_name")), *key)].append(row)
        reader.problems.raise_if_any()

    def restore(self, sample: Sample, image_name: str) -> Sample:
        """Return the sample with every fact on which all rows agree that could be meant."""
        key = (_joinable(sample.instruction), _joinable(sample.answers[0]))
        rows = self.rows.get((image_name, *key)) or self.rows.get(key, [])

        def agreed(name: str) -> str:
            values = {as_text(row.get(name)) for row in rows}
            return values.pop() if len(values) == 1 else ""

        kind = agreed("answer_type").upper()
        return replace(
            sample,
            answer_type=kind or sample.answer_type,
            answer_type_derived=not kind,
            question_types=question_codes(agreed("question_type")),
            organ=agreed("image_organ"),
            patient_id=case_of(agreed("image_case_url")),
            linked_id=linked_of({"qid_linked_id": agreed("qid_linked_id")}),
        )


def _joinable(value: Any) -> str:
    try:
        return as_text(value).casefold()
    except TypeError:
        return ""


SOURCE = Source(
    SLUG,
    "VQA-RAD",
    ("vqa",),
    "CC0-1.0",
    (
        Layout(
            "prepared",
            _is_prepared,
            _read_prepared,
            "trainset.json and testset.json, and images/",
            PREPARED_COUNTS,
        ),
        Layout(
            "hub",
            is_hub_form,
            _read_hub,
            EXPECTED + ", and best of all the OSF json beside it",
            HUB_COUNTS,
        ),
        Layout(
            "osf json",
            lambda root: _osf_json(root) is not None,
            _read_osf_json,
            "VQA_RAD Dataset Public.json and VQA_RAD Image Folder/",
            OSF_COUNTS,
        ),
        Layout(
            "osf xlsx",
            lambda root: _osf_xlsx(root) is not None,
            _read_osf_xlsx,
            "VQA_RAD Dataset Public.xlsx and VQA_RAD Image Folder/",
            OSF_COUNTS,
        ),
    ),
)

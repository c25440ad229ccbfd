# SPDX-License-Identifier: Apache-2.0
"""MS-CXR: phrases about chest radiographs of MIMIC-CXR, and the boxes in which they are true. Credentialed.

- JSON: `MS_CXR_Local_Alignment_v1.0.0.json` or `_v1.1.0.json` (COCO: `images`, `annotations`, `categories`).
- csv: the same as a table, `MS_CXR_Local_Alignment_v1.0.0.csv` or `_v1.1.0.csv`; read where the JSON is not there.

The images, `files/p10/.../DICOM_ID.jpg`, are those of MIMIC-CXR-JPG: copied or linked into the folder, or its tree
(`mimic-cxr-jpg/2.0.0`). Version 1.1.0 names a split for each box; without it all samples are `train`.

One sample an image and phrase: its boxes become one, their union, since an answer is one box. Boxes lie in pixels of
the original image and become hundredths of its size, rounded down.

Source: physionet.org/content/ms-cxr; the rounding is the released code's (`int(x / width * 100)`). Licence: PhysioNet
Credentialed Health Data License 1.5.0: not to be sent to third parties, nor published.

Known defects: boxes that reach over the image's edge are cut off there, and boxes that rounding makes empty are one
hundredth wide.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..records import Sample
from .files import (
    ImageFinder,
    numbered_objects,
    read_csv,
    read_json,
    require_columns,
    split_of,
    text_lines,
    text_of,
)
from .instructions import format_box
from .mimic_cxr import group_ids, image_places
from .reading import DatasetError, Layout, LeftOut, MissingSplitError, Problems, Source, canonical_split

COLUMNS = ("dicom_id", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
NAMES = "MS_CXR_Local_Alignment*"
# of both versions together, whatever the split
COUNTS = {"all": {"samples": 1162}}


@dataclass
class Phrase:
    """A phrase about one image, with the union of its boxes in hundredths of the image's size."""

    image: str
    path: str
    text: str
    split: str
    edges: list[tuple[float, float, float, float]] = field(default_factory=list)  # left, top, right, bottom, 0..1

    def box(self) -> list[int]:
        """Return the union: left, top, right, bottom in hundredths, 0..100, at least one wide and high."""
        lefts, tops, rights, bottoms = zip(*self.edges, strict=True)
        x1, x2 = _hundredths(min(lefts), max(rights))
        y1, y2 = _hundredths(min(tops), max(bottoms))
        return [x1, y1, x2, y2]


def _hundredths(low: float, high: float) -> tuple[int, int]:
    first = min(int(low * 100), 99)
    return first, max(int(high * 100), first + 1)


def _find(root: Path, suffix: str) -> Path | None:
    """Return the annotations, of several versions the newest."""
    found = sorted(root.glob(NAMES + suffix), reverse=True)
    return next((path for path in found if _is_annotation(path)), None)


def _is_annotation(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            content = read_json(path)
            return isinstance(content, dict) and {"images", "annotations"} <= content.keys()
        _, header = next(text_lines(path, Problems(path)), (0, ""))
        require_columns(path, header.lower().split(","), COLUMNS)
    except DatasetError:
        return False
    return True


def _rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, box with the columns of the csv) for each box of either form."""
    if path.suffix == ".csv":
        yield from read_csv(path, problems, COLUMNS)
        return
    content = read_json(path)
    if not all(isinstance(content[key], list) for key in ("images", "annotations")):
        raise DatasetError(f"{path}: expected lists of images and annotations")
    images = {str(image.get("id")): image for image in content["images"] if isinstance(image, dict)}
    for number, row in numbered_objects(content["annotations"], problems):
        image, box = images.get(str(row.get("image_id"))), row.get("bbox")
        if image is None or not isinstance(box, list) or len(box) != 4:
            problems.add(number, "expected a bbox [x, y, w, h] and the image_id of one of the images")
            continue
        yield (
            number,
            {
                "label_text": row.get("label_text"),
                "path": image.get("path") or image.get("file_name"),
                "split": row.get("split") or image.get("split"),
                "image_width": image.get("width"),
                "image_height": image.get("height"),
                **dict(zip("xywh", box, strict=True)),
            },
        )


def _edges(row: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Return a box's left, top, right and bottom as shares of the image, cut to 0..1; None where it is no box."""
    try:
        x, y, w, h, width, height = (float(row[key]) for key in ("x", "y", "w", "h", "image_width", "image_height"))
    except (TypeError, ValueError):
        return None
    if not (math.isfinite(x + y + w + h + width + height) and width > 0 and height > 0):
        return None
    left, top, right, bottom = (
        min(max(edge, 0.0), 1.0) for edge in (x / width, y / height, (x + w) / width, (y + h) / height)
    )
    return (left, top, right, bottom) if left < right and top < bottom else None


def _read(suffix: str, root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    path = _find(root, suffix)
    if path is None:
        raise DatasetError(f"{root}: no {NAMES}{suffix}")
    problems = Problems(path, "line" if suffix == ".csv" else "annotation")
    left_out = LeftOut(problems)
    phrases: dict[tuple[str, str], Phrase] = {}
    for number, row in _rows(path, problems):
        name, text = text_of(row, "path", number, problems), text_of(row, "label_text", number, problems)
        row_split, edges = text_of(row, "split", number, problems), _edges(row)
        if name is None or text is None or row_split is None:
            continue
        if not name or not edges:
            problems.add(number, "expected the path of an image, its width and height, and a box inside it")
        elif split_of(row_split or "train") is None:
            problems.add(number, "split is none; expected train, val or test")
        elif not text:
            left_out.add("boxes with an empty phrase", number)
        else:
            image = Path(name).stem
            phrase = Phrase(image, name, text, split_of(row_split or "train") or "")
            phrases.setdefault((image, text), phrase).edges.append(edges)
    problems.raise_if_any()
    left_out.log(split)
    if not any(phrase.split == split for phrase in phrases.values()):
        raise MissingSplitError(f"{path}: no box of the {split} split")
    yield from _samples(phrases, split, ImageFinder(root, image_places(root)), path)


def _samples(phrases: dict[tuple[str, str], Phrase], split: str, images: ImageFinder, path: Path) -> Iterator[Sample]:
    """Yield a sample for each phrase of a split; ids are `ms_cxr-{dicom_id}-{number of the phrase in its image}`."""
    problems, numbers = Problems(path, "phrase"), Counter[str]()
    for count, phrase in enumerate(phrases.values(), start=1):
        numbers[phrase.image] += 1
        if phrase.split != split:
            continue
        study, patient = group_ids(phrase.path)
        if image := images.find_or_note(phrase.path, count, problems):
            yield Sample(
                id=f"ms_cxr-{phrase.image}-{numbers[phrase.image]}",
                task="refer",
                image_paths=[image],
                instruction=phrase.text,
                answers=[format_box(phrase.box())],
                organ="CHEST",
                modality="X-Ray",
                image_id=phrase.image,
                study_id=study,
                patient_id=patient,
            )
    problems.raise_if_any()


SOURCE = Source(
    slug="ms_cxr",
    title="MS-CXR",
    tasks=("refer",),
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    credentialed=True,
    layouts=tuple(
        Layout(
            name,
            lambda root, suffix=suffix: _find(root, suffix) is not None,  # type: ignore[misc]
            partial(_read, suffix),
            f"MS_CXR_Local_Alignment_v1.1.0{suffix} and the images of MIMIC-CXR-JPG below files",
            COUNTS,
        )
        for name, suffix in (("JSON", ".json"), ("csv", ".csv"))
    ),
)

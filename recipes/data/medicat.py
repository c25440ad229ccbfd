# SPDX-License-Identifier: Apache-2.0
"""MEDICAT: figures of medical articles with their captions; those that are marked as radiology are read.

- release: `s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl` and `figures/{pdf_hash}_{fig_uri}`, in the
  folder or in `release/` below it. One split, `train`.
- prepared: `train.json` and so on, a list of `{"image", "caption"}`, as PeFoMed writes it, with the images in
  `release/figures` or `figures`.

Source: github.com/allenai/medicat. Licence: non-commercial research; each article's own stays with the sample.

Known defects: 75 % of the figures are compound, and captions are long (74 tokens in the mean): both stay as they are.
Where the publisher's caption (`s2_caption`) is empty, the one read from the PDF (`s2orc_caption`) takes its place;
where that is empty, too, the figure is left out and counted, as are figures that are not radiology.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..records import Sample
from .caption_forms import EMPTY, PREPARED_EXPECTED, has_prepared_captions, read_prepared_captions
from .files import ImageFinder, text_lines, text_of
from .ids import Ids
from .reading import DatasetError, Layout, LeftOut, MissingSplitError, Problems, Source, canonical_split

KEYS = {"pdf_hash", "fig_uri", "s2_caption", "radiology"}
PREPARED_PLACES = ("release/figures/{name}", "figures/{name}", "{name}", "images/{name}")


def _figures_file(root: Path) -> Path | None:
    """Return the JSON lines that describe figures, None where there are none: `subcaptions_public.jsonl` does not."""
    for path in sorted([*root.glob("*.jsonl"), *(root / "release").glob("*.jsonl")]):
        try:
            _, line = next(text_lines(path, Problems(path)), (0, ""))
            first = json.loads(line)
        except (DatasetError, ValueError, RecursionError):
            continue
        if isinstance(first, dict) and first.keys() >= KEYS:
            return path
    return None


def _read_release(root: Path, split: str) -> Iterator[Sample]:
    split = canonical_split(split)
    path = _figures_file(root)
    if path is None or split != "train":
        raise MissingSplitError(f"{root}: the release has one split, train; found no {split}")
    problems = Problems(path, "line")
    left_out = LeftOut(problems)
    below = path.parent.relative_to(root).as_posix()
    ids, images = Ids(), ImageFinder(root, [f"{below}/figures/{{name}}"])
    for number, row in _rows(path, problems):
        if row.get("radiology") is not True:
            left_out.add("that are not radiology")
            continue
        texts = {key: text_of(row, key, number, problems) for key in ("pdf_hash", "fig_uri", "s2_caption")}
        if None in texts.values():
            continue
        if not texts["pdf_hash"] or not texts["fig_uri"]:
            problems.add(number, "pdf_hash or fig_uri is missing; expected what names the figure's file")
            continue
        caption = texts["s2_caption"] or text_of(row, "s2orc_caption", number, problems)
        name = f"{texts['pdf_hash']}_{texts['fig_uri']}"
        image = images.find_or_note(name if Path(name).suffix else f"{name}.png", number, problems)
        ids.add(name, number)
        if not image:
            continue
        if not caption:
            left_out.add(EMPTY, number)
            continue
        yield Sample(
            id=name,
            task="caption",
            image_paths=[image],
            instruction="",
            answers=[caption],
            image_id=name,
            study_id=texts["pdf_hash"] or "",  # figures of one article
            licence=_licence(row),
        )
    ids.note_repeats(problems)
    problems.raise_if_any()
    left_out.log(split)


def _count_figures(root: Path) -> dict[str, dict[str, int]]:
    """Return how many figures the release lists, radiology or not: one a line."""
    path = _figures_file(root)
    lines = text_lines(path, Problems(path)) if path else iter(())
    return {"all": {"listed_images": sum(1 for _, line in lines if line.strip())}}


def _rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line that is not blank; what is no object is noted."""
    for number, line in text_lines(path, problems):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            problems.add(number, "not JSON; expected one object a line")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.add(number, f"found {type(row).__name__}, expected an object")


def _licence(row: dict[str, Any]) -> str:
    """Return `oa_info.oa.license`, "" where any of these is missing."""
    value: Any = row.get("oa_info")
    for key in ("oa", "license"):
        value = value.get(key) if isinstance(value, dict) else None
    return value.strip() if isinstance(value, str) else ""


SOURCE = Source(
    slug="medicat",
    title="MEDICAT",
    tasks=("caption",),
    licence="non-commercial research",
    layouts=(
        Layout(
            "release",
            lambda root: _figures_file(root) is not None,
            _read_release,
            "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl and figures, or the folder above",
            {"all": {"listed_images": 217060}},
            _count_figures,
        ),
        Layout(
            "prepared",
            has_prepared_captions,
            lambda root, split: read_prepared_captions("medicat", root, split, PREPARED_PLACES),
            PREPARED_EXPECTED,
        ),
    ),
)

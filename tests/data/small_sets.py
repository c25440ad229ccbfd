# SPDX-License-Identifier: Apache-2.0
"""Small data sets in the generic form, for tests that damage, leak and pack them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_image(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> Path:
    """Write a PNG of soft blobs, others for another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def write_set(root: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write `{split}.jsonl` files; what a row leaves out is filled in, and images that are not there are drawn.

    An image's content follows from its name. Every row gets an answer of its own that nothing else contains.
    """
    root.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = []
        for number, row in enumerate(rows):
            filled = {"image": f"images/{split}-{number}.png", **row}
            if not {"caption", "report", "phrase"} & filled.keys():
                filled = {"question": "What is it?", "answer": f"zebra{split}{number}", **filled}
            images = filled["image"] if isinstance(filled["image"], list) else [filled["image"]]
            for image in images:
                if not (root / image).exists():
                    write_image(root / image, seed=zlib.crc32(image.encode()))
            lines.append(json.dumps(filled) + "\n")
        (root / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return root


def two_view_studies(root: Path, cases: Mapping[str, int]) -> Path:
    """Write studies with a frontal and a lateral view each: two questions and a report about both together."""
    splits = {}
    for split, count in cases.items():
        rows: list[dict[str, Any]] = []
        for case in range(count):
            views = [f"images/{split}{case}/{view}.png" for view in ("frontal", "lateral")]
            for at, view in enumerate(views):
                write_image(root / view, seed=1000 * len(split) + 2 * case + at)
            shared = {"image": views, "study_id": f"{split}{case}", "image_id": f"{split}{case}"}
            side = "left" if case % 2 else "right"
            rows += [
                {**shared, "question": "Which side?", "answer": side, "answer_type": "OPEN"},
                {**shared, "question": "Is it clear?", "answer": "yes", "answer_type": "CLOSED"},
                {**shared, "report": f"The {side} lung is clear."},
            ]
        splits[split] = rows
    return write_set(root, splits)

# SPDX-License-Identifier: Apache-2.0
"""Measure `pefomed data check` on 20,000 generated rows about 2,000 small images: time, CPU time and peak memory.

    python -m pefomed_recipes.benchmarks.data_check

The command runs in a process of its own, as a person would start it. Its images are soft blobs of 224 x 224 pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .measuring import RESULTS, measured

ROWS, IMAGES, SIZE_PX = 20_000, 2_000, 224
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
ASKED = (
    ("Is a nodule seen?", "yes no"),
    ("Which side?", "left right"),
    ("Which view is this?", "axial coronal frontal"),
)


def write_rows(root: Path, rows: int, images: int) -> None:
    """Write a data set in the generic form: each image is in one split and has the same number of questions."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    borders = np.cumsum([round(share * images) for share in SHARES.values()])
    for split, last, share in zip(SHARES, borders, SHARES.values(), strict=True):
        with (root / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
            for image in range(last - round(share * images), last):
                coarse = rng.integers(0, 256, (9, 9), dtype=np.uint8)
                blobs = Image.fromarray(coarse).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)
                blobs.save(root / f"images/{image}.png")
                for number in range(rows // images):
                    question, answers = ASKED[number % len(ASKED)]
                    row = {
                        "id": f"{image}-{number}",
                        "image": f"images/{image}.png",
                        "question": f"{question} (part {number})",
                        "answer": rng.choice(answers.split()),
                        "patient_id": f"p{image // 2 * 2 if split == 'train' else image}",
                    }
                    lines.write(json.dumps(row) + "\n")


def measure(root: Path, out: Path, workers: int) -> dict[str, Any]:
    """Check a folder in a fresh process; return what it took, of all its processes together.

    Raises:
        subprocess.CalledProcessError: the check failed.
    """
    command = [sys.executable, "-m", "pefomed_recipes.cli", "data", "check", "jsonl"]
    command += ["--root", str(root), "--out", str(out), "--workers", str(workers)]
    return {"workers": workers, **measured(command)}


def main() -> None:
    """Generate the rows, check them with one and with two processes, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--images", type=int, default=IMAGES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        write_rows(root, arguments.rows, arguments.images)
        runs = [measure(root, Path(folder) / "out", workers) for workers in (1, 2)]
        found = json.loads((Path(folder) / "out" / "check.json").read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "rows": sum(split["samples"] for split in found["splits"].values()),
        "images": found["images"]["good"],
        "image_px": SIZE_PX,
        "runs": runs,
    }
    print(json.dumps(result, indent=2))
    if (arguments.rows, arguments.images) == (ROWS, IMAGES):
        from ..training.provenance import code_commit, environment, write_json

        write_json(RESULTS / "data_check.json", result | {"code_commit": code_commit(), "environment": environment()})


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What the phantom tower is trained to read: labels of whole images and of single patches, and batches of both."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pefomed_recipes.data.phantoms import Phantom, case_seed, draw_phantom, render_phantom

if TYPE_CHECKING:
    from collections.abc import Iterator

UNKNOWN = -100  # not told by the view, or not one lesion; ignored by the loss

# Attribute: its classes, in the order of the labels.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "modality": ("ct", "mri", "xray", "ultrasound"),
    "plane": ("axial", "coronal", "sagittal", "pa", "lateral", "oblique"),
    "organ": ("head", "chest", "abdomen"),
    "sequence": ("t1", "t2"),
    "contrast": ("no", "yes"),
    "cardiomegaly": ("no", "yes"),
    "effusion": ("no", "left", "right", "yes"),
    "ventricles": ("no", "yes"),
    "gallstone": ("no", "yes"),
    "presence": ("no", "yes"),
    "count": ("0", "1", "2", "3"),
    "side": ("left", "right"),
    "level": ("upper", "lower", "anterior", "posterior", "superficial", "deep"),
    "size": ("small", "large"),
    "tone": ("bright", "dark"),
    "shape": ("round", "elongated"),
}
PATCH_CLASSES = ("none", "small bright", "large bright", "small dark", "large dark")


@dataclass
class PhantomBatch:
    """`pixel_values` float32 `(N, 3, size, size)`, normalised; `labels` int64 `(N, attributes)`, `UNKNOWN` where none;
    `patch_labels` int64 `(N, patches)`, an index into `PATCH_CLASSES` for each patch in reading order."""

    pixel_values: torch.Tensor
    labels: torch.Tensor
    patch_labels: torch.Tensor


def attribute_labels(phantom: Phantom) -> list[int]:
    """Return one class index for each of `ATTRIBUTES`. Attributes of a lesion are told where there is exactly one."""
    count = len(phantom.lesions)
    values = {"presence": "yes" if count else "no", "count": str(count)}
    for name in ("modality", "plane", "organ", "sequence", "effusion"):
        values[name] = getattr(phantom, name)
    for name in ("contrast", "cardiomegaly", "ventricles", "gallstone"):
        seen = getattr(phantom, name)
        values[name] = "" if seen is None else "yes" if seen else "no"
    for name in ("side", "level", "size", "tone", "shape"):
        values[name] = getattr(phantom.lesions[0], name) if count == 1 else ""
    return [
        classes.index(values[name]) if values[name] in classes else UNKNOWN for name, classes in ATTRIBUTES.items()
    ]


def patch_labels(phantom: Phantom, patches_a_side: int) -> list[int]:
    """Return the lesion class of each patch, reading order; a patch counts where a lesion's box covers its centre."""
    labels = [0] * patches_a_side**2
    for lesion in phantom.lesions:
        label = PATCH_CLASSES.index(f"{lesion.size} {lesion.tone}")
        x1, y1, x2, y2 = (edge * patches_a_side / 100 for edge in lesion.box)
        middle_row, middle_column = int((y1 + y2) / 2), int((x1 + x2) / 2)
        for row in range(int(y1), min(int(y2) + 1, patches_a_side)):
            for column in range(int(x1), min(int(x2) + 1, patches_a_side)):
                is_covered = x1 <= column + 0.5 <= x2 and y1 <= row + 0.5 <= y2
                if is_covered or (row, column) == (middle_row, middle_column):
                    labels[row * patches_a_side + column] = label
    return labels


def phantom_batch(
    stream: str, first: int, count: int, *, seed: int, difficulty: str, image_size: int, patch_size: int
) -> PhantomBatch:
    """Return cases `first .. first + count` of a stream of seeds, preprocessed as the model's image processor does."""
    phantoms = [draw_phantom(case_seed(seed, stream, first + index), difficulty) for index in range(count)]
    pixels = np.stack([render_phantom(phantom, image_size) for phantom in phantoms])
    return PhantomBatch(
        pixel_values=normalise_pixels(torch.from_numpy(pixels)),
        labels=torch.tensor([attribute_labels(phantom) for phantom in phantoms]),
        patch_labels=torch.tensor([patch_labels(phantom, image_size // patch_size) for phantom in phantoms]),
    )


def normalise_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Return `pixel_values` `(N, 3, height, width)` of grey images `(N, height, width)`, uint8; CLIP's mean and std."""
    # Source: CLIP's constants, as in PeFoMedImageProcessor.
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1)
    return (pixels[:, None].float() / 255 - mean) / std


def prefetched_batches(
    stream: str, steps: int, count: int, *, seed: int, difficulty: str, image_size: int, patch_size: int
) -> Iterator[PhantomBatch]:
    """Yield `steps` batches of `count` fresh cases each; the next one is rendered while the last is trained on."""

    def make(step: int) -> PhantomBatch:
        return phantom_batch(
            stream, step * count, count,
            seed=seed, difficulty=difficulty, image_size=image_size, patch_size=patch_size,
        )  # fmt: skip

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(make, 0)
        for step in range(steps):
            batch = coming.result()
            if step + 1 < steps:
                coming = pool.submit(make, step + 1)
            yield batch

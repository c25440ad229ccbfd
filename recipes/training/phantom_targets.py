# SPDX-License-Identifier: Apache-2.0
"""What the phantom tower is trained to read: labels of whole images and of single patches, and batches of both."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pefomed_recipes.data.phantoms import VIEWS, Lesion, Phantom, case_seed, draw_phantom, render_phantom

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
    # Whether a lesion lies in this quarter of the body; a count is their sum.
    "quarter_1": ("no", "yes"),
    "quarter_2": ("no", "yes"),
    "quarter_3": ("no", "yes"),
    "quarter_4": ("no", "yes"),
}
# What lies in a patch, in which quarter of the body, and which way it stretches: three labels of every patch.
PATCH_LABELS: dict[str, tuple[str, ...]] = {
    "lesion": ("none", "small bright", "large bright", "small dark", "large dark"),
    "quarter": ("none", "1", "2", "3", "4"),
    "outline": ("none", "round", "wide", "high"),
}


@dataclass
class PhantomBatch:
    """`pixel_values` float32 `(N, 3, size, size)`, normalised; `labels` int64 `(N, attributes)`, `UNKNOWN` where
    none; `patch_labels` int64 `(N, patches, 3)`, patches in reading order, a class index for each of `PATCH_LABELS`."""

    pixel_values: torch.Tensor
    labels: torch.Tensor
    patch_labels: torch.Tensor

    def to(self, device: torch.device) -> PhantomBatch:
        """Return the batch on a device."""
        return PhantomBatch(self.pixel_values.to(device), self.labels.to(device), self.patch_labels.to(device))


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
    occupied = {quarter(phantom, lesion) for lesion in phantom.lesions}
    values |= {f"quarter_{number}": "yes" if number in occupied else "no" for number in (1, 2, 3, 4)}
    return [
        classes.index(values[name]) if values[name] in classes else UNKNOWN for name, classes in ATTRIBUTES.items()
    ]


def quarter(phantom: Phantom, lesion: Lesion) -> int:
    """Return which of the view's four places holds a lesion, 1 to 4 in reading order."""
    columns, rows = VIEWS[phantom.view].columns, VIEWS[phantom.view].rows
    return 1 + 2 * (lesion.y > sum(rows) / 2) + (lesion.x > sum(columns) / 2)


def patch_labels(phantom: Phantom, patches_a_side: int) -> list[tuple[int, int, int]]:
    """Return the classes of each patch, reading order; a patch shows a lesion where the lesion's box covers the
    patch's centre, and in the patch of the lesion's own centre."""
    labels = [(0, 0, 0)] * patches_a_side**2
    for lesion in phantom.lesions:
        outline = "round" if lesion.shape == "round" else "wide" if lesion.radius_x > lesion.radius_y else "high"
        label = (
            PATCH_LABELS["lesion"].index(f"{lesion.size} {lesion.tone}"),
            quarter(phantom, lesion),
            PATCH_LABELS["outline"].index(outline),
        )
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
    """Return `pixel_values` `(N, 3, height, width)` of grey images `(N, height, width)`, uint8."""
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

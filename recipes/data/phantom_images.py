# SPDX-License-Identifier: Apache-2.0
"""Renders a phantom: analytic shapes on a coordinate grid, so that one case has the same content at any pixel size.

Only additions, multiplications, divisions, square roots and comparisons of float32 are used, and noise comes from the
raw bits of a generator: the pixels are the same on every machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..errors import ConfigError
from .phantom_anatomy import PAINTERS
from .phantom_canvas import Array, Canvas
from .phantom_truth import Draws, Phantom, mirror

MIN_SIZE_PX = 16

# How far a lesion departs from the tissue (share of the way to black or white), edge width in pixels at 64 px, noise.
_CONTRAST = {"easy": (1.0, 1.3, 0.022), "medium": (0.6, 1.6, 0.045), "hard": (0.33, 2.4, 0.07)}
_NOISE_SHARE = {"ct": 1.0, "mri": 1.0, "xray": 0.8, "ultrasound": 0.8}
_BRIGHT, _DARK = 1.0, 0.02


def render_phantom(phantom: Phantom, size_px: int = 64) -> Array:
    """Return the image of a phantom: uint8 of shape `(size_px, size_px)`, 0 is black.

    The image of `mirror(phantom)` is exactly the left-right reflection of the image of `phantom`.

    Raises:
        ConfigError: `size_px` is below `MIN_SIZE_PX`.
    """
    if size_px < MIN_SIZE_PX:
        raise ConfigError(f"Found a phantom size of {size_px} px; expected {MIN_SIZE_PX} or more")
    if phantom.is_mirrored:
        return np.ascontiguousarray(render_phantom(mirror(phantom), size_px)[:, ::-1])
    contrast, softness, noise = _CONTRAST[phantom.difficulty]
    bits = np.random.PCG64(phantom.seed)  # the stream of a bit generator is fixed, that of a Generator is not
    draws = Draws(phantom.seed, 1)
    mottle = _spread(_gaussian(bits, (10, 10)), size_px)
    folds = _spread(_gaussian(bits, (22, 22)), size_px)
    canvas = Canvas(phantom.pose, size_px, mottle, folds)
    canvas.lesions = lambda: _paint_lesions(canvas, phantom, contrast, softness)
    PAINTERS[phantom.view](canvas, phantom, draws, bits)
    image = canvas.pixels
    image *= draws.between(0.93, 1.0)
    image += draws.between(0.0, 0.03)
    image += _gaussian(bits, (size_px, size_px)) * (noise * _NOISE_SHARE[phantom.modality])
    np.maximum(image, 0.0, out=image)
    np.minimum(image, 1.0, out=image)
    image *= 255.0
    image += 0.5
    return image.astype(np.uint8)


def _paint_lesions(canvas: Canvas, phantom: Phantom, contrast: float, softness: float) -> None:
    for lesion in phantom.lesions:
        value = _BRIGHT if lesion.tone == "bright" else _DARK
        canvas.ellipse(
            lesion.x, lesion.y, lesion.radius_x, lesion.radius_y, value, opacity=contrast, softness=softness
        )


def _gaussian(bits: np.random.PCG64, shape: tuple[int, int]) -> Array:
    """Return nearly normal noise, float32 of `shape`, mean 0, standard deviation 1: sums of four random bytes."""
    count = shape[0] * shape[1]
    raw = np.asarray(bits.random_raw((count + 1) // 2)).astype("<u8", copy=False).view(np.uint8)[: 4 * count]
    total = raw.reshape(4, count).sum(axis=0, dtype=np.uint16).astype(np.float32)
    total -= 510.0
    total *= 1 / 147.8
    return total.reshape(shape)


@lru_cache(maxsize=16)
def _weights(cells: int, size_px: int) -> tuple[Array, Array]:
    at = (np.arange(size_px, dtype=np.float64) + 0.5) * ((cells - 1) / size_px)
    low = at.astype(np.int64)
    return low, (at - low).astype(np.float32)


def _spread(grid: Array, size_px: int) -> Array:
    """Return a coarse grid, interpolated to `(size_px, size_px)`."""
    low, share = _weights(grid.shape[0], size_px)
    rows = grid[low]
    rows += share[:, None] * (grid[low + 1] - rows)
    columns = rows[:, low]
    columns += share * (rows[:, low + 1] - columns)
    return columns

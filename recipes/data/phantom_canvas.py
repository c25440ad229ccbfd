# SPDX-License-Identifier: Apache-2.0
"""The canvas that phantoms are painted on: body coordinates of every pixel, and soft-edged shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .phantom_truth import Pose

Array: TypeAlias = npt.NDArray[Any]
Window: TypeAlias = tuple[slice, slice]


@lru_cache(maxsize=16)
def _pixel_centres(size_px: int) -> Array:
    return (2 * np.arange(size_px, dtype=np.float32) + 1 - size_px) / np.float32(size_px)


class Canvas:
    """Pixels in the making, 0 (black) to 1 (white), float32 of shape `(size_px, size_px)`.

    `x` and `y` hold each pixel's place in body units, `mottle` a smooth random field (mean 0, standard deviation
    below 1), `folds` a finer one. `lesions` paints the case's lesions; a painter calls it where they belong in
    the order of layers.
    """

    lesions: Callable[[], None]

    def __init__(self, pose: Pose, size_px: int, mottle: Array, folds: Array) -> None:
        across = _pixel_centres(size_px) - np.float32(pose.shift_x)
        down = _pixel_centres(size_px) - np.float32(pose.shift_y)
        across /= np.float32(pose.scale_x)
        down /= np.float32(pose.scale_y)
        self.x = across * pose.cos + (down * pose.sin)[:, None]
        self.y = across * -pose.sin + (down * pose.cos)[:, None]
        self.mottle = mottle
        self.folds = folds
        self.pixels = np.zeros((size_px, size_px), np.float32)
        self.size_px = size_px
        self._pose = pose
        self._sharpness = size_px / 4  # of an edge that is one pixel wide, per body unit of the radius

    def window(self, x: float, y: float, radius_x: float, radius_y: float) -> Window:
        """Return the pixel rectangle (rows, columns) that surely holds an ellipse."""
        pose, half = self._pose, self.size_px / 2
        tilt = abs(pose.sin)
        wide, high = radius_x + tilt * radius_y, radius_y + tilt * radius_x
        centre_x = 1 + pose.shift_x + pose.scale_x * (pose.cos * x - pose.sin * y)
        centre_y = 1 + pose.shift_y + pose.scale_y * (pose.sin * x + pose.cos * y)
        return (
            slice(max(int((centre_y - high) * half) - 2, 0), max(int((centre_y + high) * half) + 3, 0)),
            slice(max(int((centre_x - wide) * half) - 2, 0), max(int((centre_x + wide) * half) + 3, 0)),
        )

    def ellipse(
        self,
        x: float,
        y: float,
        radius_x: float,
        radius_y: float,
        value: float,
        *,
        opacity: float = 1.0,
        softness: float = 1.0,
        tilt: float = 0.0,
        ripple: float = 0.0,
        square: bool = False,
    ) -> None:
        """Paint a filled ellipse.

        Args:
            x, y, radius_x, radius_y: centre and half-axes in body units.
            value: grey value, 0 black to 1 white.
            opacity: share of the way from what lies below to `value`.
            softness: width of the edge in pixels of a 64 px image.
            tilt: turns the ellipse clockwise; the tangent of half the angle.
            ripple: how far the field of folds moves the edge (share of the radius).
            square: a rounded rectangle in place of the ellipse.
        """
        if tilt:
            reach = max(radius_x, radius_y)
            window = self.window(x, y, reach, reach)
        else:
            window = self.window(x, y, radius_x, radius_y)
        across, down = self.x[window] - x, self.y[window] - y
        if tilt:
            cos, sin = (1 - tilt * tilt) / (1 + tilt * tilt), 2 * tilt / (1 + tilt * tilt)
            across, down = across * cos + down * sin, down * cos - across * sin
        across *= 1 / radius_x
        down *= 1 / radius_y
        across *= across
        down *= down
        if square:
            across *= across
            down *= down
        across += down  # 1 on the edge
        if ripple:
            across += self.folds[window] * ripple
        # One pixel is a larger step in a small ellipse. Soft edges keep their width in body units.
        sharpness = self._sharpness * min(radius_x, radius_y) * (0.5 if square else 1.0)
        if softness != 1.0:
            sharpness = 16 * min(radius_x, radius_y) / softness
        across *= -sharpness
        across += sharpness + 0.5
        np.maximum(across, 0.0, out=across)
        np.minimum(across, 1.0, out=across)
        if opacity != 1.0:
            across *= opacity
        area = self.pixels[window]
        across *= value - area
        area += across

    def pair(self, x: float, y: float, radius_x: float, radius_y: float, value: float, **options: Any) -> None:
        """Paint an ellipse and its counterpart on the other side of the body."""
        tilt = options.pop("tilt", 0.0)
        self.ellipse(-x, y, radius_x, radius_y, value, tilt=-tilt, **options)
        self.ellipse(x, y, radius_x, radius_y, value, tilt=tilt, **options)

    def texture(self, strength: float) -> None:
        """Make bright tissue brighter and darker in patches; black stays black."""
        self.pixels *= 1 + strength * self.mottle

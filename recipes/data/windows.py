# SPDX-License-Identifier: Apache-2.0
"""Windows: which range of a scan's values is spread over the 256 tones of a picture."""

from __future__ import annotations

import math

import numpy as np

from ..errors import ConfigError, did_you_mean
from .images import MID_GREY, rescale_to_8_bit

# Center and width in Hounsfield units, as radiology workstations name them.
PRESETS = {"brain": (40.0, 80.0), "lung": (-600.0, 1500.0), "bone": (400.0, 1800.0), "soft": (40.0, 400.0)}
FULL = "full"


def read_window(text: str) -> tuple[float, float] | None:
    """Return center and width of a preset's name or of `CENTER/WIDTH`, None for `full`.

    Raises:
        ConfigError: it is neither, or the width is not above 0.
    """
    if text == FULL:
        return None
    if text in PRESETS:
        return PRESETS[text]
    center, _, width = text.partition("/")
    try:
        window = float(center), float(width)
    except ValueError:
        window = (math.nan, math.nan)
    if not all(map(math.isfinite, window)) or window[1] <= 0:
        known = (*PRESETS, FULL)
        raise ConfigError(
            f"Unknown window {text!r}{did_you_mean(text, known)}; expected {', '.join(known)} or CENTER/WIDTH with a "
            "width above 0, such as 40/400"
        )
    return window


def show(values: np.ndarray, window: str | None) -> np.ndarray:
    """Return `uint8` of the same shape: the values inside a window spread linearly over 0..255.

    Without a window, the percentiles 0.5 and 99.5 of the finite values take the place of its ends; with `full`, the
    minimum and maximum do, so that not even a lesion of a few pixels is drawn as bright as the rest. A constant image
    becomes mid grey. NaN becomes black.

    Args:
        values: finite numbers or NaN, one channel.
        window: see [`read_window`].

    Raises:
        ConfigError: the window is unknown.
        ValueError: no value is finite.
    """
    if window is None:
        return rescale_to_8_bit(values)
    chosen = read_window(window)
    if chosen is None:
        finite = values[np.isfinite(values)]
        if finite.size == 0:
            raise ValueError("no finite value")
        low, high = float(finite.min()), float(finite.max())
        if low == high:
            return np.full(values.shape, MID_GREY, dtype=np.uint8)
        chosen = (low + high) / 2, high - low
    return apply_window(values, *chosen, function="LINEAR_EXACT")


def apply_window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Return `uint8` of the same shape: values below the window 0, above it 255, between them spread; NaN is 0.

    Args:
        values: one channel, any type.
        center: the middle of the window, in the values' units.
        width: above 0; at least 1 for LINEAR.
        function: `LINEAR` (also for an empty or unknown one), `LINEAR_EXACT` or `SIGMOID`.

    Source: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3: LINEAR counts from the middle of the first value to the middle of
    the last, so its center lies half a unit lower and its width is one less.
    """
    with np.errstate(over="ignore"):
        if function == "SIGMOID":
            shown = 1 / (1 + np.exp(-4 * (values - center) / width))
        elif function == "LINEAR_EXACT":
            shown = (values - center) / width + 0.5
        elif width > 1:
            shown = (values - (center - 0.5)) / (width - 1) + 0.5
        else:
            shown = (values > center - 0.5).astype(np.float32)
    return np.rint(np.clip(np.nan_to_num(shown, nan=0.0), 0, 1) * 255).astype(np.uint8)

# SPDX-License-Identifier: Apache-2.0
"""From the stored numbers of one grey DICOM frame to the tones in which it is to be seen.

Source: DICOM PS3.3, C.7.5.1.1.2 (padding), C.7.6.16 (settings of a frame), C.11.1 (modality LUT), C.11.2 (VOI LUT and
windows), C.11.4 and C.7.6.3.1.2 (which end is white).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydicom import Dataset

from .images import ImageError
from .windows import PRESETS, apply_window, show


def grey_tones(pixels: np.ndarray, header: Dataset, index: int, window: str | None, name: str) -> np.ndarray:
    """Return one channel as it is shown, `uint8`; what is padding becomes black."""
    units = _settings(header, index, "PixelValueTransformationSequence")
    tones = _settings(header, index, "FrameVOILUTSequence")
    padded = _padding(pixels, header)
    values = _in_units(pixels, units, header, name)
    highest = 2 ** int(header.get("BitsStored") or 16) - 1
    is_tones = pixels.dtype.kind == "u" and highest <= 255 and np.array_equal(values, pixels)
    values[padded] = np.nan
    if not np.isfinite(values).any():
        raise ImageError(f"{name}: no pixel of the frame shows anything (all padding); choose another frame")
    center, width = number_of(tones, "WindowCenter", name), number_of(tones, "WindowWidth", name)
    function = str(tones.get("VOILUTFunction") or "LINEAR")
    if window is not None:
        if window in PRESETS and header.get("Modality") != "CT":
            raise ImageError(
                f"{name}: the window {window} is in Hounsfield units, which only CT has; expected full or CENTER/WIDTH"
            )
        shown = show(values, window)
    elif tones.get("VOILUTSequence"):
        table = tones.VOILUTSequence[0]
        brightest = 2 ** int(table.LUTDescriptor[2]) - 1
        shown = apply_window(_looked_up(values, table, header), brightest / 2, brightest, "LINEAR_EXACT")
    elif center is not None and width is not None and (width >= 1 or (width > 0 and function != "LINEAR")):
        shown = apply_window(values, center, width, function)
    elif is_tones:
        shown = apply_window(values, highest / 2, highest, "LINEAR_EXACT")
    else:
        shown = show(values, None)
    if header.get("PhotometricInterpretation") == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE":
        shown = 255 - shown
    shown[padded] = 0
    return shown


def _settings(header: Dataset, index: int, group: str) -> Dataset:
    """Return where a group's tags are: with the frame or shared in newer multi-frame files, else in the header."""
    for sequence, at in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        groups = header.get(sequence) or []
        if at < len(groups) and groups[at].get(group):
            return groups[at][group][0]
    return header


def number_of(place: Dataset, keyword: str, name: str) -> float | None:
    """Return a number, the first of a list, None where there is none.

    Raises:
        ImageError: it is no number.
    """
    try:
        value = place.get(keyword)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = value[0] if value else None
        number = None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise ImageError(f"{name}: the DICOM header's {keyword} is no number; export the image again")
    return number


def _padding(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Return for each pixel, as stored, whether it is padding around the image."""
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if value is None or pixels.dtype.kind == "f":
        return np.zeros(pixels.shape, dtype=bool)
    # -2000 is often written as the unsigned 63536, and the other way round.
    bits = 8 * pixels.dtype.itemsize
    ends = int(value), int(value if limit is None else limit)
    first, last = sorted(int(np.array(end % 2**bits, f"u{bits // 8}").astype(pixels.dtype)) for end in ends)
    return (pixels >= first) & (pixels <= last)


def _in_units(pixels: np.ndarray, units: Dataset, header: Dataset, name: str) -> np.ndarray:
    """Return the pixels as floats in the units that the file tells, such as Hounsfield's."""
    values: np.ndarray = pixels.astype(np.float32 if pixels.dtype.itemsize <= 2 else np.float64)
    if units.get("ModalityLUTSequence"):
        return _looked_up(values, units.ModalityLUTSequence[0], header)
    slope, intercept = number_of(units, "RescaleSlope", name), number_of(units, "RescaleIntercept", name)
    return values * (1.0 if slope is None else slope) + (intercept or 0.0)


def _looked_up(values: np.ndarray, table: Dataset, header: Dataset) -> np.ndarray:
    """Return `float32`: each value's entry in a DICOM look-up table; values beyond its ends take the end's entry."""
    entries, first, bits = (int(number) for number in table.LUTDescriptor)
    data = table.LUTData
    if isinstance(data, bytes):
        kind = "u1" if bits <= 8 and len(data) <= (entries or 2**16) + 1 else "u2"
        data = np.frombuffer(data, np.dtype(kind).newbyteorder("<" if header.original_encoding[1] else ">"))
    lut = np.atleast_1d(np.asarray(data, dtype=np.float32))[: entries or 2**16]
    if first >= 2**15 and np.nanmin(values) < 0:
        first -= 2**16  # a negative number, read as an unsigned one
    looked_up = lut[np.clip(np.nan_to_num(np.rint(values - first)), 0, len(lut) - 1).astype(np.int64)]
    looked_up[np.isnan(values)] = np.nan
    return looked_up

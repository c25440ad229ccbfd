# SPDX-License-Identifier: Apache-2.0
"""One slice of a NIfTI volume as a picture, in the radiological convention.

The patient's right is on the left of the picture (axial and coronal); above is anterior in axial slices and superior
in the others; sagittal slices have anterior on the left. Pixels are made square.

Source: nifti1.h and nifti2.h of the NIfTI-1 and NIfTI-2 data formats; directions are those of the nearest axes, as
nibabel's `as_closest_canonical` takes them.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
from typing import BinaryIO

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from PIL import Image

from ..errors import ConfigError, did_you_mean
from .images import ImageError, checked_index
from .windows import show

log = logging.getLogger(__name__)

PLANES = ("sagittal", "coronal", "axial")  # by the axis across which they lie: to the right, to anterior, to superior
DEFAULT_PLANE = "axial"
MAX_VOXELS = 2**28  # 512 x 512 x 1024 of the first volume
MAX_OFFSET_BYTES = 2**24

_CIFTI_INTENTS = range(3000, 3100)
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)


def load_nifti(
    stream: BinaryIO, name: str, *, plane: str | None, slice_index: int | None, window: str | None, max_pixels: int
) -> Image.Image:
    """Return one slice of a volume as RGB; of several volumes (time, echoes) the first.

    Args:
        stream: the file, gzipped or not, open for reading bytes.
        name: what errors call it.
        plane: axial, coronal or sagittal.
        slice_index: number of the slice, from 0 at the patient's most inferior, posterior or left one; the middle by
            default.
        window: see [`pefomed_recipes.data.windows.read_window`]; presets take the values as Hounsfield units. The
            slice's percentiles by default.
        max_pixels: largest accepted width x height of the picture, checked before voxels are read.

    Raises:
        ConfigError: the plane or window is unknown.
        ImageError: no volume that can be shown. What is raised on damaged data passes through.
    """
    plane = plane or DEFAULT_PLANE
    if plane not in PLANES:
        raise ConfigError(f"Unknown plane {plane!r}{did_you_mean(plane, PLANES)}; expected {', '.join(PLANES)}")
    stream.seek(0)
    is_gzipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    # Inflated only as far as it is read, and no further than the header's size: a bomb never goes off.
    content = gzip.GzipFile(fileobj=stream) if is_gzipped else stream
    header = _read_header(content, name)
    shape = _checked_shape(header, name)
    affine = header.get_best_affine()
    directions = nibabel.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if np.isnan(directions).any():
        raise ImageError(f"{name}: the NIfTI header's orientation cannot be used; write the volume again")
    if not header["qform_code"] and not header["sform_code"]:
        log.warning("%s: the header tells no orientation; left and right of the picture are a guess", name)

    across = PLANES.index(plane)
    order = np.argsort(directions[:, 0])  # the stored axis that runs nearest to each of right, anterior, superior
    slices = shape[order[across]]
    index = checked_index(slice_index, slices, name, f"{plane} slice")
    column_axis, row_axis = (axis for axis in range(3) if axis != across)
    mm = voxel_sizes(affine)[order]
    finest = min(mm[column_axis], mm[row_axis])
    width, height = (round(shape[order[axis]] * float(mm[axis] / finest)) for axis in (column_axis, row_axis))
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {plane} slices have {width} x {height} square pixels, expected at most {max_pixels:,}; "
            "resample the volume"
        )

    volume = nibabel.apply_orientation(_first_volume(content, header, shape), directions)
    cut = volume[tuple(index if axis == across else slice(None) for axis in range(3))]
    slope, intercept = header.get_slope_inter()
    values = cut[::-1, ::-1].T.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)
    try:
        picture = Image.fromarray(show(values, window))
    except ValueError:
        raise ImageError(f"{name}: the slice has no finite value (all NaN or infinite); choose another") from None
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return picture.convert("RGB")


def _read_header(content: BinaryIO | gzip.GzipFile, name: str) -> nibabel.Nifti1Header:
    """Return the header, mended where nibabel knows how."""
    start = content.read(348)
    kind = nibabel.Nifti1Header
    if start[4:8] in (b"n+2\x00", b"ni2\x00"):
        kind = nibabel.Nifti2Header
        start += content.read(540 - 348)
    if b"ni1\x00" in start[344:348] or b"ni2\x00" in start[4:8]:
        raise ImageError(f"{name}: a NIfTI header whose voxels lie in another file; join both into one .nii file")
    try:
        header = kind.from_fileobj(io.BytesIO(start), check=False)
        header.check_fix(logger=_SILENT)
    except (HeaderDataError, WrapStructError):
        raise ImageError(f"{name}: the NIfTI header is damaged; expected a whole NIfTI file: copy it again") from None
    return header


def _checked_shape(header: nibabel.Nifti1Header, name: str) -> tuple[int, ...]:
    """Return the first volume's shape, three lengths.

    Raises:
        ImageError: it is no volume of single numbers, or too large.
    """
    kind = header.get_data_dtype()
    if kind.kind not in "iuf":
        raise ImageError(f"{name}: NIfTI with colours or complex numbers; expected one number a voxel")
    if int(header["intent_code"]) in _CIFTI_INTENTS:
        raise ImageError(f"{name}: CIFTI, which has no volume; expected a NIfTI volume")
    full = tuple(int(length) for length in header.get_data_shape())
    shape = (*full, 1, 1)[:3]
    if len(full) < 2 or min(full) < 1:
        raise ImageError(f"{name}: a NIfTI header with the shape {full}; expected a volume")
    if math.prod(shape) > MAX_VOXELS or int(header.get_data_offset()) > MAX_OFFSET_BYTES:
        raise ImageError(
            f"{name}: declares {' x '.join(map(str, shape))} voxels from byte {int(header.get_data_offset()):,}, "
            f"expected at most {MAX_VOXELS:,} from byte {MAX_OFFSET_BYTES:,} at the latest; cut it into parts"
        )
    return shape


def _first_volume(
    content: BinaryIO | gzip.GzipFile, header: nibabel.Nifti1Header, shape: tuple[int, ...]
) -> np.ndarray:
    """Return the first volume as stored, read as far as needed.

    Raises:
        EOFError: the file ends before.
    """
    kind, offset = header.get_data_dtype(), int(header.get_data_offset())
    if isinstance(content, io.BufferedReader):  # a plain file: only the slice's pages are read
        return np.memmap(content, kind, "r", offset, shape, order="F")
    content.seek(offset)
    stored = content.read(math.prod(shape) * kind.itemsize)
    if len(stored) < math.prod(shape) * kind.itemsize:
        raise EOFError("truncated")
    return np.frombuffer(stored, kind).reshape(shape, order="F")

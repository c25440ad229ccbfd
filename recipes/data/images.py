# SPDX-License-Identifier: Apache-2.0
"""One way from an image file, however odd, to an RGB picture: or an error that names the file."""

from __future__ import annotations

import importlib
import io
import os
import zlib
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import PeFoMedError

# The decoders that may touch a file: each further one is attack surface (PostScript starts a program).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
DICOM, NIFTI = "DICOM", "NIfTI"
MAX_PIXELS = 2**26  # 8192 x 8192: above any radiograph, and some 200 MB as RGB
PERCENTILES = (0.5, 99.5)
MID_GREY = 128

_LIBRARIES = {DICOM: "pydicom", NIFTI: "nibabel"}
_ENDINGS = {DICOM: (".dcm", ".dicom", ".ima"), NIFTI: (".nii", ".nii.gz")}
# How a picture is chosen from a file that holds several.
_OPTIONS = {DICOM: ("frame", "window"), NIFTI: ("plane", "slice", "window")}
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_HEAD_BYTES = 4096
_STRIP_ROWS = 256
_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_SIGNATURES = (
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"RIFF", "WEBP"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
)
_OTHER_FILES = (
    (b"%PDF", "a PDF file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 file"),
    (b"version https://git-lfs", "a Git LFS pointer (`git lfs pull` fetches the image)"),
)
_UNKNOWN = "an unknown kind of file"


class ImageError(PeFoMedError):
    """An image that cannot be used: missing, damaged, too large or of a kind that is not read."""


def load_image(
    source: str | os.PathLike[str] | bytes,
    *,
    frame: int | None = None,
    plane: str | None = None,
    slice_index: int | None = None,
    window: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Return the image as it should be seen: mode RGB, 8 bit, upright, without metadata.

    The first frame of animations and stacks counts. EXIF orientation is applied. Greyscale of more than 8 bits (16-bit
    and 32-bit integer, float) is rescaled from its percentiles 0.5 and 99.5 to 0..255 instead of being cut at 255; see
    [`rescale_to_8_bit`]. Transparent pixels are laid over black, the background of radiological images: a white margin
    would be the brightest thing in the picture. An alpha channel that hides everything is dropped.

    Of DICOM files one frame is shown as it is stored; of NIfTI volumes one slice in the radiological convention, with
    the patient's right on the picture's left. Of their tags, none but those that pixels need is read.

    Args:
        source: path of a PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM or NIfTI file, the bytes of one, or
            `/folder/file.parquet#ROW` for an image in a Parquet file.
        frame: of a DICOM file, counted from 0; the middle one by default.
        plane: of a NIfTI volume: axial (the default), coronal or sagittal.
        slice_index: of a NIfTI volume, from 0 at the most inferior, posterior or left; the middle one by default.
        window: brain, lung, bone or soft (in Hounsfield units: CT only), full (minimum to maximum) or `CENTER/WIDTH`.
            By default, what a DICOM file asks for, else percentiles.
        max_pixels: largest accepted width x height, checked on the declared size before anything is decoded. Pillow
            itself refuses more than twice its `Image.MAX_IMAGE_PIXELS` (179 million pixels).

    Raises:
        ConfigError: the plane or window is unknown.
        ImageError: the file is missing, empty, truncated, too large or no such image, or has no such frame or slice.
            The text names the file, says what was found and what was expected, and never repeats metadata.
    """
    name, source, head = _looked_at(source)
    kind = _medical_kind(head, name)
    given = {"frame": frame, "plane": plane, "slice": slice_index, "window": window}
    for option, value in given.items():
        if value is not None and option not in _OPTIONS.get(kind, ()):
            kinds = " and ".join(other for other, options in _OPTIONS.items() if option in options)
            raise ImageError(f"{name}: only {kinds} files have a {option} to choose; leave it out for this one")
    try:
        # A name is opened here, not by a decoder, so that none sees more than the stream.
        with _opened(source) as stream:
            if kind == DICOM:
                return _reader(kind, name).load_dicom(stream, name, frame=frame, window=window, max_pixels=max_pixels)
            if kind == NIFTI:
                return _reader(kind, name).load_nifti(
                    stream, name, plane=plane, slice_index=slice_index, window=window, max_pixels=max_pixels
                )
            return _load_picture(stream, name, max_pixels)
    except PeFoMedError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{name}: declares more pixels than can be decoded safely, expected at most {max_pixels:,}; "
            "scale it down or cut it into tiles"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: {_describe(head)}; expected an image ({_accepted()})") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode it; scale it down") from None
    except Exception as error:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged files. Their texts may
        # quote the file, so only the kind is told.
        damage = "is truncated" if "truncated" in str(error).lower() else f"cannot be decoded ({type(error).__name__})"
        raise ImageError(
            f"{name}: the {kind or _format_of(head) or 'image'} data {damage}; expected a whole image "
            f"({_accepted()}): copy it again or export it as PNG"
        ) from None


def burned_in_risk(path: str | os.PathLike[str]) -> bool:
    """Whether text, such as a patient's name, may be part of a DICOM file's pixels; False for other files.

    True where the file says so (BurnedInAnnotation), and where an ultrasound image, a secondary capture or a
    screenshot does not deny it.

    Raises:
        ImageError: the file is missing, its header cannot be read, or `pefomed[dicom]` is not installed.
    """
    name, source, head = _looked_at(path)
    if _medical_kind(head, name) != DICOM:
        return False
    reader = _reader(DICOM, name)
    try:
        with _opened(source) as stream:
            return reader.is_likely_written_on(stream, name)
    except PeFoMedError:
        raise
    except Exception as error:  # its text may quote the file
        raise ImageError(f"{name}: the DICOM header cannot be read ({type(error).__name__}); copy it again") from None


def checked_index(chosen: int | None, count: int, name: str, what: str) -> int:
    """Return the chosen number of a frame or slice, or the middle one.

    Raises:
        ImageError: there is none of that number.
    """
    if chosen is None:
        return count // 2
    if not 0 <= chosen < count:
        raise ImageError(f"{name}: no {what} {chosen}; there are {count}, counted from 0")
    return chosen


def rescale_to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Return `uint8` of the same shape: percentiles 0.5..99.5 of the finite values spread linearly over 0..255.

    Where these percentiles coincide (one tone fills the picture but for a few pixels) the minimum and maximum take
    their place; a constant image becomes mid grey (128). NaN and minus infinity become black, infinity white.

    Args:
        pixels: any integer or float type, one channel.

    Raises:
        ValueError: no value is finite.
    """
    finite = pixels[np.isfinite(pixels)]
    if finite.size == 0:
        raise ValueError("no finite value")
    # "nearest" picks values that occur: interpolation would overflow between the extremes of float32.
    low, high = (float(value) for value in np.percentile(finite, PERCENTILES, method="nearest"))
    if low == high:
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        return np.full(pixels.shape, MID_GREY, dtype=np.uint8)
    scaled = np.empty(pixels.shape, dtype=np.uint8)
    for top in range(0, len(pixels), _STRIP_ROWS):  # float64 for the precision, in strips for the memory
        strip = np.nan_to_num(pixels[top : top + _STRIP_ROWS].astype(np.float64), nan=low, posinf=high, neginf=low)
        scaled[top : top + _STRIP_ROWS] = np.rint((np.clip(strip, low, high) - low) * (255.0 / (high - low)))
    return scaled


def _load_picture(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """Return what one of Pillow's decoders makes of the stream."""
    with Image.open(stream, formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                f"{name}: declares {width} x {height} pixels, expected at most {max_pixels:,}; "
                "scale it down or cut it into tiles"
            )
        is_deep_colour = any(";16" in str(tile.args) for tile in image.tile) and image.mode in ("LA", "RGB", "RGBA")
        image.load()
        # Pillow keeps the upper half of 16 bits, which is dark or nothing where 12 are used.
        if is_deep_colour and np.asarray(image)[..., : len(image.mode.rstrip("A"))].max() < 128:
            raise ImageError(f"{name}: 16 bits a channel of which only the lower ones are used; export it with 8 bits")
        return _to_rgb(image, name)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return a decoded image upright, as RGB, with nothing but its pixels."""
    inverted = getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # an EXIF block that cannot be read says nothing about the orientation
        upright = image
    if upright.mode in _DEEP_MODES:
        try:
            grey = rescale_to_8_bit(np.asarray(upright))
        except ValueError:
            raise ImageError(f"{name}: found no finite pixel value (all NaN or infinite)") from None
        # Pillow turns white-is-zero TIFF files round at 1 to 8 bits, and leaves deeper ones inverted.
        upright = Image.fromarray(255 - grey if inverted else grey)
    elif upright.has_transparency_data:
        upright = _over_black(upright.convert("RGBA"))
    picture = upright.convert("RGB")
    picture.info = {}  # EXIF and text chunks may name the patient and would travel into saved copies
    return picture


def _over_black(image: Image.Image) -> Image.Image:
    """Return an RGBA image as RGB over black; fully transparent images keep their colours."""
    alpha = image.getchannel("A")
    colours = image.convert("RGB")
    if alpha.getextrema()[1] == 0:
        return colours
    return Image.composite(colours, Image.new("RGB", image.size), alpha)


def _looked_at(
    source: str | os.PathLike[str] | bytes,
) -> tuple[str, str | os.PathLike[str] | bytes, bytes]:
    """Return what errors call an image, the path or bytes that hold it, and its first bytes.

    Raises:
        ImageError: it is missing, cannot be read or is empty.
    """
    name = "image given as bytes" if isinstance(source, bytes) else os.fspath(source)
    if not isinstance(source, bytes) and ".parquet#" in name:
        source = _from_parquet(name)
    head = source[:_HEAD_BYTES] if isinstance(source, bytes) else _read_head(Path(source), name)
    if not head:
        raise ImageError(f"{name}: the file is empty (0 bytes); expected an image ({_accepted()})")
    return name, source, head


def _opened(source: str | os.PathLike[str] | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _read_head(path: Path, name: str) -> bytes:
    """Return the first bytes of a file.

    Raises:
        ImageError: there is no such file, or it cannot be read.
    """
    if not os.path.isfile(path):  # not Path.is_file: a name with a null byte is a missing file, too
        found = "a folder" if os.path.isdir(path) else "no such file"
        raise ImageError(f"{name}: {found}; expected an image file ({_accepted()})")
    try:
        with path.open("rb") as stream:
            return stream.read(_HEAD_BYTES)
    except OSError as error:
        raise ImageError(f"{name}: the file cannot be read ({error.strerror}); check its permissions") from None


def _from_parquet(reference: str) -> bytes:
    """Return the bytes of an image in a Parquet file."""
    from .parquet_images import read_parquet_image

    try:
        return read_parquet_image(reference)
    except PeFoMedError as error:
        raise ImageError(str(error)) from None


def _medical_kind(head: bytes, name: str) -> str:
    """Return `DICOM` or `NIfTI` by content, by name where the content is of no other known kind, else "".

    A DICOM file may begin like a TIFF file, so this comes before decoding.
    """
    content = head
    if head.startswith(b"\x1f\x8b"):
        try:
            content = zlib.decompressobj(wbits=31).decompress(head, 352)
        except zlib.error:
            content = b""
    if head[128:132] == b"DICM":
        return DICOM
    if content[344:348] in (b"n+1\x00", b"ni1\x00") or content[4:8] in (b"n+2\x00", b"ni2\x00"):
        return NIFTI
    if _describe(head) == _UNKNOWN:
        return next((kind for kind, endings in _ENDINGS.items() if name.lower().endswith(endings)), "")
    return ""


def _reader(kind: str, name: str) -> ModuleType:
    """Return the module that reads DICOM or NIfTI; imported late, since its library is an extra."""
    try:
        return importlib.import_module(f".{kind.lower()}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != _LIBRARIES[kind]:
            raise
        raise ImageError(
            f"{name}: a {kind} file, which takes an extra to read: pip install 'pefomed[{kind.lower()}]'"
        ) from None


def _describe(head: bytes) -> str:
    """Say what kind of file this is, in words for an error, from its first bytes."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, so the download failed"
    if start.startswith((b"<?xml", b"<svg")):
        return "an XML or SVG file"
    for signature, kind in _OTHER_FILES:
        if head.startswith(signature):
            return kind
    if _format_of(head):
        also = ", or of a kind of samples that cannot be read (64-bit floats, colours as floats)"
        return f"damaged or truncated {_format_of(head)} data{also if _format_of(head) == 'TIFF' else ''}"
    return _UNKNOWN


def _format_of(head: bytes) -> str:
    """Return the accepted format whose signature the data begins with, or ""."""
    return next((form for signature, form in _SIGNATURES if head.startswith(signature)), "")


def _accepted() -> str:
    return ", ".join(FORMATS) + f", {DICOM} or {NIFTI}"

# SPDX-License-Identifier: Apache-2.0
"""Image bytes to hand on: the file's own ones wherever they hold nothing but the picture.

EXIF blocks, comments and the headers of medical formats may name a patient. JPEG and PNG files lose such blocks
without a pixel being decoded; other kinds of files become PNG files of what [`load_image`] shows.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

from .images import ImageError, load_image
from .parquet_images import is_parquet_reference, read_parquet_image

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"}
# Of a JPEG file's blocks, APP0 (JFIF) and APP14 (how colours are stored) say how to decode; the other APPn and
# comments are for notes.
_JPEG_NOTES = {marker for marker in range(0xE1, 0xF0) if marker != 0xEE} | {0xFE}
_JPEG_SCAN, _JPEG_WITHOUT_LENGTH = 0xDA, {0x01, *range(0xD0, 0xD8)}
_ORIENTATION, _UPRIGHT = 0x0112, 1


def bare_image(path: str, max_side_px: int | None = None) -> tuple[bytes, bool]:
    """Return the bytes of an image without anything but its picture, and whether they were encoded anew, as PNG.

    JPEG and PNG data keeps its pixels byte for byte, BMP files are kept as they are; everything else, images that are
    turned by EXIF, and images with a side of more than `max_side_px`, scaled down to it, become PNG. `load_image`
    shows the same before and after, but for the scaling.

    Raises:
        PeFoMedError: the image is missing, or must be decoded and cannot.
    """
    content = _content(path)
    bare = _without_notes(content)
    if bare is not None and max_side_px is not None and max(_size(content)) > max_side_px:
        bare = None
    if bare is not None:
        return bare, False
    image = load_image(path)
    if max_side_px is not None and max(image.size) > max_side_px:
        image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS, reducing_gap=None)
    pixels = np.asarray(image)
    if (pixels == pixels[..., :1]).all():
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    return encoded.getvalue(), True


def _content(path: str) -> bytes:
    if is_parquet_reference(path):
        return read_parquet_image(path)
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise ImageError(f"{path}: the image cannot be read ({error.strerror})") from None


def _without_notes(content: bytes) -> bytes | None:
    """Return JPEG, PNG and BMP data without notes; None for other data, and where notes are needed to show it."""
    try:
        if content.startswith(b"\xff\xd8\xff"):
            return _bare_jpeg(content) if _is_upright(content) else None
        if content.startswith(_PNG_SIGNATURE):
            return _bare_png(content) if _is_upright(content) else None
    except (ValueError, struct.error, IndexError, OSError, SyntaxError):
        return None
    return content if content.startswith(b"BM") else None


def _is_upright(content: bytes) -> bool:
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        return image.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT


def _size(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "BMP")) as image:
        return image.size


def _bare_jpeg(content: bytes) -> bytes:
    """Return JPEG data without its APPn blocks for notes and without comments.

    Raises:
        ValueError, struct.error, IndexError: the blocks are not laid out as JPEG's are.
    """
    kept = [content[:2]]
    at = 2
    while True:
        if content[at] != 0xFF:
            raise ValueError("no marker")
        while content[at + 1] == 0xFF:  # padding
            at += 1
        marker = content[at + 1]
        length = 0 if marker in _JPEG_WITHOUT_LENGTH else struct.unpack_from(">H", content, at + 2)[0]
        end = at + 2 + length
        if end > len(content):
            raise ValueError("cut short")
        if marker == _JPEG_SCAN:
            # further notes between scans, or a second picture behind the first, are for a decoder to leave out
            rest = content[at:]
            if any(note in rest for note in (b"Exif\0\0", b"http://ns.adobe.com", b"Photoshop 3.0")):
                raise ValueError("notes behind the first scan")
            return b"".join([*kept, rest])
        if marker not in _JPEG_NOTES:
            kept.append(content[at:end])
        at = end


def _bare_png(content: bytes) -> bytes:
    """Return PNG data without chunks of text, time and EXIF, and without whatever follows its end.

    Raises:
        ValueError, struct.error: the chunks are not laid out as PNG's are.
    """
    kept, at = [content[:8]], 8
    while True:
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            raise ValueError("cut short")
        if kind not in _PNG_TEXTS:
            kept.append(content[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end

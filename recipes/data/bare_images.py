# SPDX-License-Identifier: Apache-2.0
"""Image bytes to hand on: the file's own ones wherever they hold nothing but the picture.

EXIF blocks, comments, blocks of a maker's own, the headers of medical formats and whatever stands behind a picture's
end may name a patient. Of JPEG and PNG files only the blocks that the picture needs are kept, without a pixel being
decoded; other kinds of files become PNG files of what [`load_image`] shows.
"""

from __future__ import annotations

import io
import re
import struct

import numpy as np
from PIL import Image

from .images import ImageError, load_image
from .parquet_images import is_parquet_reference, read_parquet_image

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PICTURE = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"sBIT", b"gAMA", b"cHRM", b"sRGB", b"pHYs"}
# Of a JPEG file's blocks, those from 0xC0 to 0xDF are the picture (sizes, tables, scans), and APP0 (JFIF) and APP14
# (how colours are stored) say how to decode it; the other APPn and comments are for notes.
_JPEG_PICTURE = set(range(0xC0, 0xE0))
_JPEG_APP0, _JPEG_APP14, _JFIF_BYTES = 0xE0, 0xEE, 18
_JPEG_SCAN, _JPEG_END, _JPEG_WITHOUT_LENGTH = 0xDA, 0xD9, {0x01, *range(0xD0, 0xD9)}
# What ends a scan's data: a marker but for zero, which stands for 0xFF itself, and those between parts of the scan.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_ORIENTATION, _UPRIGHT = 0x0112, 1


def bare_image(path: str, max_side_px: int | None = None) -> tuple[bytes, bool]:
    """Return the bytes of an image without anything but its picture, and whether they were encoded anew, as PNG.

    JPEG and PNG data keeps its pixels byte for byte; everything else, images that are turned by EXIF, and images with
    a side of more than `max_side_px`, scaled down to it, become PNG. `load_image` shows the same before and after, but
    for the scaling.

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
    """Return JPEG and PNG data without notes; None for other data, and where notes are needed to show it."""
    try:
        if content.startswith(b"\xff\xd8\xff"):
            return _bare_jpeg(content) if _is_upright(content) else None
        if content.startswith(_PNG_SIGNATURE):
            return _bare_png(content) if _is_upright(content) else None
    except (ValueError, struct.error, IndexError, OSError, SyntaxError):
        return None
    return None


def _is_upright(content: bytes) -> bool:
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        return image.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT


def _size(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        return image.size


def _bare_jpeg(content: bytes) -> bytes:
    """Return the blocks of JPEG data that a picture needs and its scans, up to the end of the picture.

    Raises:
        ValueError, struct.error, IndexError: the blocks are not laid out as JPEG's are.
    """
    kept, at = [content[:2]], 2
    while True:
        if content[at] != 0xFF:
            raise ValueError("no marker")
        while content[at + 1] == 0xFF:  # padding
            at += 1
        marker = content[at + 1]
        if marker == _JPEG_END:
            return b"".join([*kept, content[at : at + 2]])
        length = 0 if marker in _JPEG_WITHOUT_LENGTH else struct.unpack_from(">H", content, at + 2)[0]
        end = at + 2 + length
        if end > len(content):
            raise ValueError("cut short")
        if marker == _JPEG_SCAN:
            after = _JPEG_MARKER.search(content, end)
            if after is None:
                raise ValueError("cut short")
            end = after.start()
        block = content[at:end]
        if marker == _JPEG_APP0:
            kept.append(_without_thumbnail(block))
        elif marker in _JPEG_PICTURE or (marker == _JPEG_APP14 and block[4:9] == b"Adobe" and len(block) == 16):
            kept.append(block)
        at = end


def _without_thumbnail(block: bytes) -> bytes:
    """Return a JFIF block without the small picture that may be in it; nothing for another block of this number."""
    if block[4:9] != b"JFIF\0" or len(block) < _JFIF_BYTES:
        return b""
    return block[:2] + struct.pack(">H", _JFIF_BYTES - 2) + block[4 : _JFIF_BYTES - 2] + b"\0\0"


def _bare_png(content: bytes) -> bytes:
    """Return the chunks of PNG data that say how the picture looks, up to its end.

    Raises:
        ValueError, struct.error: the chunks are not laid out as PNG's are.
    """
    kept, at = [content[:8]], 8
    while True:
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            raise ValueError("cut short")
        if kind in _PNG_PICTURE:
            kept.append(content[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end

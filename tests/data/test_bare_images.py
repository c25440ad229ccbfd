# SPDX-License-Identifier: Apache-2.0
"""Images in shards hold nothing but the picture: no notes, headers or blocks that could name somebody."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

from pefomed_recipes.data.bare_images import bare_image
from pefomed_recipes.data.images import load_image

from .small_sets import write_image

CASES = {"train": 6, "validation": 2, "test": 2}


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    """Save an image with whatever a format can carry."""
    image.save(path, **options)
    return path


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010E] = "PATIENT^NAME"
    return block


@pytest.fixture
def noise() -> Image.Image:
    """A colour image."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (24, 36, 3), dtype=np.uint8))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_files_without_notes_keep_their_bytes(tmp_path: Path, noise: Image.Image, ending: str) -> None:
    path = saved(noise, tmp_path / f"a.{ending}")
    assert bare_image(str(path)) == (path.read_bytes(), False)


def with_notes(image: Image.Image, folder: Path, kind: str) -> Path:
    """Write an image with a patient's name in its notes."""
    if kind == "png":
        notes = PngInfo()
        notes.add_text("Comment", "PATIENT^NAME")
        notes.add_itxt("More", "PATIENT^NAME")
        return saved(image, folder / "a.png", pnginfo=notes, exif=exif(1))
    if kind == "cmyk":
        return saved(image.convert("CMYK"), folder / "a.jpg", comment=b"PATIENT^NAME")
    if kind == "progressive":
        return saved(image, folder / "a.jpg", exif=exif(1), progressive=True, xmp=b"PATIENT^NAME")
    if kind == "turned":
        return saved(image, folder / "a.jpg", exif=exif(6))
    if kind == "16 bit":
        deep = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
        return saved(deep, folder / "a.tif", description="PATIENT^NAME")
    if kind == "webp":
        return saved(image, folder / "a.webp", exif=exif(1), lossless=True)
    if kind.startswith("behind"):
        path = saved(image, folder / f"a.{kind.split()[1]}")
        path.write_bytes(path.read_bytes() + b"PATIENT^NAME")
        return path
    if kind == "between scans":
        path = saved(image, folder / "a.jpg", progressive=True)
        content = path.read_bytes()
        second = content.index(b"\xff\xc4", content.index(b"\xff\xda"))  # the tables of the second scan
        path.write_bytes(content[:second] + b"\xff\xfe\x00\x0ePATIENT^NAME" + content[second:])
        return path
    if kind == "small picture":  # a JFIF block with one of 2 x 2 pixels
        path = saved(image, folder / "a.jpg")
        content = path.read_bytes()
        assert content[2:6] == b"\xff\xe0\x00\x10"
        path.write_bytes(content[:4] + b"\x00\x1c" + content[6:18] + b"\x02\x02PATIENT^NAME" + content[20:])
        return path
    if kind == "private chunk":
        path = saved(image, folder / "a.png")
        content, chunk = path.read_bytes(), b"paTiPATIENT^NAME"
        chunk = struct.pack(">I", 12) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(content[:33] + chunk + content[33:])  # behind the header
        return path
    return saved(image, folder / "a.jpg", exif=exif(1), comment=b"PATIENT^NAME")


@pytest.mark.parametrize(
    ("kind", "encoded_anew"),
    [
        *(("jpg", False), ("png", False), ("cmyk", False), ("progressive", False), ("small picture", False)),
        *(("between scans", False), ("private chunk", False), ("behind jpg", False), ("behind png", False)),
        *(("turned", True), ("16 bit", True), ("webp", True), ("behind bmp", True)),
    ],
)
def test_notes_are_left_out_and_the_picture_is_shown_as_before(
    tmp_path: Path, noise: Image.Image, kind: str, encoded_anew: bool
) -> None:
    path = with_notes(noise, tmp_path, kind)
    assert b"PATIENT^NAME" in path.read_bytes()
    content, anew = bare_image(str(path))
    assert b"PATIENT^NAME" not in content
    assert anew is encoded_anew
    assert ImageChops.difference(load_image(content), load_image(path)).getbbox() is None


def test_a_dicom_file_becomes_a_picture_without_its_header(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    path = str(get_testdata_file("CT_small.dcm"))
    content, anew = bare_image(path)
    assert anew
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "L", {})
    assert ImageChops.difference(load_image(content), load_image(path)).getbbox() is None


def test_only_longer_sides_are_scaled_down(tmp_path: Path) -> None:
    wide, small = write_image(tmp_path / "wide.png", 1, (80, 40)), write_image(tmp_path / "small.png", 2, (32, 20))
    scaled, anew = bare_image(str(wide), 32)
    assert (load_image(scaled).size, anew) == ((32, 16), True)
    assert bare_image(str(small), 32) == (small.read_bytes(), False)

# SPDX-License-Identifier: Apache-2.0
"""Every odd image form that folders hold becomes an upright RGB picture, or an error that names the file."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pefomed_recipes.data.images import ImageError, burned_in_risk, load_image, rescale_to_8_bit
from pefomed_recipes.errors import PeFoMedError

RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def grey(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    red, green, blue = np.moveaxis(pixels(image), -1, 0)
    assert (red == green).all() and (green == blue).all()
    return red


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of some 100 bytes that declares any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp", ".gif"])
def test_each_accepted_format_loads_from_a_path_and_from_bytes(tmp_path, suffix):
    path = save(Image.fromarray(RAMP).resize((32, 16)), tmp_path / f"image{suffix}")
    from_path, from_bytes = load_image(path), load_image(path.read_bytes())
    assert from_path.mode == "RGB" and from_path.size == (32, 16)
    assert (pixels(from_path) == pixels(from_bytes)).all()
    assert (pixels(from_path) == pixels(load_image(str(path)))).all()
    assert pixels(from_path)[0, 0].max() < 40 and pixels(from_path)[-1, -1].min() > 215


def test_eight_bit_values_are_kept_exactly(tmp_path):
    assert (grey(load_image(save(Image.fromarray(RAMP), tmp_path / "a.png"))) == RAMP).all()
    colours = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)
    assert (pixels(load_image(save(Image.fromarray(colours), tmp_path / "b.png"))) == colours).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_rescaled_instead_of_cut(tmp_path, suffix):
    deep = np.linspace(1000, 4095, 4096).astype(np.uint16).reshape(64, 64)
    values = grey(load_image(save(Image.fromarray(deep), tmp_path / f"deep{suffix}")))
    assert values.min() == 0 and values.max() == 255
    assert abs(values.mean() - 127.5) < 1
    assert (np.diff(values.ravel().astype(int)) >= 0).all()


def png_of_16_bits(rows: np.ndarray, colour_type: int) -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = rows.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("channels", "colour_type"), [(2, 4), (3, 2), (4, 6)])
def test_16_bit_colours_in_12_bits_are_refused_instead_of_turned_black(channels, colour_type):
    tones = np.linspace(0, 4095, 64 * channels).astype(np.uint16).reshape(8, 8, channels)
    tones[..., -1] = tones[..., -1] if channels == 3 else 65535  # opaque
    with pytest.raises(ImageError, match="16 bits a channel of which only the lower ones are used"):
        load_image(png_of_16_bits(tones, colour_type))
    assert pixels(load_image(png_of_16_bits(tones * 16, colour_type))).max() > 200


def test_big_endian_16_bit_equals_little_endian(tmp_path):
    deep = (np.arange(4096, dtype=np.uint16) * 13).reshape(64, 64)
    header = struct.pack(">2sHI", b"MM", 42, 8)
    entries = [(256, 4, 64), (257, 4, 64), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 134), (277, 3, 1)]
    entries += [(278, 4, 64), (279, 4, deep.nbytes)]
    directory = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack(">HHI", tag, kind, 1) + struct.pack(
            ">HH" if kind == 3 else ">I", *([value, 0][: 2 if kind == 3 else 1])
        )
    directory += struct.pack(">I", 0)
    content = header + directory
    content += bytes(134 - len(content)) + deep.astype(">u2").tobytes()
    (tmp_path / "big.tif").write_bytes(content)
    with Image.open(tmp_path / "big.tif") as image:
        assert image.mode == "I;16B"
    little = save(Image.fromarray(deep), tmp_path / "little.tif")
    assert (grey(load_image(tmp_path / "big.tif")) == grey(load_image(little))).all()


def test_32_bit_integers_and_floats_are_rescaled(tmp_path):
    ramp = np.linspace(-1, 1, 4096).reshape(64, 64)
    for name, values in (("f.tif", ramp.astype(np.float32)), ("i.tif", (ramp * 1e6).astype(np.int32))):
        shown = grey(load_image(save(Image.fromarray(values), tmp_path / name)))
        assert shown.min() == 0 and shown.max() == 255 and abs(shown.mean() - 127.5) < 1


@pytest.mark.parametrize("deep", [np.full((4, 4), 700, np.uint16), np.zeros((4, 4), np.float32)])
def test_constant_deep_images_become_mid_grey(tmp_path, deep):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (grey(load_image(save(Image.fromarray(deep), tmp_path / "flat.tif"))) == 128).all()


def test_nan_and_infinity_do_not_spoil_the_finite_pixels(tmp_path):
    values = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    clean = grey(load_image(save(Image.fromarray(values), tmp_path / "clean.tif")))
    values[32, 0], values[32, 1], values[32, 2] = np.nan, np.inf, -np.inf
    shown = grey(load_image(save(Image.fromarray(values), tmp_path / "holes.tif")))
    assert shown[32, :3].tolist() == [0, 255, 0]
    assert np.abs(shown[33:].astype(int) - clean[33:]).max() <= 1


def test_an_image_without_a_finite_pixel_is_refused(tmp_path):
    path = save(Image.fromarray(np.full((4, 4), np.nan, np.float32)), tmp_path / "nan.tif")
    with pytest.raises(ImageError, match=r"nan\.tif: found no finite pixel value"):
        load_image(path)


def test_a_lesion_in_few_pixels_survives_where_the_percentiles_coincide():
    values = np.zeros((100, 100), np.uint16)
    values[50, 50:60] = 3000
    shown = rescale_to_8_bit(values)
    assert (shown[50, 50:60] == 255).all() and np.count_nonzero(shown) == 10


def test_extremes_of_float32_do_not_overflow():
    limit = np.finfo(np.float32).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rescale_to_8_bit(np.array([[-limit, 0, limit]], np.float32)).tolist() == [[0, 128, 255]]


def test_tall_deep_images_are_rescaled_alike_in_every_strip():
    column = np.arange(1000, dtype=np.float32)
    one_strip = rescale_to_8_bit(column[None])[0]
    assert (rescale_to_8_bit(column[:, None])[:, 0] == one_strip).all()


@pytest.mark.parametrize("deep", [RAMP.astype(np.uint16) * 100, RAMP.astype(np.float32), RAMP])
def test_white_is_zero_tiff_is_shown_like_its_black_is_zero_twin(tmp_path, deep):
    normal = save(Image.fromarray(deep), tmp_path / "normal.tif")
    flipped = deep.max() - deep
    content = bytearray(save(Image.fromarray(flipped), tmp_path / "turned.tif").read_bytes())
    photometric = struct.pack("<HHIH", 262, 3, 1, 1)
    assert content.count(photometric) == 1
    start = content.index(photometric)
    content[start : start + len(photometric)] = struct.pack("<HHIH", 262, 3, 1, 0)
    assert np.abs(grey(load_image(bytes(content))).astype(int) - grey(load_image(normal))).max() <= 1


def test_transparency_is_laid_over_black(tmp_path):
    image = Image.new("RGBA", (2, 1), (200, 100, 50, 255))
    image.putpixel((1, 0), (255, 255, 255, 0))
    assert pixels(load_image(save(image, tmp_path / "rgba.png"))).tolist() == [[[200, 100, 50], [0, 0, 0]]]
    image = Image.new("LA", (2, 1), (200, 255))
    image.putpixel((1, 0), (255, 0))
    assert grey(load_image(save(image, tmp_path / "la.png"))).tolist() == [[200, 0]]
    image = Image.new("P", (2, 1), 1)
    image.putpalette([255, 255, 255, 10, 20, 30])
    image.putpixel((1, 0), 0)
    path = save(image, tmp_path / "p.png", transparency=0)
    assert pixels(load_image(path)).tolist() == [[[10, 20, 30], [0, 0, 0]]]
    path = save(Image.fromarray(np.array([[255, 7]], np.uint8)), tmp_path / "trns.png", transparency=255)
    assert grey(load_image(path)).tolist() == [[0, 7]]


def test_an_alpha_channel_that_hides_everything_is_dropped(tmp_path):
    path = save(Image.new("RGBA", (3, 3), (9, 8, 7, 0)), tmp_path / "hidden.png")
    assert (pixels(load_image(path)) == [9, 8, 7]).all()


def test_palette_cmyk_and_one_bit_images_keep_their_colours(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 250, 120, 60])
    assert (pixels(load_image(save(image, tmp_path / "p.gif"))) == [250, 120, 60]).all()
    bits = Image.new("1", (9, 3))
    bits.putpixel((8, 2), 1)
    shown = grey(load_image(save(bits, tmp_path / "bits.png")))
    assert shown[2, 8] == 255 and shown.sum() == 255
    for suffix in (".jpg", ".tif"):
        shown = pixels(load_image(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / f"cmyk{suffix}")))
        assert shown[..., 0].min() > 200 and shown[..., 1:].max() < 60  # red


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exif_orientation_is_applied_once(tmp_path, suffix):
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 20, 20))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    shown = grey(load_image(save(image, tmp_path / f"turned{suffix}", exif=exif)))
    assert shown.shape == (40, 20)
    assert shown[:16].min() > 200 and shown[24:].max() < 55


def test_exif_orientation_is_applied_to_16_bit_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    path = save(Image.fromarray(np.array([[0, 100, 5000]], np.uint16)), tmp_path / "deep.png", exif=exif)
    assert grey(load_image(path)).tolist() == [[255, 5, 0]]


def test_metadata_of_the_file_is_not_carried_on(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "NAME-OF-PATIENT"
    path = save(Image.new("RGB", (4, 4)), tmp_path / "named.jpg", exif=exif, comment="NAME-OF-PATIENT")
    assert b"NAME-OF-PATIENT" in path.read_bytes()
    image = load_image(path)
    copy = io.BytesIO()
    image.save(copy, "JPEG", exif=image.getexif())
    assert image.info == {} and b"NAME-OF-PATIENT" not in copy.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (4, 3840), (3840, 4)])
def test_tiny_and_thin_images_load(tmp_path, size):
    for name, image in (
        ("l.png", Image.new("L", size)),
        ("deep.png", Image.fromarray(np.ones(size[::-1], np.uint16))),
    ):
        assert load_image(save(image, tmp_path / name)).size == size


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("L", (4, 4), tone) for tone in (10, 200)]
    for suffix in (".gif", ".tif", ".png", ".webp"):
        path = save(frames[0], tmp_path / f"two{suffix}", save_all=True, append_images=frames[1:])
        assert abs(int(grey(load_image(path))[0, 0]) - 10) <= 1


def test_huge_declared_sizes_are_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(8193, 8192))
    with pytest.raises(ImageError, match=r"bomb\.png: declares 8193 x 8192 pixels, expected at most 67,108,864"):
        load_image(path)
    path.write_bytes(png_of_size(2_000_000, 2_000_000))
    with pytest.raises(ImageError, match=r"bomb\.png: declares more pixels than can be decoded safely"):
        load_image(path)


def test_the_pixel_limit_can_be_chosen(tmp_path):
    path = save(Image.new("L", (10, 10)), tmp_path / "a.png")
    assert load_image(path, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="10 x 10 pixels, expected at most 99"):
        load_image(path, max_pixels=99)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp", ".gif"])
def test_truncated_files_are_refused_by_name(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = save(Image.fromarray(noise), tmp_path / f"whole{suffix}").read_bytes()
    for share in (0.02, 0.5):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(content[: max(int(len(content) * share), 12)])
        with pytest.raises(ImageError, match=rf"cut\{suffix}: ") as caught:
            load_image(path)
        assert "expected" in str(caught.value)


@pytest.mark.filterwarnings("ignore:::PIL")  # Pillow warns of damaged tags and of large declared sizes
def test_flipped_bytes_raise_nothing_but_image_errors(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp", ".gif"):
        content = save(Image.fromarray(RAMP), tmp_path / f"whole{suffix}").read_bytes()
        for _ in range(40):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 5):
                damaged[place] = rng.integers(0, 256)
            try:
                assert load_image(bytes(damaged)).mode == "RGB"
            except ImageError as error:
                assert str(error).startswith("image given as bytes: ")


DICOM = bytes(128) + b"DICM" + b"PatientName=DOE^JANE"
NIFTI = struct.pack("<i", 348) + bytes(340) + b"n+1\x00" + bytes(100)
NIFTI_2 = struct.pack("<i", 540) + b"n+2\x00\r\n\x1a\n" + bytes(540)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.png", b"", r"the file is empty \(0 bytes\)"),
        ("a.png", b"\n<!DOCTYPE html><title>404</title>", "an HTML page, so the download failed"),
        ("a.svg", b'<?xml version="1.0"?><svg/>', "an XML or SVG file"),
        ("a.png", b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        ("a.pdf", b"%PDF-1.7", "a PDF file"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "an unknown kind of file"),
        ("a.jpg", b"no image at all", "an unknown kind of file"),
        ("a.dcm", DICOM, "a DICOM object without pixels"),
        ("a", DICOM, "a DICOM object without pixels"),
        ("a.dcm", b"\x08\x00\x05\x00" + bytes(200), "a DICOM object without pixels"),
        ("a.dcm", b"<html>", "an HTML page, so the download failed"),
        ("a.nii", NIFTI, "the NIfTI header is damaged"),
        ("a.nii", NIFTI_2, "the NIfTI header is damaged"),
        ("a.gz", gzip.compress(NIFTI), "the NIfTI header is damaged"),
        ("a.gz", gzip.compress(b"text"), "a gzip archive"),
        ("a.nii.gz", gzip.compress(b"text"), "a gzip archive"),
        ("a.nii", b"\x00" * 40, "the NIfTI header is damaged"),
    ],
)
def test_files_that_are_no_image_are_named_for_what_they_are(tmp_path, name, content, found):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=found) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "; expected " in str(caught.value)
    assert "JANE" not in str(caught.value)


def test_a_dicom_file_that_begins_like_a_tiff_is_still_dicom(tmp_path):
    content = save(Image.fromarray(RAMP), tmp_path / "a.tif").read_bytes()
    path = tmp_path / "dual.dcm"
    path.write_bytes(content[:128].ljust(128, b"\x00") + b"DICM" + content[132:])
    with pytest.raises(ImageError, match="a DICOM object without pixels"):
        load_image(path)


def test_missing_files_and_folders_are_named(tmp_path):
    for path, found in (
        (tmp_path / "none.png", "no such file"),
        (tmp_path, "a folder"),
        ("a\x00b.png", "no such file"),
    ):
        with pytest.raises(ImageError, match=found):
            load_image(path)
    assert issubclass(ImageError, PeFoMedError)


def test_an_image_inside_a_parquet_file_is_read_by_its_row(tmp_path):
    rows = [save(Image.new("L", (4, 4), tone), tmp_path / f"{tone}.png").read_bytes() for tone in (10, 20, 30)]
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c"], "image": [{"bytes": row, "path": None} for row in rows]}), path)
    assert [grey(load_image(f"{path}#{row}"))[0, 0] for row in range(3)] == [10, 20, 30]
    assert not burned_in_risk(f"{path}#0")
    with pytest.raises(ImageError, match=r"data\.parquet#3: the file has 3 rows, counted from 0"):
        load_image(f"{path}#3")
    with pytest.raises(ImageError, match=r"none\.parquet: no such file"):
        load_image(tmp_path / "none.parquet#0")
    pq.write_table(pa.table({"image": [{"bytes": b"<html>", "path": None}]}), path)
    with pytest.raises(ImageError, match=r"data\.parquet#0: an HTML page, so the download failed"):
        load_image(f"{path}#0")


@pytest.mark.parametrize("option", [{"frame": 0}, {"plane": "axial"}, {"slice_index": 0}, {"window": "lung"}])
def test_choices_within_a_scan_are_refused_for_plain_images(tmp_path, option):
    path = save(Image.new("L", (4, 4)), tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: only .* files have a \w+ to choose; leave it out for this one"):
        load_image(path, **option)

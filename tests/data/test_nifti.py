# SPDX-License-Identifier: Apache-2.0
"""NIfTI volumes are cut and turned as radiologists see them, whatever way they are stored, or refused by name."""

from __future__ import annotations

import gzip
import io
import itertools
import logging
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from pefomed_recipes.data.images import ImageError, load_image
from pefomed_recipes.errors import ConfigError

FILES = Path(nibabel.__file__).parent / "tests" / "data"

# The head of a patient in voxels that run to the right, to anterior and to superior, 10 x 12 x 14 of them.
RIGHT, ANTERIOR, SUPERIOR = 8, 10, 12
HEAD = np.full((10, 12, 14), 100, np.int16)
HEAD[RIGHT, ANTERIOR, SUPERIOR] = 900  # a lesion: on the right, in front, above


def stored(volume: np.ndarray, affine: np.ndarray | None = None, *, gz: bool = False, **fields: Any) -> bytes:
    """A NIfTI-1 file. Without an affine, voxels of 1 mm that run to the right, to anterior and to superior."""
    image = nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine)
    image.header.set_data_dtype(volume.dtype)
    for field, value in fields.items():
        image.header[field] = value
    content = image.to_bytes()
    return gzip.compress(content) if gz else content


def grey(source: Any, **options: Any) -> np.ndarray:
    image = load_image(source, **options)
    red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
    assert image.mode == "RGB" and (red == green).all() and (green == blue).all()
    return red.astype(int)


def brightest(picture: np.ndarray) -> tuple[int, int]:
    """(column, row) of the one brightest pixel."""
    assert np.count_nonzero(picture == picture.max()) == 1
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    return int(column), int(row)


ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def test_ras_and_las_twins_have_the_lesion_on_opposite_sides_of_the_array_and_the_same_of_the_picture() -> None:
    ras = nibabel.Nifti1Image(HEAD, np.eye(4))
    las = ras.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    assert nibabel.aff2axcodes(las.affine) == ("L", "A", "S")
    sides = [np.asarray(image.dataobj).argmax() // (12 * 14) / 9 for image in (ras, las)]
    assert sides[0] > 0.8 and sides[1] < 0.2
    for image in (ras, las):
        column, row = brightest(grey(image.to_bytes(), slice_index=SUPERIOR))
        assert (column, row) == (9 - RIGHT, 11 - ANTERIOR)  # the patient's right on the left, anterior above


@pytest.mark.parametrize(
    ("plane", "index", "size", "place"),
    [
        ("axial", SUPERIOR, (10, 12), (9 - RIGHT, 11 - ANTERIOR)),
        ("coronal", ANTERIOR, (10, 14), (9 - RIGHT, 13 - SUPERIOR)),
        ("sagittal", RIGHT, (12, 14), (11 - ANTERIOR, 13 - SUPERIOR)),
    ],
)
def test_all_48_ways_to_store_a_volume_give_one_picture(
    plane: str, index: int, size: tuple[int, int], place: tuple[int, int]
) -> None:
    image = nibabel.Nifti1Image(HEAD, np.eye(4))
    expected = grey(image.to_bytes(), plane=plane, slice_index=index)
    assert expected.shape[::-1] == size and brightest(expected) == place
    assert len(ORIENTATIONS) == 48
    for orientation in ORIENTATIONS:
        turned = image.as_reoriented(orientation).to_bytes()
        assert (grey(turned, plane=plane, slice_index=index) == expected).all()


@pytest.mark.parametrize("name", ["example4d.nii.gz", "anatomical.nii", "example_nifti2.nii.gz", "standard.nii.gz"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_real_volumes_are_shown_as_nibabels_canonical_ones(name: str, plane: str) -> None:
    image = nibabel.as_closest_canonical(nibabel.load(FILES / name))
    volume, mm = np.asarray(image.dataobj), image.header.get_zooms()[:3]
    volume = volume[..., 0] if volume.ndim == 4 else volume
    axis = ("sagittal", "coronal", "axial").index(plane)
    cut = np.take(volume, volume.shape[axis] // 2, axis)[::-1, ::-1].T.astype(float)
    wide, high = (length for at, length in enumerate(mm) if at != axis)
    shown = grey(FILES / name, plane=plane, window="full")
    expected = Image.fromarray(np.rint((cut - cut.min()) / np.ptp(cut) * 255).astype(np.uint8))
    scale = min(wide, high)
    expected = expected.resize(
        (round(cut.shape[1] * wide / scale), round(cut.shape[0] * high / scale)), Image.Resampling.BILINEAR
    )
    assert shown.shape == expected.size[::-1]
    assert np.abs(shown - np.asarray(expected)).max() <= 1


def test_the_middle_axial_slice_is_shown_unless_another_is_chosen() -> None:
    volume = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    for plane, middle, count in (("axial", 3, 7), ("coronal", 3, 6), ("sagittal", 2, 5)):
        # Tones are spread over each slice, so a window that holds all shows which one it is.
        whole = {"plane": plane, "window": "104.5/209"}
        assert (grey(stored(volume), **whole) == grey(stored(volume), **whole, slice_index=middle)).all()
        assert len({grey(stored(volume), **whole, slice_index=number).sum() for number in range(count)}) == count
        for number in (-1, count):
            with pytest.raises(ImageError, match=f"no {plane} slice {number}; there are {count}, counted from 0"):
                load_image(stored(volume), plane=plane, slice_index=number)
    assert (grey(stored(volume)) == grey(stored(volume), plane="axial", slice_index=3)).all()
    with pytest.raises(
        ConfigError, match=r"Unknown plane 'axal' \(did you mean axial\?\); expected sagittal, coronal"
    ):
        load_image(stored(volume), plane="axal")
    with pytest.raises(ConfigError, match="Unknown window"):
        load_image(stored(volume), window="liver")
    with pytest.raises(ImageError, match="only DICOM files have a frame to choose"):
        load_image(stored(volume), frame=1)


@pytest.mark.parametrize("gz", [False, True])
def test_of_several_volumes_the_first_is_shown(tmp_path: Path, gz: bool) -> None:
    series = np.stack([HEAD, HEAD[::-1], HEAD], axis=-1)
    path = tmp_path / "series"  # known by its content
    path.write_bytes(stored(series, gz=gz))
    expected = grey(stored(HEAD), slice_index=SUPERIOR)
    assert (grey(path, slice_index=SUPERIOR) == expected).all()
    assert (grey(path.read_bytes(), slice_index=SUPERIOR) == expected).all()


def test_pixels_are_made_square() -> None:
    thick = stored(HEAD, np.diag([0.5, 0.5, 2.0, 1]))
    assert load_image(thick).size == (10, 12)
    assert load_image(thick, plane="coronal").size == (10, 56)
    assert load_image(thick, plane="sagittal").size == (12, 56)
    with pytest.raises(ImageError, match="coronal slices have 10 x 56 square pixels, expected at most 559"):
        load_image(thick, plane="coronal", max_pixels=559)
    with pytest.raises(ImageError, match="square pixels, expected at most 67,108,864; resample the volume"):
        load_image(stored(HEAD, np.diag([1e-6, 1, 1, 1])))


@pytest.mark.parametrize("kind", ["i2", ">i2", "u1", "i4", "f4", ">f8"])
def test_every_kind_of_number_is_scaled_as_the_header_says(kind: str) -> None:
    volume = np.arange(64, dtype=kind).reshape(4, 4, 4)
    content = stored(volume, scl_slope=10, scl_inter=-300)
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(content))
    assert header.get_slope_inter() == (10, -300)
    shown = grey(content, slice_index=0, window="0/300")
    expected = np.clip((volume[::-1, ::-1, 0].T.astype(float) * 10 - 300) / 300 + 0.5, 0, 1) * 255
    assert np.abs(shown - expected).max() <= 0.51
    assert np.ptp(shown) > 200


def test_presets_take_the_values_as_hounsfield_units() -> None:
    volume = np.linspace(-1500, 500, 64, dtype=np.float32).reshape(4, 4, 4)
    shown = grey(stored(volume), slice_index=2, window="lung")
    expected = np.clip((volume[::-1, ::-1, 2].T + 600) / 1500 + 0.5, 0, 1) * 255
    assert np.abs(shown - expected).max() <= 0.51


def test_nan_becomes_black_and_a_slice_of_nothing_else_is_refused() -> None:
    volume = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    volume[:, :, 1] = np.nan
    volume[0, 0, 0] = np.nan
    assert grey(stored(volume), slice_index=0)[3, 3] == 0
    for window in (None, "full"):
        with pytest.raises(ImageError, match="the slice has no finite value"):
            load_image(stored(volume), slice_index=1, window=window)


def test_a_single_slice_is_a_volume_of_one() -> None:
    flat = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert (grey(stored(flat)) == grey(stored(flat[:, :, None]))).all()
    assert load_image(stored(flat)).size == (4, 5)


def test_a_header_without_orientation_is_warned_of_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(stored(HEAD))
    codes, first_row = 252, 280  # where qform_code with sform_code and srow_x are
    (tmp_path / "lost.nii").write_bytes(content[:codes] + bytes(4) + content[codes + 4 :])
    load_image(tmp_path / "lost.nii")
    assert "lost.nii: the header tells no orientation; left and right of the picture are a guess" in caplog.text
    caplog.clear()
    load_image(stored(HEAD))
    assert caplog.text == ""
    for value in (0, np.nan):
        struct.pack_into("<f", content, first_row, value)
        with pytest.raises(ImageError, match="the NIfTI header's orientation cannot be used"):
            load_image(bytes(content))


def test_what_is_no_volume_of_single_numbers_is_refused() -> None:
    colour = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for volume in (colour, np.zeros((3, 3, 3), np.complex64)):
        with pytest.raises(ImageError, match="colours or complex numbers; expected one number a voxel"):
            load_image(stored(volume))
    with pytest.raises(ImageError, match="CIFTI, which has no volume"):
        load_image(FILES / "row_major.dconn.nii")
    for name in ("nifti1.hdr", "nifti2.hdr"):
        with pytest.raises(ImageError, match="a NIfTI header whose voxels lie in another file; join both"):
            load_image(FILES / name)


def test_sizes_are_limited_before_anything_is_read() -> None:
    head = stored(HEAD)[:352]
    huge = nibabel.Nifti1Header.from_fileobj(io.BytesIO(head))
    huge.set_data_shape((30_000, 30_000, 30_000))
    for content in (huge.binaryblock + bytes(100), gzip.compress(huge.binaryblock + bytes(100))):
        with pytest.raises(ImageError, match="declares 30000 x 30000 x 30000 voxels .* at most 268,435,456"):
            load_image(content)
    huge.set_data_shape((4, 4, 4))
    huge["vox_offset"] = 1e9
    with pytest.raises(ImageError, match="from byte 1,000,000,000, expected at most .* from byte 16,777,216"):
        load_image(huge.binaryblock + bytes(100))
    with pytest.raises(ImageError, match=r"a NIfTI header with the shape \(0, 12, 14\); expected a volume"):
        load_image(head[:42] + b"\x00\x00" + head[44:] + bytes(9000))


def test_a_gzip_bomb_is_inflated_no_further_than_the_volume_needs() -> None:
    bomb = gzip.compress(stored(HEAD) + bytes(100_000_000), compresslevel=1)
    assert len(bomb) < 1_000_000
    expected = grey(stored(HEAD))
    tracemalloc.start()
    shown = grey(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (shown == expected).all()
    assert peak < 5_000_000


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("length", [100, 347, 360, 2000])
def test_truncated_files_are_refused(tmp_path: Path, gz: bool, length: int) -> None:
    noise = np.random.default_rng(0).integers(0, 1000, (10, 12, 14)).astype(np.int16)
    content = stored(noise, gz=gz)
    name = "cut.nii.gz" if gz else "cut.nii"
    (tmp_path / name).write_bytes(content[: min(length, len(content) - 500)])
    for source, named in ((tmp_path / name, name), ((tmp_path / name).read_bytes(), "image given as bytes")):
        with pytest.raises(ImageError, match=rf"{named}: .*; expected"):
            load_image(source)


def test_damaged_headers_raise_nothing_but_image_errors(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    content = stored(HEAD[:4, :4, :4])
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, 348, 4):
            damaged[place] = rng.integers(0, 256)
        try:
            assert load_image(bytes(damaged), max_pixels=10_000).mode == "RGB"
        except ImageError as error:
            assert str(error).startswith("image given as bytes: ")
    assert [record for record in caplog.records if record.name.startswith("nibabel")] == []  # it tells what it mends


def test_no_text_of_the_header_reaches_a_picture_a_log_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    image = nibabel.Nifti1Image(HEAD, np.eye(4))
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        image.header[field] = b"PLANTED"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"PLANTED PATIENT"))
    content = image.to_bytes()
    assert content.count(b"PLANTED") == 5
    shown, copy = load_image(content), io.BytesIO()
    shown.save(copy, "PNG")
    assert shown.info == {} and b"PLANTED" not in copy.getvalue()
    assert (np.asarray(shown) == np.asarray(load_image(stored(HEAD)))).all()
    for broken in (
        content[:500],
        content[:40] + b"\xff" * 16 + content[56:],
        content.replace(b"\x04\x00", b"\x00\x00"),
    ):
        with pytest.raises(ImageError) as caught:
            load_image(broken)
        assert "PLANTED" not in str(caught.value)
    assert "PLANTED" not in caplog.text


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(stored(HEAD, gz=True))
    monkeypatch.delitem(sys.modules, "pefomed_recipes.data.nifti", raising=False)
    for module in [name for name in sys.modules if name.partition(".")[0] == "nibabel"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImageError, match=r"scan\.nii\.gz: a NIfTI file, .*: pip install 'pefomed\[nifti\]'"):
        load_image(tmp_path / "scan.nii.gz")

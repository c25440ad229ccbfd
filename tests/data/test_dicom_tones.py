# SPDX-License-Identifier: Apache-2.0
"""Grey DICOM images have the tones that a workstation gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pefomed_recipes.data.images import ImageError, load_image
from pefomed_recipes.errors import ConfigError

from .fixtures.dicom_files import FILES, RAMP, ct, dicom_of, encoded, grey, table


@pytest.mark.parametrize("window", [None, (1600, 900)])
def test_a_monochrome1_image_looks_like_its_monochrome2_twin(window: tuple[int, int] | None) -> None:
    tags = {"BitsStored": 12, "HighBit": 11}
    if window:
        tags |= {"WindowCenter": window[0], "WindowWidth": window[1]}
    normal = grey(dicom_of(RAMP, **tags))
    if window:
        tags |= {"WindowCenter": 4095 - window[0]}
    for inverted in ({"PhotometricInterpretation": "MONOCHROME1"}, {"PresentationLUTShape": "INVERSE"}):
        assert np.abs(normal - grey(dicom_of(4095 - RAMP, **tags, **inverted))).max() <= 1
    assert normal[0, 0] == 0 and normal[-1, -1] == 255


def test_a_real_monochrome1_radiograph_looks_like_its_twin() -> None:
    path = FILES / "dicomdirtests" / "77654033" / "CR1" / "6154"
    data = pydicom.dcmread(path)
    assert data.PhotometricInterpretation == "MONOCHROME1" and data.BitsStored == 12
    turned = 4095 - data.pixel_array
    units = 4095 * float(data.RescaleSlope) + 2 * float(data.RescaleIntercept)
    data.PixelData = turned.astype("<u2").tobytes()
    data.PhotometricInterpretation = "MONOCHROME2"
    data.WindowCenter = units - float(data.WindowCenter)
    shown = grey(path)
    assert np.ptp(shown) > 30
    assert np.abs(shown - grey(data)).max() <= 1


def tone(picture: np.ndarray, units: int) -> int:
    return int(picture.ravel()[units + 1024])


def test_the_first_of_several_windows_is_applied_in_the_files_units() -> None:
    shown = grey(ct(WindowCenter=[40, -600], WindowWidth=[400, 1500]))
    assert [tone(shown, units) for units in (-1024, -161, 240, 3000)] == [0, 0, 255, 255]
    assert abs(tone(shown, 40) - 128) <= 1
    assert 0 < tone(shown, -150) < tone(shown, 0) < tone(shown, 230) < 255


@pytest.mark.parametrize(
    ("window", "center", "width"),
    [
        ("brain", 40, 80),
        ("lung", -600, 1500),
        ("bone", 400, 1800),
        ("soft", 40, 400),
        ("-50/350", -50, 350),
        ("full", 1023.5, 4095),
    ],
)
def test_a_window_that_is_asked_for_takes_the_place_of_the_files(window: str, center: float, width: float) -> None:
    shown = grey(ct(WindowCenter=1000, WindowWidth=10), window=window)
    expected = np.clip((RAMP - 1024.0 - center) / width + 0.5, 0, 1) * 255
    assert np.abs(shown - expected).max() <= 0.51


def test_only_the_full_range_shows_a_bright_lesion_of_few_pixels_brighter_than_the_rest() -> None:
    values = (RAMP // 64).astype(np.int16)
    values[5, 5:8] = 3000
    assert grey(dicom_of(values))[5, 5] - grey(dicom_of(values)).max(axis=1)[-1] < 3
    shown = grey(dicom_of(values), window="full")
    assert shown[5, 5] == 255 and shown[-1].max() < 10


def test_windows_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"Unknown window 'lungs' \(did you mean lung\?\); expected brain, lung, bone"
    ):
        load_image(encoded(ct()), window="lungs")
    for window in ("40/0", "40/-1", "nan/400", "40", "/"):
        with pytest.raises(ConfigError, match="CENTER/WIDTH with a width above 0, such as 40/400"):
            load_image(encoded(ct()), window=window)
    with pytest.raises(ImageError, match="the window lung is in Hounsfield units, which only CT has"):
        load_image(FILES / "MR_small.dcm", window="lung")
    with pytest.raises(ImageError, match="a window is for grey images, and this one is in colour"):
        load_image(FILES / "examples_rgb_color.dcm", window="full")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", lambda x: (x - 2047.5) / 999 + 0.5),
        ("LINEAR_EXACT", lambda x: (x - 2048) / 1000 + 0.5),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 2048) / 1000))),
    ],
)
def test_window_functions_follow_the_standard(function: str, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    shown = grey(dicom_of(RAMP, WindowCenter=2048, WindowWidth=1000, VOILUTFunction=function))
    assert np.abs(shown - 255 * np.clip(expected(RAMP.astype(float)), 0, 1)).max() <= 0.51


def test_a_window_without_width_gives_way_to_percentiles() -> None:
    plain = grey(dicom_of(RAMP))
    assert abs(plain.mean() - 127.5) < 1 and plain.min() == 0 and plain.max() == 255
    assert (grey(dicom_of(RAMP, WindowCenter=40, WindowWidth=0)) == plain).all()
    assert (grey(dicom_of(RAMP, WindowCenter=None, WindowWidth=None)) == plain).all()


@pytest.mark.parametrize(
    "form",
    [
        {"VR": "US"},
        {"VR": "US", "first": 65534},
        {"VR": "OW", "data": np.array([0, 0, 4095, 4095], "<u2").tobytes()},
        {"VR": "OW", "data": np.array([0, 0, 4095, 4095], ">u2").tobytes()},
    ],
)
def test_a_voi_table_goes_before_the_window(form: dict[str, Any]) -> None:
    pixels = np.array([[-5, -2, -1], [0, 1, 9]], np.int16)
    syntax = ExplicitVRBigEndian if form.get("data", b"").endswith(b"\x0f\xff") else ExplicitVRLittleEndian
    lut = table([0, 0, 4095, 4095], bits=12, **{"first": -2} | form)
    shown = grey(dicom_of(pixels, syntax, VOILUTSequence=[lut], WindowCenter=7, WindowWidth=2))
    assert shown.tolist() == [[0, 0, 0], [255, 255, 255]]


def test_a_modality_table_comes_before_everything() -> None:
    lut = table([500, 400, 300, 200, 100, 0], first=10, bits=16)
    pixels = np.array([[9, 10, 11], [12, 14, 99]], np.uint16)
    shown = grey(dicom_of(pixels, ModalityLUTSequence=[lut], WindowCenter=250, WindowWidth=500))
    assert (np.abs(shown - np.array([[255, 255, 204], [153, 51, 0]])) <= 1).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [-2000, 63536])
def test_padding_is_black_and_does_not_count(photometric: str, padding: int) -> None:
    inside = (RAMP[:32].astype(np.int16) - 1024).reshape(32, 64)
    framed = np.full((64, 64), -2000, np.int16)
    framed[16:48] = inside
    data = dicom_of(framed, PhotometricInterpretation=photometric)
    data.add_new(0x00280120, "US" if padding > 0 else "SS", padding)
    shown = grey(data)
    assert (shown[:16] == 0).all() and (shown[48:] == 0).all()
    assert (shown[16:48] == grey(dicom_of(inside, PhotometricInterpretation=photometric))).all()
    data.add_new(0x00280121, "SS", 3000)  # the range ends there
    with pytest.raises(ImageError, match=r"no pixel of the frame shows anything \(all padding\)"):
        load_image(encoded(data))


def test_padding_of_a_real_head_ct_is_black() -> None:
    assert pydicom.dcmread(FILES / "693_J2KI.dcm").PixelPaddingValue == -2000
    shown = grey(FILES / "693_J2KI.dcm")
    assert [shown[0, 0], shown[0, -1], shown[-1, 0], shown[-1, -1]] == [0] * 4
    assert shown.max() == 255


def test_one_slice_looks_the_same_in_every_transfer_syntax() -> None:
    first = grey(FILES / "MR_small.dcm")
    assert np.ptp(first) > 200
    for coding in "RLE bigendian expb implicit jp2klossless jpeg_ls_lossless padded".split():
        assert (grey(FILES / f"MR_small_{coding}.dcm") == first).all()


def test_signed_and_big_endian_16_bit_numbers_keep_their_order() -> None:
    signed = RAMP.astype(np.int16) - 2048
    for syntax in (
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
    ):
        shown = grey(dicom_of(signed, syntax, BitsStored=12, HighBit=11))
        assert shown[0, 0] == 0 and shown[-1, -1] == 255
        assert (np.diff(shown.ravel()) >= 0).all()


def test_floats_are_rescaled() -> None:
    data = dicom_of(None, Rows=64, Columns=64, SamplesPerPixel=1, BitsAllocated=32)
    data.PhotometricInterpretation = "MONOCHROME2"
    data.FloatPixelData = (RAMP / 4096 - 0.5).astype("<f4").tobytes()
    assert np.abs(grey(data) - grey(dicom_of(RAMP))).max() <= 1


def test_8_bit_tones_are_kept_and_1_bit_ones_are_black_and_white() -> None:
    tones = np.linspace(30, 90, 64).astype(np.uint8).reshape(8, 8)
    assert (grey(dicom_of(tones)) == tones).all()
    assert (grey(dicom_of(tones, PhotometricInterpretation="MONOCHROME1")) == 255 - tones).all()
    assert np.ptp(grey(dicom_of(tones, RescaleSlope=0.01, RescaleIntercept=0))) == 255  # units, no tones
    bits = np.arange(64).reshape(8, 8) % 3 == 0
    data = dicom_of(bits.astype(np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0)
    data.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    assert (grey(data) == 255 * bits).all()

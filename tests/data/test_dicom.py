# SPDX-License-Identifier: Apache-2.0
"""DICOM files are shown whatever their coding, or refused for what they are."""

from __future__ import annotations

import io
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from pefomed_recipes.data import dicom
from pefomed_recipes.data.images import ImageError, burned_in_risk, load_image

from .fixtures.dicom_files import FILES, RAMP, colours, ct, dicom_of, encoded, grey

# Damaged on purpose.
UNREADABLE = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "the compressed pixels declare",
    "MR_truncated.dcm": "the pixels are truncated",
    "meta_missing_tsyntax.dcm": "the DICOM header has no size",
    "nested_priv_SQ.dcm": "the DICOM header has no size",
}


def image_files() -> list[Path]:
    """All files of pydicom's own set whose outermost data set has pixels."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(FILES.rglob("*")):
            if path.is_file() and path.suffix != ".py":
                tags = pydicom.dcmread(path, force=True)
                if any(keyword in tags for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
                    found.append(path)
    return found


def outcomes(paths: list[Path]) -> tuple[list[str], dict[str, str]]:
    """The names of those that are shown, and the errors of the others."""
    shown, errors = [], {}
    for path in paths:
        try:
            picture = load_image(path)
            assert picture.mode == "RGB" and picture.width > 1 and not picture.info
            shown.append(path.name)
        except ImageError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            errors[path.name] = str(error)
    return shown, errors


def test_of_pydicoms_95_pixel_files_90_decode_and_every_other_raises_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = image_files()
    assert len(paths) == 95
    shown, errors = outcomes(paths)
    assert len(shown) == 82
    assert all(expected in errors.pop(name) for name, expected in UNREADABLE.items())
    kinds = [text.partition("of the class ")[2].partition(";")[0] for text in errors.values()]
    assert sorted(kinds) == ["RT Dose Storage"] * 7 + ["Segmentation Storage"] * 2
    # These 9 are refused for what they are: as many of them decode as can.
    monkeypatch.setattr(dicom, "_NOT_IMAGES", ())
    shown, others = outcomes([path for path in paths if path.name in errors])
    assert len(shown) == 8
    assert list(others) == ["badVR.dcm"] and "NumberOfFrames is no number" in others["badVR.dcm"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("liver_1frame.dcm", "Segmentation Storage"),
        ("rtdose.dcm", "RT Dose Storage"),
        ("rtplan.dcm", "RT Plan Storage"),
        ("rtstruct.dcm", "RT Structure Set Storage"),
        ("test-SR.dcm", "Comprehensive SR Storage"),
        ("reportsi.dcm", "Basic Text SR Storage"),
        ("waveform_ecg.dcm", "12-lead ECG Waveform Storage"),
        ("dicomdirtests/DICOMDIR", "Media Storage Directory Storage"),
    ],
)
def test_what_is_no_image_is_refused_by_the_name_of_its_class(name: str, kind: str) -> None:
    with pytest.raises(ImageError, match=f"a DICOM object of the class {kind}; expected an image"):
        load_image(FILES / name)


def test_objects_without_pixels_are_refused_and_unknown_classes_not_repeated() -> None:
    with pytest.raises(ImageError, match="a DICOM object of the class Encapsulated PDF Storage"):
        load_image(encoded(dicom_of(None, SOPClassUID=EncapsulatedPDFStorage)))
    with pytest.raises(ImageError, match=r"a DICOM object without pixels \(CT Image Storage\)"):
        load_image(encoded(dicom_of(None)))
    with pytest.raises(ImageError, match="a DICOM object without pixels; expected an image"):
        load_image(encoded(dicom_of(None, SOPClassUID="1.2.19560412.7")))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("scale", [1, 200, 256, 257])
def test_palettes_give_their_colours(syntax: str, scale: int) -> None:
    palette = np.array([[10, 20, 30], [250, 120, 60], [0, 0, 255]], np.uint16) * scale
    data = dicom_of(np.array([[4, 5], [6, 7]], np.uint8), syntax, PhotometricInterpretation="PALETTE COLOR")
    for name, entries in zip(("Red", "Green", "Blue"), palette.T, strict=True):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [3, 4, 16])
        content = entries.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
        setattr(data, f"{name}PaletteColorLookupTableData", content)
    expected = palette >> (0 if scale == 1 else 8)
    assert (colours(data).reshape(-1, 3) == expected[[0, 1, 2, 2]]).all()


def test_a_real_palette_image_has_the_colours_that_pydicom_gives_it() -> None:
    data = pydicom.dcmread(FILES / "examples_palette.dcm")
    expected = pydicom.pixels.apply_color_lut(data.pixel_array, data)
    assert (colours(FILES / "examples_palette.dcm") == expected >> (8 if expected.dtype == np.uint16 else 0)).all()


@pytest.mark.parametrize(
    "name",
    [
        *("SC_ybr_full_422_uncompressed", "SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+n1", "SC_rgb_dcmtk_+eb+cy+np"),
        *("SC_rgb_jpeg_dcmtk", "SC_rgb_jpeg_gdcm", "SC_rgb_jls_lossy_line", "SC_rgb_gdcm_KY", "SC_rgb_rle_16bit"),
        "SC_rgb_rle_32bit",
    ],
)
def test_ycbcr_and_every_coding_show_the_same_colours(name: str) -> None:
    expected, found = colours(FILES / "SC_rgb_rle.dcm"), colours(FILES / f"{name}.dcm")
    rows = slice(5, None, 10)  # the middle of each bar: JPEG blurs the edges
    assert np.abs(expected[rows] - found[rows]).max() <= 8
    assert expected[5, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("SC_rgb_jls_lossy_line.dcm", {"PlanarConfiguration": 1}),
        ("JPEGLSNearLossless_08.dcm", {"BitsAllocated": 16}),
    ],
)
def test_what_compressed_data_says_of_its_numbers_counts(name: str, tags: dict[str, int]) -> None:
    data = pydicom.dcmread(FILES / name)
    for keyword, value in tags.items():
        assert data[keyword].value != value
        setattr(data, keyword, value)
    assert (colours(data) == colours(FILES / name)).all()


def test_12_bit_lossy_jpeg_is_read() -> None:
    shown = grey(FILES / "JPGExtended.dcm")
    assert (shown == grey(FILES / "JPEG-lossy.dcm")).all()
    # The same whole-body scan as in the twin, which JPEG 2000 has blurred.
    assert np.corrcoef(shown.ravel(), grey(FILES / "JPEG2000.dcm").ravel())[0, 1] > 0.9


def test_the_middle_frame_is_shown_unless_one_is_chosen() -> None:
    frames = np.stack([np.full((4, 4), tone, np.uint8) for tone in (10, 20, 30, 40, 50)])
    data = dicom_of(frames)
    assert grey(data)[0, 0] == 30
    assert [grey(data, frame=number)[0, 0] for number in range(5)] == [10, 20, 30, 40, 50]
    for number in (5, -1):
        with pytest.raises(ImageError, match=f"no frame {number}; there are 5, counted from 0"):
            load_image(encoded(data), frame=number)
    assert grey(dicom_of(frames[0]), frame=0)[0, 0] == 10


@pytest.mark.parametrize("tables", ["none", "basic", "extended"])
def test_compressed_frames_are_found_with_and_without_tables(tables: str) -> None:
    coded = []
    for tone in (50, 100, 150):
        stream = io.BytesIO()
        Image.new("L", (16, 8), tone).save(stream, "JPEG")
        coded.append(stream.getvalue())
    data = dicom_of(np.zeros((3, 8, 16), np.uint8), JPEGBaseline8Bit)
    if tables == "extended":
        data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(coded)
    else:
        data.PixelData = encapsulate(coded, has_bot=tables == "basic")
    assert [round(grey(data, frame=number).mean(), -1) for number in range(3)] == [50, 100, 150]
    assert round(grey(data).mean(), -1) == 100


def test_a_frame_has_its_own_units_and_window_else_the_shared_ones() -> None:
    def group(keyword: str, **tags: float) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for name, value in tags.items():
            setattr(inner, name, value)
        setattr(outer, keyword, [inner])
        return outer

    frames = np.stack([RAMP, RAMP])
    own = [group("FrameVOILUTSequence", WindowCenter=center, WindowWidth=400) for center in (40, 1000)]
    shared = group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024)
    data = dicom_of(frames, PerFrameFunctionalGroupsSequence=own, SharedFunctionalGroupsSequence=[shared])
    for number, center in enumerate((40, 1000)):
        alone = ct(WindowCenter=center, WindowWidth=400)
        assert (grey(data, frame=number) == grey(alone)).all()


def test_dicom_is_known_by_content_and_without_a_preamble_by_its_ending(tmp_path: Path) -> None:
    content = encoded(dicom_of(RAMP))
    expected = grey(content)
    for name, part in (("a", content), ("a.png", content), ("a.dcm", content[132:]), ("b.DCM", content[132:])):
        (tmp_path / name).write_bytes(part)
        assert (grey(tmp_path / name) == expected).all()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        bare = encoded(dicom_of(RAMP, syntax))
        start = 144 + struct.unpack_from("<I", bare, 140)[0]
        (tmp_path / "bare.dcm").write_bytes(bare[start:])
        assert (grey(tmp_path / "bare.dcm") == expected).all()
    # A header that names another coding than the data set has, for both ways.
    files = [encoded(dicom_of(RAMP, syntax)) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)]
    starts = [144 + struct.unpack_from("<I", file, 140)[0] for file in files]
    for header, body in ((0, 1), (1, 0)):
        assert (grey(files[header][: starts[header]] + files[body][starts[body] :]) == expected).all()
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "picture.dcm")
    assert (grey(tmp_path / "picture.dcm") == 7).all()


def test_options_of_other_kinds_are_refused() -> None:
    for options in ({"plane": "axial"}, {"slice_index": 3}):
        with pytest.raises(ImageError, match="only NIfTI files have a"):
            load_image(encoded(dicom_of(RAMP)), **options)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "scan.dcm"
    path.write_bytes(encoded(dicom_of(RAMP)))
    for module in ("pefomed_recipes.data.dicom", "pefomed_recipes.data.dicom_tones"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for module in [name for name in sys.modules if name.partition(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, module, None)
    for use in (load_image, burned_in_risk):
        with pytest.raises(ImageError, match=r"scan\.dcm: a DICOM file, .*: pip install 'pefomed\[dicom\]'"):
            use(path)


def test_a_missing_decoder_names_the_extra(run_python: Callable[..., CompletedProcess[str]]) -> None:
    code = """if True:
        import sys
        sys.modules["gdcm"] = None
        from pefomed_recipes.data.images import ImageError, load_image
        try:
            load_image(sys.argv[1])
        except ImageError as error:
            print(error)
    """
    done = run_python("-c", code, FILES / "MR_small_jpeg_ls_lossless.dcm")
    assert "(JPEG-LS Lossless Image Compression) needs a decoder: pip install 'pefomed[dicom]'" in done.stdout

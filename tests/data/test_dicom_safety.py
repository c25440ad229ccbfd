# SPDX-License-Identifier: Apache-2.0
"""No DICOM file takes more memory than it may, ends the process, or lets a tag of a patient surface."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from pefomed_recipes.data import dicom
from pefomed_recipes.data.images import ImageError, burned_in_risk, load_image

from .fixtures.dicom_files import FILES, RAMP, ct, dicom_of, encoded, grey


def test_sizes_are_limited_before_anything_is_decoded() -> None:
    huge = dicom_of(RAMP, Rows=65535, Columns=65535)
    with pytest.raises(ImageError, match="declares 65535 x 65535 pixels, expected at most 67,108,864"):
        load_image(encoded(huge))
    with pytest.raises(ImageError, match=r"declares 1000000 frames of 64 x 64 pixels, expected at most 1,073,741,824"):
        load_image(encoded(dicom_of(RAMP, NumberOfFrames=1_000_000)))
    with pytest.raises(ImageError, match="64 x 64 pixels, expected at most 4,095"):
        load_image(encoded(dicom_of(RAMP)), max_pixels=4095)
    with pytest.raises(ImageError, match="the DICOM header has no size"):
        load_image(encoded(dicom_of(RAMP, Rows=0)))
    with pytest.raises(ImageError, match="the pixels are truncated"):
        load_image(encoded(dicom_of(RAMP, Rows=8000, Columns=8000)))


@pytest.mark.parametrize("coding", ["JPEG", "JPEG2000", "JP2"])
def test_compressed_pixels_may_not_declare_another_size_than_the_header(coding: str) -> None:
    def single(size: int) -> bytes:
        stream = io.BytesIO()
        form = "JPEG" if coding == "JPEG" else "JPEG2000"
        Image.new("L", (size, size), 99).save(stream, form, **{"no_jp2": coding != "JP2"} if form != "JPEG" else {})
        return stream.getvalue()

    syntax = JPEGBaseline8Bit if coding == "JPEG" else JPEG2000Lossless
    data = dicom_of(np.zeros((16, 16), np.uint8), syntax)
    data.PixelData = encapsulate([single(16)])
    assert (np.abs(grey(data) - 99) <= 1).all()
    data.PixelData = encapsulate([single(800)])
    expected = r"declare width, height and channels \(800, 800, 1\), the header \(16, 16, 1\)"
    with pytest.raises(ImageError, match=expected):
        load_image(encoded(data))
    data.PixelData = encapsulate([b"\x00" + single(800)])
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(encoded(data))


def deflated(content: bytes) -> bytes:
    """A file whose data set, after the file header, is this, deflated."""
    whole = encoded(dicom_of(None, DeflatedExplicitVRLittleEndian))
    header = whole[: 144 + struct.unpack_from("<I", whole, 140)[0]]
    squeezer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return header + squeezer.compress(content) + squeezer.flush()


def test_deflated_files_are_inflated_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (grey(dicom_of(RAMP, DeflatedExplicitVRLittleEndian)) == grey(dicom_of(RAMP))).all()
    monkeypatch.setattr(dicom, "MAX_INFLATED_BYTES", 10_000)
    assert (grey(dicom_of(RAMP, DeflatedExplicitVRLittleEndian)) == grey(dicom_of(RAMP))).all()
    bomb = deflated(bytes(10_000_000))
    assert len(bomb) < 20_000
    with pytest.raises(ImageError, match="inflates to 10,000 bytes or more; export it uncompressed"):
        load_image(bomb)
    with pytest.raises(ImageError, match="is truncated"):
        load_image(encoded(dicom_of(RAMP, DeflatedExplicitVRLittleEndian))[:-200])


def test_a_deflated_file_inside_a_deflated_file_is_not_inflated() -> None:
    inner = deflated(bytes(10_000_000))
    with pytest.raises(ImageError, match="without pixels"):
        load_image(deflated(inner[132:]))  # from the inner file header on


def test_damaged_files_raise_nothing_but_image_errors() -> None:
    rng = np.random.default_rng(0)
    small = RAMP[:8, :8]
    window = {"WindowCenter": 40, "WindowWidth": 400, "PixelPaddingValue": 3}
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless):
        data = dicom_of(small, ExplicitVRLittleEndian if syntax == RLELossless else syntax, **window)
        if syntax == RLELossless:
            data.compress(RLELossless)
        content = encoded(data)
        for _ in range(60):
            damaged = bytearray(content[: rng.integers(140, len(content) + 1)])
            for place in rng.integers(132, len(damaged), 4):
                damaged[place] = rng.integers(0, 256)
            try:
                assert load_image(bytes(damaged)).mode == "RGB"
            except ImageError as error:
                assert str(error).startswith("image given as bytes: ")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("JPEGLSNearLossless_08.dcm", {586: 42, 618: 93}),
        ("SC_rgb_jpeg_gdcm.dcm", {1358: 76, 1473: 131, 1485: 186, 1531: 157}),
    ],
)
def test_data_that_ends_the_decoders_process_is_an_error_and_no_more(name: str, damage: dict[int, int]) -> None:
    content = bytearray((FILES / name).read_bytes())
    for place, value in damage.items():
        content[place] = value
    with pytest.raises(ImageError, match=r"the compressed pixels \(JPEG.*\) are damaged; copy the file again"):
        load_image(bytes(content))


def test_numbers_that_are_none_and_unknown_codings_are_named() -> None:
    broken = encoded(dicom_of(RAMP, WindowCenter="41", WindowWidth="400")).replace(b"41", b"XX")
    with pytest.raises(ImageError, match="WindowCenter is no number"):
        load_image(broken)
    video = dicom_of(np.zeros((8, 8), np.uint8), MPEG2MPML)
    video.PixelData = encapsulate([b"\x00\x00\x01\xb3"])
    with pytest.raises(
        ImageError, match=r"the pixels' coding \(MPEG2 .*\) is not read; export the image uncompressed"
    ):
        load_image(encoded(video))
    unknown = encoded(dicom_of(RAMP)).replace(ExplicitVRLittleEndian.encode() + b"\x00", b"9.9.9.9.9.9.9.9.9.9\x00")
    with pytest.raises(ImageError, match="DICOM in an unknown transfer syntax") as caught:
        load_image(unknown)
    assert "9.9" not in str(caught.value)


PLANTED = "PLANTED"


def planted(**tags: Any) -> Dataset:
    """A scan with a patient's name wherever a tag can hold text, valid or not."""
    data = ct(WindowCenter=40, WindowWidth=400, WindowCenterWidthExplanation=f"{PLANTED} 1")
    for keyword in "PatientName PatientID PatientComments AccessionNumber InstitutionName StudyDescription".split():
        setattr(data, keyword, f"{PLANTED}^{keyword}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword in ("PatientBirthDate", "StudyDate", "StudyTime", "PatientAge", "PatientSex", "ImageComments"):
            data.add_new(keyword, pydicom.datadict.dictionary_VR(keyword), f"{PLANTED} no {keyword}")
    data.file_meta.SourceApplicationEntityTitle = PLANTED
    data.preamble = PLANTED.encode().ljust(128)
    data.private_block(0x0041, f"{PLANTED} creator", create=True).add_new(1, "LO", f"{PLANTED} private")
    nested = Dataset()
    nested.PatientName = PLANTED
    data.ReferencedStudySequence = [nested]
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    return data


@pytest.mark.filterwarnings("always")
def test_no_planted_tag_reaches_a_picture_a_log_or_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], recwarn: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "scan.dcm"
    whole = encoded(planted())
    assert whole.count(PLANTED.encode()) > 15
    path.write_bytes(whole)
    assert PLANTED not in str(dicom._read_header(io.BytesIO(whole), "scan")[0])  # such tags are not even read
    image = load_image(path)
    for form in ("PNG", "JPEG", "TIFF"):
        copy = io.BytesIO()
        image.save(copy, form, exif=image.getexif())
        assert PLANTED.encode() not in copy.getvalue()
    assert image.info == {}
    assert not burned_in_risk(path)

    broken = [
        whole[: len(whole) - 3000],
        whole[: whole.index(b"\xe0\x7f\x10\x00")],
        whole.replace(b"MONOCHROME2 ", PLANTED.encode().ljust(12)),
        encoded(planted(Rows=0)),
        encoded(planted(SOPClassUID=EncapsulatedPDFStorage)),
        encoded(planted(WindowCenter=123456)).replace(b"123456", PLANTED.encode()[:6]),
        encoded(planted(RescaleSlope=1234567)).replace(b"1234567", PLANTED.encode()),
        encoded(planted(NumberOfFrames=1234567)).replace(b"1234567", PLANTED.encode()),
    ]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ImageError) as caught:
            load_image(path)
        assert PLANTED[:6] not in str(caught.value)
    printed = capfd.readouterr()
    assert PLANTED[:6] not in printed.out + printed.err + caplog.text
    assert [str(warning.message) for warning in recwarn if PLANTED[:6] in str(warning.message)] == []


@pytest.mark.parametrize(
    ("tags", "risk"),
    [
        ({"BurnedInAnnotation": "YES"}, True),
        ({"BurnedInAnnotation": "NO", "Modality": "US"}, False),
        ({"Modality": "US"}, True),
        ({"Modality": "OT"}, True),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, True),
        ({"Modality": "CT"}, False),
        ({"Modality": "DX", "BurnedInAnnotation": ""}, False),
    ],
)
def test_burned_in_text_is_expected_where_the_file_says_so_or_its_kind_often_has_some(
    tmp_path: Path, tags: dict[str, str], risk: bool
) -> None:
    (tmp_path / "scan").write_bytes(encoded(dicom_of(RAMP, **tags)))
    assert burned_in_risk(tmp_path / "scan") is risk


def test_burned_in_text_is_told_of_dicom_files_only(tmp_path: Path) -> None:
    assert burned_in_risk(FILES / "examples_rgb_color.dcm")  # the name of a hospital stands in this picture
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    assert not burned_in_risk(tmp_path / "a.png")
    with pytest.raises(ImageError, match="no such file"):
        burned_in_risk(tmp_path / "none.dcm")

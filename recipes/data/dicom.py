# SPDX-License-Identifier: Apache-2.0
"""One frame of a DICOM file as a picture. Of the file's tags only those are read that say how pixels are to be shown.

Order: frame; palette or YCbCr to RGB; modality LUT; padding left out; window asked for, else VOI LUT, else the file's
first window, else percentiles; MONOCHROME1 turned round. Overlays (groups 60xx) are not drawn.

Source: DICOM PS3.3, C.7.6.3 (pixels), C.7.9 (palettes); PS3.5, annex A (transfer syntaxes). See also dicom_tones.py.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import struct
import warnings
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from . import gdcm_apart
from .dicom_tones import grey_tones, number_of
from .gdcm_apart import LABEL
from .images import ImageError, checked_index

MAX_VOLUME_PIXELS = 2**30  # over all frames: of a tomosynthesis, some 300 million
MAX_INFLATED_BYTES = 2**28

# What is read; nothing that says who, when or where.
_TAGS = [
    Tag(keyword)
    for keyword in """
    SOPClassUID Modality BurnedInAnnotation
    Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration
    BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData
    RescaleSlope RescaleIntercept ModalityLUTSequence
    WindowCenter WindowWidth VOILUTFunction VOILUTSequence PresentationLUTShape
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
""".split()
]
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # float, double, integer

# By (implicit types, little-endian).
_NATIVE = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
# Words in the standard's names of classes whose pixels, where they have any, are not a picture of a patient.
_NOT_IMAGES = (
    *("Segmentation", "RT Dose", "RT Plan", "RT Ion Plan", "Structure Set", " SR ", "Waveform", "Encapsulated"),
    *("Presentation State", "Key Object", "Registration", "Media Storage Directory", "Raw Data"),
)
# Screens and films that others have written on are stored in these forms.
_WRITTEN_ON_MODALITIES = ("US", "IVUS", "SC", "OT")
_WRITTEN_ON_CLASSES = ("Ultrasound", "Secondary Capture")

_JPEG_SIZES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
_JPEG_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xDA))
_JP2 = b"\x00\x00\x00\x0cjP  "  # a file around JPEG 2000 data, which DICOM does not provide for
# The data's first two markers, length and profile, 8 numbers of the grid, the number of channels.
_JPEG_2000_SIZE = re.compile(rb"\xff\x4f\xff\x51.{4}(.{4})(.{4})(.{4})(.{4}).{16}(.{2})", re.DOTALL)


for _syntax in gdcm_apart.DECODER_DEPENDENCIES:
    with contextlib.suppress(ValueError):  # it was added before
        get_decoder(_syntax).add_plugin(LABEL, (gdcm_apart.__name__, "decode_frame"))


def load_dicom(stream: BinaryIO, name: str, *, frame: int | None, window: str | None, max_pixels: int) -> Image.Image:
    """Return one frame of a DICOM file as RGB.

    Args:
        stream: the file, open for reading bytes.
        name: what errors call it.
        frame: its number, counted from 0; the middle one by default.
        window: see [`pefomed_recipes.data.windows.read_window`].
        max_pixels: largest accepted rows x columns, checked before anything is decoded.

    Raises:
        ImageError: no image, or one that cannot be shown. What decoders raise on damaged data passes through.
    """
    _keep_pydicom_quiet()
    header, syntax, stream = _read_header(stream, name)
    _refuse_other_classes(header, stream, name)
    rows, columns = (int(number_of(header, key, name) or 0) for key in ("Rows", "Columns"))
    frames = int(number_of(header, "NumberOfFrames", name) or 1)
    if min(rows, columns, frames) < 1:
        raise ImageError(
            f"{name}: the DICOM header has no size (Rows, Columns, NumberOfFrames); export the image again"
        )
    if rows * columns > max_pixels:
        raise ImageError(
            f"{name}: declares {columns} x {rows} pixels, expected at most {max_pixels:,}; "
            "scale it down or cut it into tiles"
        )
    if rows * columns * frames > MAX_VOLUME_PIXELS:
        raise ImageError(
            f"{name}: declares {frames} frames of {columns} x {rows} pixels, expected at most {MAX_VOLUME_PIXELS:,} "
            "pixels in all; split it into several files"
        )
    index = checked_index(frame, frames, name, "frame")
    pixels = _decode(stream, header, syntax, index, frames, name)
    kind = header.get("PhotometricInterpretation")
    if kind == "PALETTE COLOR":
        if not header.original_encoding[1]:
            _swap_palette(header)
        colours = apply_color_lut(pixels, header)[..., :3]
        bits = 16 if colours.max() > 255 else 8  # 8-bit tones are often stored in tables of 16 bits
    elif pixels.ndim == 3:
        colours, bits = pixels, int(header.BitsStored)
    else:
        return Image.fromarray(grey_tones(pixels, header, index, window, name)).convert("RGB")
    if window is not None:
        raise ImageError(f"{name}: a window is for grey images, and this one is in colour; leave it out")
    if bits > 8:  # right both for tones times 256 and for tones times 257
        colours = colours >> (bits - 8)
    elif bits < 8:
        colours = np.rint(colours * (255 / (2**bits - 1)))
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))


def is_likely_written_on(stream: BinaryIO, name: str) -> bool:
    """Whether text may be part of the pixels: the file says so, or its kind often has some and it does not deny it.

    Raises:
        ImageError: the header cannot be inflated within bounds.
    """
    _keep_pydicom_quiet()
    header, _, _ = _read_header(stream, name)
    said = str(header.get("BurnedInAnnotation") or "").strip().upper()
    if said in ("YES", "NO"):
        return said == "YES"
    return header.get("Modality") in _WRITTEN_ON_MODALITIES or any(
        word in _class_name(header) for word in _WRITTEN_ON_CLASSES
    )


def _keep_pydicom_quiet() -> None:
    """Silence pydicom: its warnings quote the values of tags."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    # Not catch_warnings, which is not safe among threads.
    warnings.filterwarnings("ignore", module=r"pydicom\b")


def _read_header(stream: BinaryIO, name: str) -> tuple[Dataset, UID, BinaryIO]:
    """Return the tags that are needed, the transfer syntax, and the stream at the element that holds the pixels.

    A deflated file comes back inflated. pydicom's own reader would inflate it without a bound, so it is not used.
    """
    stream.seek(0)
    read_preamble(stream, force=True)
    meta = _read_file_meta_info(stream)
    start = stream.tell()
    syntax = meta.get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        content = inflater.decompress(stream.read(), MAX_INFLATED_BYTES)
        if len(content) == MAX_INFLATED_BYTES:
            raise ImageError(f"{name}: inflates to {MAX_INFLATED_BYTES:,} bytes or more; export it uncompressed")
        if not inflater.eof:
            raise EOFError("truncated")
        stream, start, syntax = io.BytesIO(content), 0, ExplicitVRLittleEndian
    elif not syntax:
        syntax = _guessed_syntax(stream.read(6))
    if not syntax.is_transfer_syntax:
        raise ImageError(f"{name}: DICOM in an unknown transfer syntax; export the image uncompressed")
    stream.seek(start)
    header = read_dataset(
        stream,
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=lambda tag, vr, length: tag in _PIXEL_TAGS,
        specific_tags=_TAGS,
    )
    if "SOPClassUID" not in header and "MediaStorageSOPClassUID" in meta:
        header.SOPClassUID = meta.MediaStorageSOPClassUID
    if not syntax.is_encapsulated:  # what was found counts, not what the file says
        syntax = _NATIVE[header.original_encoding]
    return header, syntax, stream


def _guessed_syntax(start: bytes) -> UID:
    """Return the transfer syntax of data without a file header, from its first element's tag and type."""
    if not (start[4:].isalpha() and start[4:].isupper()):
        return ImplicitVRLittleEndian
    return ExplicitVRBigEndian if start[:1] == b"\x00" else ExplicitVRLittleEndian


def _class_name(header: Dataset) -> str:
    """Return the standard's name of the file's class, "" for one it does not know: that text could say anything."""
    uid = header.get("SOPClassUID") or ""
    return UID(uid).name if isinstance(uid, str) and UID(uid).name != uid else ""


def _refuse_other_classes(header: Dataset, stream: BinaryIO, name: str) -> None:
    """Raise for everything but images, by the name of its class."""
    kind = _class_name(header)
    start = stream.tell()
    tag = stream.read(4)
    stream.seek(start)
    group, element = struct.unpack("<HH" if header.original_encoding[1] else ">HH", tag) if len(tag) == 4 else (0, 0)
    if any(word in kind for word in _NOT_IMAGES):
        raise ImageError(f"{name}: a DICOM object of the class {kind}; expected an image, such as CT Image Storage")
    if group << 16 | element not in _PIXEL_TAGS:
        raise ImageError(f"{name}: a DICOM object without pixels{f' ({kind})' if kind else ''}; expected an image")


def _decode(stream: BinaryIO, header: Dataset, syntax: UID, index: int, frames: int, name: str) -> np.ndarray:
    """Return the pixels of one frame, (rows, columns) or (rows, columns, 3), as stored but for YCbCr made RGB."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    coding = f" ({syntax.name})" if syntax.name != str(syntax) else ""
    if decoder is None:
        raise ImageError(f"{name}: the pixels' coding{coding} is not read; export the image uncompressed")
    # GDCM, which pydicom would take first, can end the process: it works apart, and after all others.
    plugins = sorted((label for label in decoder.available_plugins if label != "gdcm"), key=LABEL.__eq__)
    if syntax.is_encapsulated and not plugins:
        raise ImageError(f"{name}: the pixels' coding{coding} needs a decoder: pip install 'pefomed[dicom]'")
    if not syntax.is_encapsulated:
        stream.seek(0)
        try:
            return pixel_array(stream, index=index, transfer_syntax_uid=syntax)
        except (AttributeError, ValueError):
            raise ImageError(
                f"{name}: the pixels are truncated, or do not fit what the DICOM header says of their number; "
                "copy the file again"
            ) from None
    is_implicit, _ = header.original_encoding
    stream.seek(8 if is_implicit else 12, io.SEEK_CUR)  # tag and length; else type and two empty bytes between them
    # Without the extended offset table: where there is one, each frame is one fragment and found all the same.
    coded = get_frame(stream, index, number_of_frames=frames)
    if syntax != RLELossless:
        if coded.startswith(_JP2):
            coded = coded[coded.index(b"jp2c") + 4 :]
        declared = _coded_size(coded)
        expected = int(header.Columns), int(header.Rows), int(header.get("SamplesPerPixel") or 1)
        if declared != expected:
            raise ImageError(
                f"{name}: the compressed pixels declare width, height and channels {declared}, the header {expected}; "
                "export the image again"
            )
    # Exactly what was looked at is decoded.
    single = Dataset(header)
    single.file_meta = FileMetaDataset()
    single.file_meta.TransferSyntaxUID = syntax
    single.NumberOfFrames = 1
    single.PixelData = encapsulate([coded])
    for plugin in plugins:
        # RuntimeError is what pydicom makes of a decoder's errors, ValueError of a frame that comes out too short.
        with contextlib.suppress(RuntimeError, ValueError):
            return pixel_array(single, index=0, decoding_plugin=plugin)
    other = ", or need another decoder (pip install 'pefomed[dicom]')" if plugins == ["pillow"] else ""
    raise ImageError(f"{name}: the compressed pixels{coding} are damaged{other}; copy the file again")


def _swap_palette(header: Dataset) -> None:
    """Turn the palette's 16-bit words of a big-endian file round; pydicom leaves them as they are."""
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTableData"
        if keyword in header:
            header[keyword].value = np.frombuffer(header[keyword].value, ">u2").astype("<u2").tobytes()


def _coded_size(coded: bytes) -> tuple[int, int, int]:
    """Return width, height and channels that JPEG, JPEG-LS or JPEG 2000 data declares.

    Decoders believe this and not the DICOM header, so a few bytes could claim all memory.

    Raises:
        ValueError: it declares none.
        IndexError: it ends before.
    """
    if size := _JPEG_2000_SIZE.match(coded):
        width, height, left, top, channels = (int.from_bytes(number) for number in size.groups())
        return width - left, height - top, channels
    if not coded.startswith(b"\xff\xd8"):
        raise ValueError("neither JPEG nor JPEG 2000")
    place = 2
    while True:  # from marker to marker
        place = coded.index(b"\xff", place)
        while coded[place] == 0xFF:
            place += 1
        marker, place = coded[place], place + 1
        if marker in _JPEG_SIZES:
            height, width = int.from_bytes(coded[place + 3 : place + 5]), int.from_bytes(coded[place + 5 : place + 7])
            return width, height, coded[place + 7]
        if marker not in _JPEG_WITHOUT_LENGTH:
            place += int.from_bytes(coded[place : place + 2])

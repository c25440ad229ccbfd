# SPDX-License-Identifier: Apache-2.0
"""GDCM in a process of its own, as a decoder for pydicom: the codings of JPEG's family that Pillow does not read.

GDCM ends its process on some damaged data, and no broken file may end a training run or a web page. Such a process
imports nothing but GDCM, so it costs some 60 ms an image.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

LABEL = "gdcm-apart"
TIMEOUT_S = 60
MAX_BYTES = 2**32

_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
# Names and form are pydicom's for a plugin.
DECODER_DEPENDENCIES = dict.fromkeys(_JPEG + _JPEG_LS + _JPEG_2000, ("gdcm>=3.0.24",))


def is_available(uid: str) -> bool:
    """Whether GDCM is installed and reads this transfer syntax."""
    return uid in DECODER_DEPENDENCIES and importlib.util.find_spec("gdcm") is not None


def decode_frame(coded: bytes, runner: Any) -> bytes:
    """Return the pixels of one frame.

    Args:
        coded: the frame as the file holds it.
        runner: pydicom's `DecodeRunner`, which knows the header and is told in what form the pixels are.

    Raises:
        ValueError: GDCM does not read it, or ended.
    """
    syntax, bits_stored = str(runner.transfer_syntax), runner.bits_stored
    if syntax in _JPEG_LS + _JPEG_2000:  # what the data says counts, and decides how many bytes each number gets
        bits_stored = runner.get_option("jls_precision" if syntax in _JPEG_LS else "j2k_precision", bits_stored)
        runner.set_option("bits_allocated", 8 if bits_stored <= 8 else 16 if bits_stored <= 16 else 32)
    if syntax in _JPEG_LS:
        runner.set_option("planar_configuration", 0)
    settings = {
        "syntax": syntax,
        "size": [runner.columns, runner.rows, 1],
        "photometric": str(runner.photometric_interpretation),
        "planar": runner.planar_configuration if runner.samples_per_pixel > 1 else None,
        "format": [
            runner.samples_per_pixel,
            runner.bits_allocated,
            bits_stored,
            bits_stored - 1,
            runner.pixel_representation,
        ],
    }
    command = [sys.executable, "-P", __file__]  # not with this folder first on its path
    done = subprocess.run(
        command, input=json.dumps(settings).encode() + b"\n" + coded, capture_output=True, timeout=TIMEOUT_S
    )
    if done.returncode or not done.stdout:
        raise ValueError(f"GDCM ended with {done.returncode}")
    return done.stdout


def main() -> None:
    """Decode the frame on stdin to stdout: a line of settings, then the coded frame."""
    import resource

    import gdcm

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not leave pixels on disk
    resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT_S, TIMEOUT_S))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    settings = json.loads(sys.stdin.buffer.readline())
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(sys.stdin.buffer.read())
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions(tuple(settings["size"]))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(settings["photometric"])
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if settings["planar"] is not None:
        image.SetPlanarConfiguration(settings["planar"])
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(settings["syntax"])))
    image.SetPixelFormat(gdcm.PixelFormat(*settings["format"]))
    frame = image.GetBuffer()  # bytes as text; None on damaged data
    sys.stdout.buffer.write((frame or "").encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    main()

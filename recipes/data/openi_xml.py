# SPDX-License-Identifier: Apache-2.0
"""Reads one report of Open-i's NLMCXR as XML, and nothing that XML could do beyond that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

MAX_BYTES = 2**20  # the largest report is a hundredth of it


@dataclass
class OpenIReport:
    """The parts of a report file that are read."""

    uid: str = ""  # CXR1
    sections: dict[str, str] = field(default_factory=dict)  # FINDINGS, IMPRESSION ... -> text as written
    images: list[str] = field(default_factory=list)  # names without .png


def read_openi_report(path: Path) -> OpenIReport:
    """Return the sections and images of a report file.

    Declared entities are refused, external ones never opened: the reports need none, and they are how XML reads other
    files or fills the memory.

    Raises:
        ValueError: the file is larger than 1 MiB, no XML, or declares entities; the text says which.
    """
    with path.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")
    report = OpenIReport()
    label, parts = "", list[str]()

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal label
        if tag == "AbstractText":
            label = attributes.get("Label", "").strip().upper()
            parts.clear()
        elif tag == "parentImage" and attributes.get("id", "").strip():
            report.images.append(attributes["id"].strip())
        elif tag == "uId":
            report.uid = attributes.get("id", "").strip()

    def end(tag: str) -> None:
        nonlocal label
        if tag == "AbstractText":
            text = "".join(parts).strip()
            if text:  # a section that comes again adds to the first
                report.sections[label] = f"{report.sections[label]} {text}" if label in report.sections else text
            label = ""

    def characters(text: str) -> None:
        if label:
            parts.append(text)

    def refuse(*_: Any) -> None:
        raise ValueError("declares an entity, which no report needs")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"not XML, from line {error.lineno} on") from None
    report.images = list(dict.fromkeys(report.images))
    return report


def image_names(name: str) -> list[str]:
    """Return how an image's file may be called: patient 1's bear a `_1` more than reports say, or the reverse."""
    more = re.sub(r"^CXR1_IM-", "CXR1_1_IM-", name)
    less = re.sub(r"^CXR1_1_IM-", "CXR1_IM-", name)
    return [f"{each}.png" for each in dict.fromkeys((name, more, less))]

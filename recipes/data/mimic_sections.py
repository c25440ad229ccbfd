# SPDX-License-Identifier: Apache-2.0
"""Takes from a MIMIC-CXR report the part that says what is seen.

A report file may begin with a wet read or an addendum, closed by a line of underscores; the line `FINAL REPORT`
follows. Its sections begin with a header in capitals and a colon, whose wording varies and is often misspelt.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

# Sections in the order in which one is taken.
PREFERENCE = ("impression", "findings", "last_paragraph", "comparison")
# A header that names what was taken heads what is seen: PORTABLE CHEST RADIOGRAPH, CHEST, PA AND LATERAL.
VIEW_WORDS = (
    *("CHEST", "PORTABLE", "RIBS", "BONE WINDOW", "ONE VIEW", "TWO VIEWS", "PA VIEW", "AP VIEW", "LATERAL VIEW"),
    *("PA AND LAT", "AP AND LAT", "LATERAL AND PA", "LATERAL AND AP"),
    *("FRONTAL VIEW", "FRONTAL AND", "FRONTAL UPRIGHT", "FRONTAL SEMI-UPRIGHT"),
)
# The first word that a header holds says its section: FINDINGS AND IMPRESSION is an impression.
HEADER_WORDS = {
    "IMPRESSION": "impression",
    "CONCLUSION": "impression",
    "RECOMMENDATION": "other",
    "NOTIFICATION": "other",
    "COMPARISON": "comparison",
    "REFERENCE EXAM": "comparison",
    "FINDING": "findings",
    "HISTORY": "other",
    "INDICATION": "other",
    "REASON FOR": "other",
    "CLINICAL INFORMATION": "other",
    "MEDICAL CONDITION": "other",
    "DIAGNOSIS": "other",
    "ADDENDUM": "other",
    "WET READ": "other",
    "WETREAD": "other",
    **dict.fromkeys(VIEW_WORDS, "findings"),
    "PROCEDURE": "other",
    "STUDY": "other",
    "DATE": "other",
    "PFI": "other",
    "TECHNIQUE": "other",
    "EXAM": "other",
    "COMMENT": "other",
}
# Misspelt headers are taken for these: IMPRESSON, FINIDNGS, COMPARSION, NDICATION.
SPELT = {
    "IMPRESSION": "impression",
    "FINDINGS": "findings",
    "COMPARISON": "comparison",
    "INDICATION": "other",
    "HISTORY": "other",
    "TECHNIQUE": "other",
    "EXAMINATION": "other",
}
LIKENESS = 0.85  # ratio of difflib: one or two letters of ten may be wrong

_SEPARATOR = re.compile(r"^[ \t]*_{5,}[ \t]*$", re.MULTILINE)  # three underscores stand for a name that was removed
_FINAL = re.compile(r"^[ \t]*FINAL REPORT[ \t]*$", re.MULTILINE)
_NOT_THE_REPORT = re.compile(r"\s*(FINAL\s+)?(WET ?READ|ADDENDUM)\b", re.IGNORECASE)
_HEADER = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]*|Findings|Impression|Comparison):", re.MULTILINE)
_VIEWS = re.compile("|".join(VIEW_WORDS))
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")


class Section(NamedTuple):
    """What a header, or the report's beginning, opens."""

    name: str  # impression, findings, comparison, other, unknown (a header of no known kind) or start (none)
    text: str


def described(report: str) -> tuple[str, str]:
    """Return (section, its text) of what a report says about the image: ("", "") where it says nothing.

    The last impression that is not empty, else the last findings, else the last paragraph, else the last comparison.
    The last paragraph is what follows the first paragraph of the last section, or all of a last section that has no
    header of a known kind; it counts only where there is neither an impression nor findings.

    Source: the section rule of github.com/MIT-LCP/mimic-cxr. Differs: misspelt headers are recognised by likeness
    instead of a list; a header of no known kind, such as LINES:, does not end an impression or findings, nor does a
    header of views, such as RIBS:, end findings; single studies have no rules of their own.
    """
    sections = split_sections(final_report(report))
    texts: dict[str, str] = {}
    for section in sections:
        if section.text.strip():
            texts[section.name] = section.text
    texts["last_paragraph"] = _last_paragraph(sections[-1])
    chosen = next((name for name in PREFERENCE if texts.get(name, "").strip()), "")
    return chosen, texts.get(chosen, "")


def final_report(report: str) -> str:
    """Return a report file's text without wet reads, addenda and the line that says FINAL REPORT."""
    blocks = _SEPARATOR.split(report.replace("\r\n", "\n"))
    final = [number for number, block in enumerate(blocks) if _FINAL.search(block)]
    if final:
        blocks = blocks[final[-1] :]
        blocks[0] = blocks[0][list(_FINAL.finditer(blocks[0]))[-1].end() :]
    # without that line everything may be a wet read: better than nothing
    return "\n\n".join([block for block in blocks if not _NOT_THE_REPORT.match(block)] or blocks[-1:])


def split_sections(text: str) -> list[Section]:
    """Return the sections of a report in order, at least one."""
    sections, name, begin = [], "start", 0
    for header in _HEADER.finditer(text):
        kind = section_of(header[1])
        if kind == "unknown" and name in ("impression", "findings"):
            continue
        if kind == name == "findings" and _VIEWS.search(header[1]):
            continue  # another view, told within the same findings
        sections.append(Section(name, text[begin : header.start()]))
        name, begin = kind, header.end()
    sections.append(Section(name, text[begin:]))
    return sections


def section_of(header: str) -> str:
    """Return the section that a header names: impression, findings, comparison, other, or unknown."""
    header = " ".join(header.upper().split())
    for word, section in HEADER_WORDS.items():
        if word in header:
            return section
    near = difflib.get_close_matches(header, SPELT, n=1, cutoff=LIKENESS)
    return SPELT[near[0]] if near else "unknown"


def _last_paragraph(section: Section) -> str:
    if section.name == "unknown":
        return section.text
    paragraphs = [part for part in _PARAGRAPHS.split(section.text) if part.strip()]
    if section.name == "start" and len(paragraphs) == 1:
        return paragraphs[0]
    return "\n\n".join(paragraphs[1:])

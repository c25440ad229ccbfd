# SPDX-License-Identifier: Apache-2.0
"""Writes what a check found: JSON for programs, Markdown for people, a contact sheet to look at."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..staging import whole_file
from .checks import KINDS, Check
from .image_facts import THUMBNAIL_PX

MAX_NAMES_SHOWN = 20
SHEET_COLUMNS = 5
_MARGIN, _LINE_HEIGHT, _LINE_CHARACTERS, _MAX_LINES = 10, 15, 36, 8


def write_check(check: Check, out: str | os.PathLike[str]) -> Path:
    """Write `check.json`, `check.md` and, where there is an image, `contact_sheet.png` into a folder; return it."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(check.report, indent=2, ensure_ascii=False)
    for name, text in (("check.json", content), ("check.md", as_markdown(check.report))):
        with whole_file(folder / name) as staged:
            staged.write_text(text + "\n", encoding="utf-8")
    (folder / "contact_sheet.png").unlink(missing_ok=True)  # an earlier check's
    if check.sheet:
        with whole_file(folder / "contact_sheet.png") as staged:
            draw_sheet(check.sheet).save(staged, format="PNG")
    return folder


def as_markdown(report: dict[str, Any], *, short: bool = False) -> str:
    """Return a report for people; `short` leaves out lists, lengths and what else does not fit on a screen."""
    return "\n".join(_lines(report, short)).rstrip()


def _lines(report: dict[str, Any], short: bool) -> Iterator[str]:
    languages = f", language {report['language']}" if report["language"] else ""
    yield f"# {report['title']} ({report['dataset']}), layout {report['layout']}{languages}"
    yield ""
    wrong = [found for found in report["findings"] if not found["allowed"]]
    kinds = ", ".join(dict.fromkeys(found["kind"] for found in wrong))
    yield "**Passed.**" if not wrong else f"**Failed**: {kinds}. `--allow KIND` accepts a kind of finding."
    yield f"Licence: {', '.join(filter(None, report['licences'])) or 'not stated'}."
    if report["credentialed"]:
        yield "Credentialed data: no rows, images or examples may go to third parties, nor this contact sheet."
    yield ""
    yield from _finding_lines(report["findings"], short)
    yield from _split_lines(report, short)
    yield from _leak_lines(report["leakage"], short)
    if report["text_only_baseline"]:
        yield from _heading("What the questions alone give: the training split's most frequent answer to each", short)
        rows = [
            [split, kind, _percent(score["right"]), f"{score['of']:,}"]
            for split, scores in report["text_only_baseline"].items()
            for kind, score in sorted(scores.items())
        ]
        yield from _table(["split", "answer type", "right", "of"], rows)
    near = report["near_duplicates"]
    if near["pairs"]:
        yield from _heading("Near duplicates: different pictures of two splits that look the same", short)
        yield f"{near['pairs']:,} pairs, to be looked at: radiographs of one view may be this alike."
        if not short:
            names = [f"{' ~ '.join(pair['names'])} ({pair['distance']} bits)" for pair in near["listed"]]
            yield from _bullets(names, near["pairs"])
        yield ""
    review = report["labels_to_review"]
    if review:
        yield from _heading("Labels to review", short)
        yield f"{len(review):,} entries. conflict: same images and question, other answer; outlier: unlike the rest."
        if not short:
            texts = [
                ": ".join(filter(None, [e.get("question", ""), " / ".join(e.get("answers", []))])) for e in review
            ]
            entries = zip(review, texts, strict=True)
            shown = [f"{e['kind']}: {', '.join(e['ids'][:10])}{f' ({text})' if text else ''}" for e, text in entries]
            yield from _bullets(shown, len(review), limit=200)
        yield ""


def _finding_lines(findings: Sequence[dict[str, Any]], short: bool) -> Iterator[str]:
    if not findings:
        return
    yield from _heading("Findings", short)
    for found in findings:
        where = f"{found['split']}: " if found["split"] else ""
        first, *rest = found["text"].splitlines()
        yield f"- {'allowed' if found['allowed'] else 'WRONG'}, {found['kind']}: {where}{first}"
        yield from (f"  {line}" for line in rest)
        shown = found["names"][: 3 if short else MAX_NAMES_SHOWN]
        yield from (f"    - {name}" for name in shown)
        if len(found["names"]) > len(shown):
            yield "    - and more, in check.json"
    if not short:
        yield ""
        yield from (f"- {kind}: {meaning}" for kind, meaning in KINDS.items() if kind in {f["kind"] for f in findings})
    yield ""


def _split_lines(report: dict[str, Any], short: bool) -> Iterator[str]:
    splits = report["splits"]
    yield from _heading("Splits", short)
    rows = [
        [name, *(f"{splits[split][name]:,}" for split in splits)]
        for name in ("samples", "images", "studies", "patients")
    ]
    for name in ("tasks", "languages", "answer_types", *(() if short else ("question_types",))):
        rows.append([name.replace("_", " "), *(_counter(facts[name]) for facts in splits.values())])
    rows.append(["derived answer types", *(f"{facts['derived_answer_types']:,}" for facts in splits.values())])
    for name, words in (("answer", "left or right in answers"), ("instruction_or_answer", "in question or answer")):
        rows.append([words, *(_percent(facts["laterality_share"][name]) for facts in splits.values())])
    unseen = report["answers_not_seen_in_training"]
    rows.append(["answers not seen in training", *(_percent(unseen[s]) if s in unseen else "" for s in splits)])
    for name in dict.fromkeys(name for facts in splits.values() for name in facts["lengths"]):
        lengths = [facts["lengths"][name] for facts in splits.values()]
        rows.append(
            [
                f"{name.replace('_', ' ')}: mean / p90 / max",
                *(f"{x['mean']} / {x['p90']} / {x['max']}" for x in lengths),
            ]
        )
    yield from _table(["", *splits], rows)
    images = report["images"]
    yield f"Images: {images['good']:,} good, {images['missing']:,} missing, {images['corrupt']:,} corrupt."
    if images["good"]:
        smallest, largest = (" x ".join(map(str, images[name])) for name in ("smallest", "largest"))
        yield f"Smallest {smallest}, largest {largest} px; {images['different_pictures']:,} different pictures."
        written_on = images["may_hold_text"]
        if written_on["count"]:
            yield f"{written_on['count']:,} DICOM images may show text, such as a name, in their pixels; look at them."
            if not short:
                yield from _bullets(written_on["names"], written_on["count"])
                yield ""
    yield from (f"Note: {note}." for note in report["notes"])
    if report["published_not_compared"]:
        yield f"Published numbers that were not compared: {', '.join(report['published_not_compared'])}."
    yield ""


def _leak_lines(leakage: Sequence[dict[str, Any]], short: bool) -> Iterator[str]:
    """Yield how much of the later split is in the earlier one, too, by what it is shared."""
    kinds = list(dict.fromkeys(leak["by"] for leak in leakage))
    rows: dict[str, dict[str, str]] = {}
    for leak in leakage:
        earlier, later = leak["splits"]
        rows.setdefault(f"{later} in {earlier}", {})[leak["by"]] = f"{leak['groups']:,} of {leak['of']:,}"
    if rows:
        yield from _heading("Shared between splits", short)
        yield from _table(["", *kinds], [[pair, *(row.get(kind, "") for kind in kinds)] for pair, row in rows.items()])


def _heading(text: str, short: bool) -> Iterator[str]:
    yield f"## {text}"
    if not short:
        yield ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a Markdown table whose columns stand below each other in plain text, too."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(row[at]) for row in cells)) for at in range(len(header))]
    for number, row in enumerate(cells):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "| " + " | ".join("-" * width for width in widths) + " |"
    yield ""


def _bullets(texts: Sequence[str], count: int, limit: int = MAX_NAMES_SHOWN) -> Iterator[str]:
    yield ""
    yield from (f"- {text}" for text in texts[:limit])
    if count > limit:
        yield f"- and {count - limit:,} more, in check.json"


def _counter(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name or 'none'} {count:,}" for name, count in ordered[:6])
    return shown + (f" and {len(ordered) - 6} more" if len(ordered) > 6 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def draw_sheet(tiles: Sequence[tuple[Image.Image | None, str]]) -> Image.Image:
    """Return a grid of pictures with a caption below each; a picture that is None could not be read."""
    font = ImageFont.load_default(size=12)
    captions = [
        [line for text in caption.splitlines() for line in textwrap.wrap(text, _LINE_CHARACTERS)][:_MAX_LINES]
        for _, caption in tiles
    ]
    columns = min(SHEET_COLUMNS, len(tiles))
    width = THUMBNAIL_PX + 2 * _MARGIN
    tops, bottom = [], _MARGIN
    for first in range(0, len(tiles), columns):
        tops.append(bottom)
        most_lines = max(len(caption) for caption in captions[first : first + columns])
        bottom += THUMBNAIL_PX + 12 + _LINE_HEIGHT * most_lines + _MARGIN
    sheet = Image.new("RGB", (columns * width, bottom), (24, 26, 30))
    pen = ImageDraw.Draw(sheet)
    for number, ((picture, _), lines) in enumerate(zip(tiles, captions, strict=True)):
        left, top = number % columns * width + _MARGIN, tops[number // columns]
        if picture is None:
            pen.rectangle((left, top, left + THUMBNAIL_PX, top + THUMBNAIL_PX), outline=(120, 60, 60))
            pen.text((left + 8, top + 8), "missing or corrupt", font=font, fill=(222, 150, 150))
        else:
            centred = ((THUMBNAIL_PX - picture.width) // 2, (THUMBNAIL_PX - picture.height) // 2)
            sheet.paste(picture, (left + centred[0], top + centred[1]))
        for line_number, line in enumerate(lines):
            at = (left, top + THUMBNAIL_PX + 6 + _LINE_HEIGHT * line_number)
            pen.text(at, line, font=font, fill=(222, 226, 230))
    return sheet

# SPDX-License-Identifier: Apache-2.0
"""Phantoms: deterministic images with exactly known truth, as a data set on disk and as a contact sheet.

The parts: `phantom_truth` (what is to be seen), `phantom_images` (pixels), `phantom_questions` and `phantom_texts`
(questions, captions, reports, located phrases). All that users need is offered here.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..errors import ConfigError, PeFoMedError, did_you_mean
from ..records import TASKS
from ..staging import whole_file, whole_folder
from .phantom_images import MIN_SIZE_PX, render_phantom
from .phantom_questions import QUESTION_TYPES, Question, questions
from .phantom_texts import caption, referring_phrases, report
from .phantom_truth import (
    DIFFICULTIES,
    SPLITS,
    VIEWS,
    Lesion,
    Phantom,
    case_seed,
    draw_phantom,
    facts,
    mirror,
)

__all__ = [
    "DIFFICULTIES",
    "FORM_VERSION",
    "QUESTION_TYPES",
    "SPLITS",
    "VIEWS",
    "Lesion",
    "Phantom",
    "Question",
    "caption",
    "case_seed",
    "contact_sheet",
    "draw_phantom",
    "facts",
    "mirror",
    "phantom_rows",
    "questions",
    "referring_phrases",
    "render_phantom",
    "report",
    "write_phantoms",
]

SETTINGS_FILE = "phantoms.json"
LICENCE = "CC0-1.0"
FORM_VERSION = 3  # raise it whenever a pixel or a text of any case changes: what was made from the old ones is stale


def phantom_rows(
    phantom: Phantom, tasks: Sequence[str], image_id: str, *, training: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of one image: its caption, its report, its located lesions and its questions, as asked for.

    Args:
        phantom: the case.
        tasks: some of `caption`, `report`, `refer`, `vqa`; their order does not matter.
        image_id: the image's name without ending; also the patient's id, as every phantom is a patient of its own.
        training: ask questions in the mix of the training split.
    """
    shared = {
        "image": f"images/{image_id}.png",
        "image_id": image_id,
        "patient_id": image_id,
        "organ": phantom.organ,
        "modality": phantom.modality,
    }
    if "caption" in tasks:
        yield {"id": f"{image_id}-caption", **shared, "caption": caption(phantom)}
    if "report" in tasks:
        yield {"id": f"{image_id}-report", **shared, "report": report(phantom)}
    if "refer" in tasks:
        for number, (phrase, box) in enumerate(referring_phrases(phantom)):
            yield {"id": f"{image_id}-refer{number}", **shared, "phrase": phrase, "box": list(box)}
    if "vqa" in tasks:
        for number, asked in enumerate(questions(phantom, training=training)):
            yield {
                "id": f"{image_id}-vqa{number:02d}",
                **shared,
                "question": asked.question,
                "answer": asked.answer,
                "answer_type": asked.answer_type,
                "question_type": asked.question_type,
            }


def write_phantoms(
    folder: str | os.PathLike[str],
    *,
    tasks: Sequence[str] = ("vqa",),
    cases_per_split: Mapping[str, int],
    seed: int = 0,
    difficulty: str = "easy",
    size_px: int = 64,
) -> Path:
    """Write a phantom data set in the generic `jsonl` form and return its folder.

    The folder holds `train.jsonl`, `validation.jsonl`, `test.jsonl` (those asked for), `images/*.png` (8-bit grey) and
    `phantoms.json`, the settings. It appears under its name only when it is whole. A folder that already holds the
    same settings is left as it is.

    Args:
        folder: where to write; must not exist, be empty, or hold phantoms of the same settings.
        tasks: some of `caption`, `report`, `refer`, `vqa`.
        cases_per_split: number of images of each split; no image is in two splits.
        seed: 0 or more; another seed gives other cases.
        difficulty: `easy`, `medium` or `hard`.
        size_px: width and height of the images.

    Raises:
        ConfigError: an unknown task, split or difficulty, or a number out of range.
        PeFoMedError: the folder holds something else.
    """
    folder = Path(folder)
    settings = _checked_settings(tasks, cases_per_split, seed, difficulty, size_px)
    if (folder / SETTINGS_FILE).is_file():
        found = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        if found == settings:
            return folder
        raise PeFoMedError(
            f"{folder} holds phantoms of other settings ({SETTINGS_FILE}); name another folder or delete it"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PeFoMedError(f"{folder} exists and holds no phantoms; name a new or empty folder")
    with whole_folder(folder) as staged:
        (staged / "images").mkdir()
        with tqdm(
            total=sum(cases_per_split.values()), desc="phantoms", unit="image", disable=not sys.stderr.isatty()
        ) as progress:
            for split, count in cases_per_split.items():
                with (staged / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
                    for index in range(count):
                        phantom = draw_phantom(case_seed(seed, split, index), difficulty)
                        image_id = f"{split}-{index:06d}"
                        image = Image.fromarray(render_phantom(phantom, size_px))
                        image.save(staged / "images" / f"{image_id}.png", compress_level=1)
                        for row in phantom_rows(phantom, tasks, image_id, training=split == "train"):
                            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                        progress.update()
        (staged / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder


def _checked_settings(
    tasks: Sequence[str], cases_per_split: Mapping[str, int], seed: int, difficulty: str, size_px: int
) -> dict[str, Any]:
    problems = []
    for task in tasks:
        if task not in TASKS:
            problems.append(f"unknown task {task!r}{did_you_mean(task, TASKS)}; expected some of {', '.join(TASKS)}")
    for split, count in cases_per_split.items():
        if split not in SPLITS:
            problems.append(f"unknown split {split!r}{did_you_mean(split, SPLITS)}; expected {', '.join(SPLITS)}")
        if count < 1:
            problems.append(f"{count} cases in split {split}; expected 1 or more")
    if not tasks or not cases_per_split:
        problems.append("no task or no split; expected at least one of each")
    if difficulty not in DIFFICULTIES:
        hint = did_you_mean(difficulty, DIFFICULTIES)
        problems.append(f"unknown difficulty {difficulty!r}{hint}; expected {', '.join(DIFFICULTIES)}")
    if seed < 0:
        problems.append(f"seed {seed}; expected 0 or more")
    if size_px < MIN_SIZE_PX:
        problems.append(f"size of {size_px} px; expected {MIN_SIZE_PX} or more")
    if problems:
        raise ConfigError("Phantoms: " + "; ".join(problems))
    return {
        "form_version": FORM_VERSION,
        "tasks": sorted(set(tasks)),
        "cases_per_split": dict(cases_per_split),
        "seed": seed,
        "difficulty": difficulty,
        "size_px": size_px,
        "licence": LICENCE,
    }


def contact_sheet(
    path: str | os.PathLike[str],
    *,
    cases: int = 20,
    columns: int = 5,
    seed: int = 0,
    difficulty: str = "easy",
    size_px: int = 224,
) -> Path:
    """Draw a grid of phantoms with lesion boxes and captions as PNG and return its path.

    The views take turns, so that a sheet of 10 cases or more shows each of them. The cases are in no split.

    Raises:
        ConfigError: no case, no column, or an unknown difficulty.
    """
    if cases < 1 or columns < 1:
        raise ConfigError(f"Found {cases} cases in {columns} columns; a contact sheet needs at least one of each")
    shown = _cases_of_all_views(cases, seed, difficulty)
    margin, line_height = 10, 15
    columns = min(columns, cases)
    font = ImageFont.load_default(size=12)
    texts = [_wrapped(_sheet_text(phantom), font, size_px) for phantom in shown]
    tops, bottom = [], margin
    for first in range(0, cases, columns):
        tops.append(bottom)
        bottom += size_px + 12 + line_height * max(map(len, texts[first : first + columns])) + margin
    sheet = Image.new("RGB", (columns * (size_px + 2 * margin), bottom), (24, 26, 30))
    pen = ImageDraw.Draw(sheet)
    for number, (phantom, lines) in enumerate(zip(shown, texts, strict=True)):
        left, top = number % columns * (size_px + 2 * margin) + margin, tops[number // columns]
        sheet.paste(Image.fromarray(render_phantom(phantom, size_px)).convert("RGB"), (left, top))
        for lesion in phantom.lesions:
            x1, y1, x2, y2 = (edge * size_px / 100 for edge in lesion.box)
            pen.rectangle((left + x1 - 3, top + y1 - 3, left + x2 + 3, top + y2 + 3), outline=(255, 190, 60))
        for number_of_line, line in enumerate(lines):
            at = (left, top + size_px + 6 + line_height * number_of_line)
            pen.text(at, line, font=font, fill=(222, 226, 230))
    with whole_file(path) as staged:
        sheet.save(staged, format="PNG")
    return Path(path)


def _cases_of_all_views(cases: int, seed: int, difficulty: str) -> list[Phantom]:
    found: dict[str, list[Phantom]] = {name: [] for name in VIEWS}
    order = [name for turn in range(-(-cases // len(VIEWS))) for name in VIEWS][:cases]
    wanted = Counter(order)
    index = 0
    while any(len(found[name]) < count for name, count in wanted.items()):
        phantom = draw_phantom(case_seed(seed, "preview", index), difficulty)
        found[phantom.view].append(phantom)
        index += 1
    return [found[name].pop(0) for name in order]


def _sheet_text(phantom: Phantom) -> str:
    findings = report(phantom).partition("IMPRESSION: ")[2].split(". ", 1)[1:]  # behind the number of lesions
    return " ".join([caption(phantom), *findings])


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines

# SPDX-License-Identifier: Apache-2.0
"""What the readers of question-and-answer sets share: finding their files, and one row made into one sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..answers import YES_NO, normalize_answer, normalize_question_types
from ..records import Sample
from .files import ImageFinder, peek_json, text_of
from .ids import Ids
from .reading import SPLIT_SPELLINGS, DatasetError, LeftOut, MissingSplitError, Problems

# The data sets' own spellings of the two answer types.
ANSWER_TYPES = {"OPEN": "OPEN", "CLOSED": "CLOSED", "YES/NO": "CLOSED", "NUMBER": "OPEN", "OTHER": "OPEN"}
QUESTION_TYPE_TYPOS = {"PRSE": "PRES", "ATRIB": "ATTRIB"}


class VqaRows:
    """Makes the rows of one file into samples, and keeps account of what is wrong with them.

    Rows without an answer are left out and counted: the published sets hold some. Whatever else is wrong is a problem,
    and all problems are told by [`finish`].
    """

    def __init__(self, slug: str, path: Path, split: str, unit: str = "row") -> None:
        self.slug, self.split = slug, split
        self.problems = Problems(path, unit)
        self.ids, self.left_out = Ids(), LeftOut(self.problems)
        self.kept = 0

    def text(self, number: int, name: str, value: Any) -> str:
        """Return a cell as text, see [`as_text`]; "" with a problem where it is no text."""
        return text_of({name: value}, name, number, self.problems) or ""

    def sample(
        self,
        number: int,
        id: Any,
        images: Sequence[str | None],
        question: Any,
        answer: Any,
        *,
        answer_type: Any = "",
        question_type: Any = "",
        language: str = "en",
        organ: Any = "",
        modality: Any = "",
        image_id: str = "",
        study_id: str = "",
        patient_id: str = "",
        linked_id: str = "",
    ) -> Sample | None:
        """Return the sample of a row, None where it has no answer or a problem.

        Args:
            number: of the row in its file, for problems.
            id: what the data set calls the row; unique in a split.
            images: absolute paths; None stands for one with a problem noted already.
            question, answer: cells.
            answer_type: cell; where it is absent, yes and no make a question `CLOSED` and the type counts as derived.
            question_type: cell with one or more codes.
            language: `en` or `zh`.
            organ, modality: cells.
            image_id, study_id, patient_id: which image, study and patient a row is about, where the data set says it.
            linked_id: the same for rows that ask about the same thing in other words, where the data set says it.
        """
        noted = len(self.problems.found)
        name = self.text(number, "the id", id)
        if not name:
            self.problems.add(number, "the id is missing")
        self.ids.add(name or f"row {number}", number)
        labels = self.text(number, "the organ", organ), self.text(number, "the modality", modality)
        asked, said = self.text(number, "the question", question), self.text(number, "the answer", answer)
        kind = self.text(number, "the answer type", answer_type).upper()
        codes = self.text(number, "the question type", question_type)
        if kind and kind not in ANSWER_TYPES:
            self.problems.add(number, "the answer type is neither OPEN nor CLOSED")
        paths = [path for path in images if path is not None]
        if len(self.problems.found) > noted or len(paths) < len(images):
            return None
        if not said:
            self.left_out.add("without an answer", number)
            return None
        if not asked:
            self.problems.add(number, "the question is missing")
            return None
        self.kept += 1
        return Sample(
            id=f"{self.slug}-{self.split}-{name}",
            task="vqa",
            image_paths=paths,
            instruction=asked,
            answers=[said],
            answer_type=ANSWER_TYPES[kind] if kind else derived_answer_type(said),
            answer_type_derived=not kind,
            question_types=question_codes(codes),
            language=language,
            organ=labels[0],
            modality=labels[1],
            image_id=image_id,
            study_id=study_id,
            patient_id=patient_id,
            linked_id=linked_id,
            split=self.split,
        )

    def finish(self) -> None:
        """Say how many rows had no answer.

        Raises:
            DatasetError: rows have problems, ids repeat, or there is no row at all.
        """
        self.left_out.log(self.split)
        self.ids.note_repeats(self.problems)
        self.problems.raise_if_any()
        if not self.kept:
            raise DatasetError(f"{self.problems.path}: found no row with an answer; expected some for {self.split}")


def derived_answer_type(answer: str) -> str:
    """Return `CLOSED` for yes and no, else `OPEN`: what can be told from an answer alone."""
    return "CLOSED" if normalize_answer(answer) in YES_NO else "OPEN"


def question_codes(text: str) -> list[str]:
    """Return the question types of a cell such as "POS, PRES": upper case, each once, known typos mended."""
    codes = (QUESTION_TYPE_TYPOS.get(code, code) for code in normalize_question_types([text]))
    return list(dict.fromkeys(codes))


def find_all(root: Path, *patterns: str) -> list[Path]:
    """Return what matches the patterns in a folder, or, where nothing does, in the folders right below it."""
    for base in ("", "*/"):
        found = [path for pattern in patterns for path in sorted(root.glob(base + pattern))]
        if found:
            return found
    return []


def find(root: Path, *patterns: str) -> Path | None:
    """Return the first match of [`find_all`], patterns in order of preference; None where nothing matches."""
    return next(iter(find_all(root, *patterns)), None)


def split_names(split: str, *templates: str) -> list[str]:
    """Return the file names of a split: each template with each spelling of the split for `{}`."""
    return [template.format(spelling) for template in templates for spelling in SPLIT_SPELLINGS[split]]


def require_split(found: Path | None, root: Path, split: str, expected: str) -> Path:
    """Return `found`.

    Raises:
        MissingSplitError: it is None.
    """
    if found is None:
        raise MissingSplitError(f"{root}: found no file of the {split} split; expected {expected}")
    return found


def image_places(root: Path, annotation: Path, *folders: str) -> ImageFinder:
    """Return a finder of images in any of the folders, beside an annotation file or right below the root."""
    bases = dict.fromkeys((annotation.parent.relative_to(root), Path()))
    return ImageFinder(root, [(base / folder / "{name}").as_posix() for base in bases for folder in folders])


def first_row(path: Path | None) -> dict[str, Any]:
    """Return the first object of a JSON list, to recognise its form by its keys; {} where there is none."""
    head = peek_json(path) if path else None
    return head[0] if isinstance(head, list) and head and isinstance(head[0], dict) else {}

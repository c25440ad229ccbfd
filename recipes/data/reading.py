# SPDX-License-Identifier: Apache-2.0
"""What all readers share: how a data set describes itself, how dirty values become text, how problems are told.

A data set is a [`Source`] with one or more [`Layout`]s: the forms in which people have it on disk. A layout is
recognised by content, never by the name of its folder, and yields [`Sample`]s one by one, so that a million rows need
no more memory than one. Problems name files, rows and keys, and never repeat what an answer or report says.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from ..errors import ConfigError, PeFoMedError, did_you_mean
from ..records import Sample

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

logger = logging.getLogger(__name__)

SPLIT_SPELLINGS = {
    "train": ("train",),
    "validation": ("validation", "val", "valid", "validate"),
    "test": ("test",),
}
MAX_LISTED_PROBLEMS = 20


class DatasetError(PeFoMedError):
    """A dataset on disk that cannot be used as it is; the text lists what is wrong, by line."""


class MissingSplitError(DatasetError):
    """A dataset folder without the split that was asked for."""


@dataclass(frozen=True)
class Layout:
    """One form of a data set on disk.

    `recognises(root)` looks at the content of a folder and answers whether it is in this form. `read(root, split)`
    yields the samples of `train`, `validation` or `test`; it raises [`MissingSplitError`] where the form has no such
    split, and [`DatasetError`] with all problems of a file at once. It names images and does not open them.
    `published` holds what the data set's authors count, by split: `{"train": {"samples": 3064, "images": 314}, ...}`.
    Where they count what their files list, and not every entry becomes a sample, `listed(root)` counts the same.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, str], Iterator[Sample]]
    expected: str  # what lies in a folder of this form, for the error when nothing is recognised
    published: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    listed: Callable[[Path], Mapping[str, Mapping[str, int]]] | None = None


@dataclass(frozen=True)
class Source:
    """One data set: what it is for, under which terms, and the forms in which it is found.

    `credentialed` data may neither be sent to a third party's API nor be published, in rows, images or examples.
    `languages` names the languages of a data set; of several, one has to be chosen. None are named for people's own
    data, which may be in any.
    """

    slug: str
    title: str
    tasks: tuple[str, ...]
    licence: str
    layouts: tuple[Layout, ...]
    credentialed: bool = False
    languages: tuple[str, ...] = ("en",)

    def recognise(self, root: str | os.PathLike[str]) -> Layout:
        """Return the layout that a folder is in.

        Raises:
            DatasetError: the folder is missing, or in none of the forms; the text says what each would hold.
        """
        folder = Path(os.path.abspath(root))
        if not folder.is_dir():
            found = "a file" if folder.exists() else "no such folder"
            raise DatasetError(f"{root}: {found}; expected the folder of {self.title}")
        for layout in self.layouts:
            if layout.recognises(folder):
                return layout
        forms = "; ".join(f"{layout.name}: {layout.expected}" for layout in self.layouts)
        raise DatasetError(f"{root}: not recognised as {self.title}. Expected one of: {forms}")


class Problems:
    """Collects what is wrong with one file, so that all of it is told at once."""

    def __init__(self, path: str | os.PathLike[str], unit: str = "row") -> None:
        self.path, self.unit = path, unit
        self.found: list[tuple[int, str]] = []

    def add(self, number: int, text: str) -> None:
        """Note one problem at a row or line, counted from 1; `text` must not repeat a patient's text."""
        self.found.append((number, text))

    def raise_if_any(self) -> None:
        """Raise for all problems, the first 20 of them listed.

        Raises:
            DatasetError: there are some.
        """
        if not self.found:
            return
        listed = sorted(self.found, key=lambda problem: problem[0])[:MAX_LISTED_PROBLEMS]
        lines = [f"  {self.unit} {number}: {text}" for number, text in listed]
        if len(self.found) > MAX_LISTED_PROBLEMS:
            lines.append(f"  and {len(self.found) - MAX_LISTED_PROBLEMS} more")
        noun = "problem" if len(self.found) == 1 else "problems"
        raise DatasetError("\n".join([f"{self.path}: {len(self.found)} {noun}", *lines]))


class LeftOut:
    """Counts the entries of a file that become no sample, and why; remembers which of them say nothing to learn."""

    def __init__(self, problems: Problems) -> None:
        self.path, self.unit = problems.path, problems.unit
        self.reasons: Counter[str] = Counter()
        self.empty: list[int] = []  # numbers of entries without an answer

    def add(self, reason: str, empty: int | None = None) -> None:
        """Count one; `empty` is the number of an entry that has no answer, by which a check names it."""
        self.reasons[reason] += 1
        if empty is not None:
            self.empty.append(empty)

    def log(self, split: str) -> None:
        """Say how many entries of a split were left out, and why; nothing where there are none."""
        if self.reasons:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
            extra = {"left_out": self, "split": split}  # for the check
            logger.warning("%s: left out of the %s split: %s", self.path, split, reasons, extra=extra)


def canonical_split(split: str) -> str:
    """Return `train`, `validation` or `test` for any accepted spelling.

    Raises:
        ConfigError: the split is unknown.
    """
    for canonical, spellings in SPLIT_SPELLINGS.items():
        if split in spellings:
            return canonical
    raise ConfigError(
        f"Unknown split {split!r}{did_you_mean(split, SPLIT_SPELLINGS)}; expected {', '.join(SPLIT_SPELLINGS)}"
    )


def is_absent(value: Any) -> bool:
    """Whether a cell holds nothing: None, or NaN, as a table's gaps are written."""
    return value is None or value != value


def as_text(value: Any) -> str:
    """Return a cell as text without outer blanks, "" where it is absent; inner runs of blanks and tabs become one.

    Numbers become text: 5.0 becomes "5", since a table with gaps turns integers into floats.

    Raises:
        TypeError: the cell is a boolean, a list, an object, or an infinite number.
    """
    if is_absent(value):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) != float("inf"):
        value = str(int(value) if value == int(value) else value)
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return " ".join(value.split())


def sample_features() -> Features:
    """Return the columns of a dataset of samples, as the record `Sample` declares them."""
    from datasets import Features, List, Value

    kinds = {str: Value("string"), bool: Value("bool"), list[str]: List(Value("string"))}
    return Features({name: kinds[hint] for name, hint in get_type_hints(Sample).items()})


def samples_to_dataset(samples: Iterable[Sample]) -> Dataset:
    """Return a `datasets.Dataset` with one row a sample and the columns of [`sample_features`]."""
    from datasets import Dataset

    rows = list(samples)
    columns = {column.name: [getattr(sample, column.name) for sample in rows] for column in fields(Sample)}
    return Dataset.from_dict(columns, features=sample_features())


def samples_to_stream(read: Callable[[], Iterable[Sample]]) -> IterableDataset:
    """Return a `datasets.IterableDataset` that reads anew each time it is gone through, one sample at a time."""
    from datasets import IterableDataset

    names = [column.name for column in fields(Sample)]

    def rows() -> Iterator[dict[str, Any]]:
        for sample in read():
            yield {name: getattr(sample, name) for name in names}

    return IterableDataset.from_generator(rows, features=sample_features())

# SPDX-License-Identifier: Apache-2.0
"""Counts what one split of a data set holds while its samples stream by; no text is kept."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..answers import normalize_answer
from ..records import Sample

MAX_NAMES = 1000
LATERALITY = re.compile(r"\b(?:left|right)(?:ward|wards|most|sided)?\b|左|右", re.IGNORECASE)
_COPY = re.compile(r"\.parquet#\d+$")
# By what two splits can share something. `file` is an image's file, `image` what the data set calls an image.
GROUPS = ("image", "file", "study", "patient", "sample")


@dataclass
class Names:
    """How many there were, and what the first of them are called."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.names) < MAX_NAMES:
            self.names.append(name)


def finding(kind: str, text: str, names: Names | Sequence[str] = (), split: str = "") -> dict[str, Any]:
    """Return one thing that is wrong, as a report lists it; `names` are ids, or image names below the data folder."""
    listed = names.names if isinstance(names, Names) else list(names)[:MAX_NAMES]
    return {"kind": kind, "split": split, "text": text, "names": listed}


def fingerprint(*texts: str) -> int:
    """Return 64 bits of a hash: a million different texts have two alike with a chance of 3e-8."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).digest(), "little")


def image_keys(sample: Sample) -> list[str]:
    """Return what a sample's image files are known by: their paths.

    Rows of the Hub's Parquet files hold a copy of the image each, and only the image's id says that it is the same.
    """
    paths = sample.image_paths
    if len(paths) == 1 and sample.image_id and _COPY.search(paths[0]):
        return [sample.image_id]
    return paths


def comparable(sample: Sample) -> list[str]:
    """Return a sample's answers as they are compared: normalised for questions, else in lower case."""
    if sample.task == "vqa":
        return [normalize_answer(answer) for answer in sample.answers]
    return [" ".join(answer.casefold().split()) for answer in sample.answers]


def content_key(sample: Sample) -> int:
    """Return a fingerprint that two samples share which have the same images, question and answers."""
    return fingerprint(sample.task, *image_keys(sample), "", sample.instruction.casefold(), "", *comparable(sample))


class SplitTally:
    """What one split holds.

    Args:
        count_tokens: gives the number of tokens of a text; without, only words are counted.
    """

    def __init__(self, count_tokens: Callable[[str], int] | None = None) -> None:
        self.count_tokens = count_tokens
        self.samples = 0
        self.kinds: dict[str, Counter[str]] = {
            name: Counter() for name in ("tasks", "languages", "answer_types", "question_types")
        }
        self.derived_answer_types = 0
        self.lengths: dict[str, Counter[int]] = {}
        self.laterality: Counter[str] = Counter()
        self.repeated = Names()
        self.empty = Names()  # entries that have no answer and are no samples; readers tell of them
        # of each group -> [number of samples, id of the first one]
        self.groups: dict[str, dict[str | int, list[Any]]] = {name: {} for name in GROUPS}
        self.images_by_language: dict[str, set[str]] = {}
        self.answers: set[int] = set()
        self.licences: set[str] = set()
        self.credentialed = False

    def add(self, sample: Sample) -> None:
        """Count one sample in."""
        self.samples += 1
        keys = image_keys(sample)
        self.kinds["tasks"][sample.task] += 1
        self.kinds["languages"][sample.language] += 1
        self.kinds["answer_types"][sample.answer_type] += 1
        self.kinds["question_types"].update(sample.question_types)
        self.derived_answer_types += sample.answer_type_derived
        self.images_by_language.setdefault(sample.language, set()).update(keys)
        self._measure(sample)
        twin = content_key(sample)
        if twin in self.groups["sample"]:
            self.repeated.add(sample.id)
        named: dict[str, Sequence[str | int]] = {
            "image": [sample.image_id],
            "file": keys,
            "study": [sample.study_id],
            "patient": [sample.patient_id],
            "sample": [twin],
        }
        for kind, values in named.items():
            for value in values:
                if value:
                    self.groups[kind].setdefault(value, [0, sample.id])[0] += 1
        self.answers.update(fingerprint(answer) for answer in comparable(sample))
        self.licences.add(sample.licence)
        self.credentialed |= sample.credentialed

    def _measure(self, sample: Sample) -> None:
        answer = sample.answers[0] if sample.answers else ""
        for name, text in {"instruction": sample.instruction, "answer": answer}.items():
            self.lengths.setdefault(f"{name}_words", Counter())[len(text.split())] += 1
            if self.count_tokens:
                self.lengths.setdefault(f"{name}_tokens", Counter())[self.count_tokens(text)] += 1
        in_answer = any(LATERALITY.search(text) for text in sample.answers)
        self.laterality["answer"] += in_answer
        self.laterality["instruction_or_answer"] += in_answer or bool(LATERALITY.search(sample.instruction))

    def counts(self) -> dict[str, int]:
        """Return the numbers that can be compared with published ones, by the name these have there."""
        counts = {
            "samples": self.samples,
            "images": len(self.groups["file"]),
            "studies": len(self.groups["study"]),
            "patients": len(self.groups["patient"]),
            "closed": self.kinds["answer_types"]["CLOSED"],
            "open": self.kinds["answer_types"]["OPEN"],
        }
        for language, samples in self.kinds["languages"].items():
            counts[f"samples_{language}"] = samples
            counts[f"images_{language}"] = len(self.images_by_language[language])
        return counts

    def facts(self) -> dict[str, Any]:
        """Return everything counted, as plain values for JSON."""
        return {
            **{name: self.counts()[name] for name in ("samples", "images", "studies", "patients")},
            **{name: dict(sorted(counter.items())) for name, counter in self.kinds.items()},
            "derived_answer_types": self.derived_answer_types,
            "repeated_samples": self.repeated.count,
            "empty_answers": self.empty.count,
            "laterality_share": {
                name: round(self.laterality[name] / max(self.samples, 1), 4)
                for name in ("answer", "instruction_or_answer")
            },
            "lengths": {name: length_summary(counter) for name, counter in self.lengths.items()},
        }


def length_summary(lengths: Mapping[int, int]) -> dict[str, float]:
    """Return mean, median, 90th and 99th percentile (the smallest length not below that share) and maximum."""
    total = sum(lengths.values())
    ordered = sorted(lengths.items())

    def percentile(share: float) -> int:
        below = 0
        for length, count in ordered:
            below += count
            if below >= share * total:
                return length
        return ordered[-1][0]

    mean = sum(length * count for length, count in ordered) / total
    shares = {"median": 0.5, "p90": 0.9, "p99": 0.99}
    return {
        "mean": round(mean, 2),
        **{name: percentile(share) for name, share in shares.items()},
        "max": ordered[-1][0],
    }


def shared_groups(tallies: Mapping[str, SplitTally]) -> Iterator[dict[str, Any]]:
    """Yield for each pair of splits and kind of group what they share; nothing where no sample names such a group.

    `groups` of the later split's `of` groups are in the earlier one, too, and with them `samples` of its samples.
    `sample` stands for the same images, question and answers.
    """
    for first, second in pairs_of(list(tallies)):
        for kind in GROUPS:
            there, here = (tallies[split].groups[kind] for split in (first, second))
            shared = [key for key in here if key in there]
            if there and here:
                yield {
                    "by": kind,
                    "splits": [first, second],
                    "groups": len(shared),
                    "of": len(here),
                    "samples": sum(here[key][0] for key in shared),
                    "of_samples": tallies[second].samples,
                    "names": [here[key][1] for key in shared[:MAX_NAMES]],
                }


def pairs_of(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return each pair of names once, in order."""
    ordered = list(names)
    return [(first, second) for at, first in enumerate(ordered) for second in ordered[at + 1 :]]

# SPDX-License-Identifier: Apache-2.0
"""What a check sees of samples without looking at a pixel: one pass over each split."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..answers import MajorityBaseline, is_exact_match, normalize_answer_type
from ..records import Sample
from .datasets_index import stream_samples
from .label_review import LabelReview
from .reading import SPLIT_SPELLINGS, DatasetError, LeftOut, MissingSplitError
from .tallies import Names, SplitTally, comparable, finding, fingerprint, image_keys


@contextlib.contextmanager
def _warnings_of_readers() -> Iterator[list[logging.LogRecord]]:
    """Collect what readers log meanwhile: how many rows they leave out, and why."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record)

    notes: list[logging.LogRecord] = []
    collector, readers = Collector(logging.WARNING), logging.getLogger(__package__)
    readers.addHandler(collector)
    try:
        yield notes
    finally:
        readers.removeHandler(collector)


@dataclass
class TextChecks:
    """Everything about samples but their pixels, gathered in one pass over each split."""

    root: str
    review: LabelReview | None
    show_text: bool
    tallies: dict[str, SplitTally] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)  # split -> what its reader said
    ids: set[int] = field(default_factory=set)  # fingerprints
    repeated_ids: Names = field(default_factory=Names)
    baselines: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # split -> answer type -> [right, all]
    unseen: dict[str, int] = field(default_factory=dict)  # split -> samples without any answer known from training
    # of each image: its path, and in which splits it is, with the id of the first sample
    images: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)  # of an image, by its path
    notes: list[str] = field(default_factory=list)  # what readers say of rows that they leave out

    def read(self, dataset: str, language: str | None, count_tokens: Callable[[str], int] | None) -> None:
        """Count every split in, the training split first.

        Raises:
            DatasetError: nothing can be read.
        """
        with _warnings_of_readers() as records:
            self._read(dataset, language, count_tokens)
        self.notes = [self._below_root(record.getMessage()) for record in records]
        for record in records:
            left_out, tally = getattr(record, "left_out", None), self.tallies.get(getattr(record, "split", ""))
            if isinstance(left_out, LeftOut) and tally:
                file = os.path.relpath(left_out.path, self.root)
                for number in left_out.empty:
                    tally.empty.add(f"{'' if file == os.curdir else f'{file}, '}{left_out.unit} {number}")

    def _read(self, dataset: str, language: str | None, count_tokens: Callable[[str], int] | None) -> None:
        baseline, absent = MajorityBaseline(), []
        for split in SPLIT_SPELLINGS:
            tally = SplitTally(count_tokens)
            samples = self._counted(stream_samples(dataset, self.root, split, language=language), split, tally)
            questions = (sample for sample in samples if sample.task == "vqa" and sample.answers)
            try:
                if split == "train":
                    baseline = MajorityBaseline.fit(questions)
                else:
                    for sample in questions:
                        self._score(baseline, sample, split)
            except MissingSplitError as error:
                absent.append(str(error))
            except DatasetError as error:
                self.unread[split] = self._below_root(str(error))
            except ValueError:
                pass  # no questions to take a baseline from
            if tally.samples:
                self.tallies[split] = tally
        if not self.tallies:
            raise DatasetError("\n".join([*self.unread.values(), *absent]))

    def _below_root(self, text: str) -> str:
        """Return a message in which files are named below the data set's folder: reports tell nothing of a machine."""
        for prefix in (os.path.join(self.root, ""), f"{self.root}: "):
            text = text.replace(prefix, "")
        return text.replace(self.root, "the folder")

    def _counted(self, samples: Iterator[Sample], split: str, tally: SplitTally) -> Iterator[Sample]:
        """Yield samples on, counted in."""
        train = self.tallies.get("train")
        for sample in samples:
            tally.add(sample)
            identity = fingerprint(sample.id)
            if identity in self.ids:
                self.repeated_ids.add(sample.id)
            self.ids.add(identity)
            for key, path in zip(image_keys(sample), sample.image_paths, strict=True):
                self.images.setdefault(key, (path, {}))[1].setdefault(split, sample.id)
                text = f"\n{sample.instruction}\n{' | '.join(sample.answers)}"[:400] if self.show_text else ""
                self.captions.setdefault(self.images[key][0], f"{split} {sample.id}{text}")
            if self.review:
                self.review.add(sample)
            if train:
                known = any(fingerprint(answer) in train.answers for answer in comparable(sample))
                self.unseen[split] = self.unseen.get(split, 0) + (not known)
            yield sample

    def _score(self, baseline: MajorityBaseline, sample: Sample, split: str) -> None:
        """Ask the baseline, which has seen no image, one question."""
        if not baseline.overall:
            return
        right = is_exact_match(baseline.predict(sample), sample.answers)
        for kind in ("all", normalize_answer_type(sample.answer_type)):
            score = self.baselines.setdefault(split, {}).setdefault(kind, [0, 0])
            score[0] += right
            score[1] += 1

    def findings(self) -> Iterator[dict[str, Any]]:
        """Yield what is wrong with files and samples."""
        for split, text in self.unread.items():
            yield finding("format", text, split=split)
        if self.repeated_ids.count:
            text = f"{self.repeated_ids.count} ids occur more than once, in two splits or in one"
            yield finding("duplicates", text, self.repeated_ids)
        for split, tally in self.tallies.items():
            if tally.repeated.count:
                text = f"{tally.repeated.count} samples repeat images, question and answers of another one"
                yield finding("duplicates", text, tally.repeated, split)
            if tally.empty.count:
                text = f"{tally.empty.count} entries have no answer, and readers leave them out"
                yield finding("empty", text, tally.empty, split)

    def spread(self, count: int) -> list[str]:
        """Return the paths of up to `count` images at even distances, as many of each split as of the others."""
        paths = {split: [path for path, splits in self.images.values() if split in splits] for split in self.tallies}
        wanted, left = {}, count
        for number, split in enumerate(sorted(paths, key=lambda split: len(paths[split]))):
            wanted[split] = min(len(paths[split]), -(-left // (len(paths) - number)))  # what few leave, many take
            left -= wanted[split]
        chosen: dict[str, None] = {}
        for split, of_split in paths.items():
            fresh = [path for path in of_split if path not in chosen]
            number = min(wanted[split], len(fresh))
            chosen |= {fresh[at * len(fresh) // number]: None for at in range(number)}
        return list(chosen)

    def baseline_shares(self) -> dict[str, dict[str, Any]]:
        """Return for each split and answer type the share that the baseline gets right, and of how many."""
        return {
            split: {
                kind or "unknown": {"right": round(right / total, 4), "of": total}
                for kind, (right, total) in scores.items()
            }
            for split, scores in self.baselines.items()
        }

    def unseen_shares(self) -> dict[str, float]:
        """Return for each split the share of samples none of whose answers occurs in the training split."""
        return {
            split: round(count / self.tallies[split].samples, 4)
            for split, count in self.unseen.items()
            if split in self.tallies
        }

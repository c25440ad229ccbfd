# SPDX-License-Identifier: Apache-2.0
"""Checks a data set before anything is trained on it: counts, images, repeats, leaks, lengths, text-only scores.

Samples stream by once, images are decoded once. What is found is told with ids and with image names below the data
set's folder, never with questions, answers or reports, unless they are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ConfigError, did_you_mean
from .check_images import ImageChecks
from .check_texts import TextChecks
from .datasets_index import find_source
from .label_review import LabelReview
from .reading import DatasetError, Layout
from .tallies import SplitTally, finding, shared_groups

# What can be wrong. A finding of a kind that is not allowed fails the check.
KINDS = {
    "format": "files that cannot be read as samples",
    "counts": "other numbers than the data set's authors publish",
    "missing": "image files that are not there",
    "corrupt": "image files that cannot be decoded",
    "duplicates": "ids, samples or pictures that occur more than once",
    "empty": "entries without an answer, from which nothing can be learnt; readers leave them out",
    "leakage": "images, studies or patients that are in two splits",
}
OWN_DATA = ("jsonl", "csv", "imagefolder")  # whose labels nobody else has reviewed


@dataclass
class Check:
    """What a check found: a report for JSON, and pictures with captions for the contact sheet."""

    report: dict[str, Any]
    sheet: list[tuple[Image.Image | None, str]]


def check_dataset(
    dataset: str,
    root: str | os.PathLike[str],
    *,
    language: str | None = None,
    allow: Collection[str] = (),
    count_tokens: Callable[[str], int] | None = None,
    sheet_images: int = 20,
    show_text: bool = False,
    workers: int | None = None,
) -> Check:
    """Check all splits of a data set. `report["passed"]` says whether nothing was found but what is allowed.

    Args:
        dataset: slug of the data set.
        root: its folder.
        language: as for reading.
        allow: kinds of findings, some of `KINDS`, that do not fail the check.
        count_tokens: gives the number of tokens of a text.
        sheet_images: pictures for the contact sheet, spread evenly over splits and images.
        show_text: put questions and answers under these pictures, and into the list of labels to review.
        workers: processes that decode images.

    Raises:
        ConfigError: an unknown data set, language or kind.
        DatasetError: the folder is in no known layout, or no split of it can be read.
    """
    for kind in allow:
        if kind not in KINDS:
            raise ConfigError(f"Unknown kind {kind!r}{did_you_mean(kind, KINDS)}; expected some of {', '.join(KINDS)}")
    source = find_source(dataset)
    layout = source.recognise(root)
    review = LabelReview(show_text=show_text) if dataset in OWN_DATA else None
    texts = TextChecks(os.path.abspath(root), review, show_text)
    texts.read(dataset, language, count_tokens)
    chosen = texts.spread(sheet_images)
    images = ImageChecks(texts.root, texts.images)
    images.examine(chosen, workers)
    leakage = [*shared_groups(texts.tallies), *images.shared()]
    listed = listed_counts(layout, root)
    published, not_compared = compare_counts(layout, texts.tallies, language, incomplete=texts.unread, listed=listed)
    findings = [*texts.findings(), *published, *images.findings(), *leak_findings(leakage)]
    findings = [{**found, "allowed": found["kind"] in allow} for found in findings]
    report = {
        "dataset": dataset,
        "title": source.title,
        "layout": layout.name,
        "licences": sorted({licence for tally in texts.tallies.values() for licence in tally.licences}),
        "credentialed": any(tally.credentialed for tally in texts.tallies.values()),
        "language": language,
        "passed": all(found["allowed"] for found in findings),
        "findings": findings,
        "splits": {split: tally.facts() for split, tally in texts.tallies.items()},
        "listed": listed,
        "incomplete_splits": sorted(texts.unread),
        "notes": texts.notes,
        "published": {split: dict(counts) for split, counts in layout.published.items()},
        "published_not_compared": not_compared,
        "images": images.summary(),
        "leakage": leakage,
        "near_duplicates": images.near(),
        "text_only_baseline": texts.baseline_shares(),
        "answers_not_seen_in_training": texts.unseen_shares(),
        "labels_to_review": texts.review.findings(images.pixels_by_key()) if texts.review else [],
    }
    return Check(report, [(images.thumbnails.get(path), texts.captions[path]) for path in chosen])


def listed_counts(layout: Layout, root: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """Return what a data set's files list, by split; {} where nothing counts it, or a file cannot be read.

    What cannot be read is a finding already, by what the reader says.
    """
    try:
        listed = layout.listed(Path(os.path.abspath(root))) if layout.listed else {}
    except DatasetError:
        return {}
    return {split: dict(counts) for split, counts in listed.items()}


def compare_counts(
    layout: Layout,
    tallies: Mapping[str, SplitTally],
    language: str | None,
    *,
    incomplete: Collection[str] = (),
    listed: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return findings where counts differ from the published ones, and the published numbers that are not compared.

    Numbers of one language are compared where that language or all are read, the others where all are. `all` stands
    for the splits together; a split that is not there holds nothing; one that cannot be read to its end is left out.
    `listed` adds what files list to what samples show.
    """
    measured = {split: tally.counts() for split, tally in tallies.items()} | {"all": total_counts(tallies)}
    for split, numbers in (listed or {}).items():
        measured[split] = {**measured.get(split, {}), **numbers}
    unknown = {*incomplete, "all"} if incomplete else set()
    findings, not_compared = [], []
    for split, numbers in layout.published.items():
        counts = measured.get(split, {})
        for name, expected in numbers.items():
            of_language = name.rpartition("_")[2] if name.startswith(("samples_", "images_")) else None
            is_read = language in (None, "all", of_language) and split not in unknown
            counted = counts.get(name, 0 if of_language or not counts else None)
            if not is_read or counted is None:
                not_compared.append(f"{split} {name}")
            elif counted != expected:
                findings.append(finding("counts", f"{name}: found {counted:,}, published {expected:,}", split=split))
    return findings, not_compared


def total_counts(tallies: Mapping[str, SplitTally]) -> dict[str, int]:
    """Return the counts of all splits together: images, studies and patients that are in several are one."""
    totals: dict[str, int] = {}
    for tally in tallies.values():
        for name, count in tally.counts().items():
            totals[name] = totals.get(name, 0) + count
    for name, group in (("images", "file"), ("studies", "study"), ("patients", "patient")):
        totals[name] = len(set().union(*(tally.groups[group] for tally in tallies.values())))
    return totals


def leak_findings(leakage: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a finding for each kind of thing that two splits share."""
    nouns = {
        "image": "images, by the names of the data set,",
        "file": "image files",
        "study": "studies",
        "patient": "patients",
        "sample": "samples (images, question and answers)",
        "content": "pictures, under other names,",
    }
    for shared in leakage:
        if shared["groups"]:
            first, second = shared["splits"]
            text = f"{shared['groups']:,} of {shared['of']:,} {nouns[shared['by']]} occur in {first}, too"
            if "samples" in shared:
                text += f": {shared['samples']:,} of {shared['of_samples']:,} samples"
            yield finding("leakage", text, shared["names"], second)

# SPDX-License-Identifier: Apache-2.0
"""Two systems on the same items: paired differences with intervals and tests, overall and by slice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..records import Prediction, Sample
from . import accuracy, boxes, reports
from .intervals import (
    PERMUTATIONS,
    RESAMPLES,
    SEED,
    ClusterBootstrap,
    ItemScores,
    holm_adjusted,
    mcnemar_test,
    paired_permutation,
)
from .paired_texts import paired_text_numbers
from .predictions import (
    Problems,
    load_predictions,
    load_slices,
    load_train_samples,
    note_differing_items,
    note_other_dataset,
)
from .results import FLOAT_DIGITS, SMALL_SLICE, Interval, write_text
from .rows import Metric, clusters_of
from .slices import Slice, common_slices, vqa_slices
from .tables import METRIC_TITLES, UNDEFINED, markdown_table

SCHEMA = "pefomed-comparison/1"
NO_ITEM = "no item"
ONE_CLUSTER = "fewer than two clusters (images)"


@dataclass
class ComparedRow:
    """One metric on one slice: the two numbers (0..1; CIDEr 0..10), first minus second, and how surprising that is.

    `p_permutation` exchanges the systems for whole images and is the one to quote; `p_holm` is the same, adjusted for
    all slices of the table, null on the rows over all items. `p_mcnemar`, of 0/1 scores only, takes items as
    independent; `only_first` and `only_second` are the items that one system alone has right. What is null says why in
    `reason`.
    """

    metric: str
    slice: str
    value: str
    answer_type: str
    items: int
    clusters: int
    first: float | None
    second: float | None
    difference: float | None
    interval: Interval | None
    p_permutation: float | None
    p_holm: float | None = None
    p_mcnemar: float | None = None
    only_first: int | None = None
    only_second: int | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """What the row is called in a table."""
        title = METRIC_TITLES.get(self.metric, self.metric)
        part = "" if self.slice == "overall" else self.value or self.slice.replace("_", " ")
        return ", ".join(text for text in (title, part, self.answer_type) if text)


@dataclass
class Comparison:
    """What `compare` finds. `left_out` counts the items of each file that the other does not have, `control` names the
    one under which both were made."""

    task: str
    first: str
    second: str
    items: int
    left_out: tuple[int, int]
    rows: list[ComparedRow]
    resamples: int = RESAMPLES
    permutations: int = PERMUTATIONS
    seed: int = SEED
    control: str = ""
    schema: str = SCHEMA


def compare(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    intersect: bool = False,
    train_samples: str | os.PathLike[str] | None = None,
    slices: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Compare two prediction files about the same items.

    Args:
        intersect: compare on the ids that both have; without it, other ids in one file are an error.
        train_samples: for the slice of answers that never occur in training.
        slices: a CSV table with a column `id` and others to slice by.
        out: where to write the comparison, ending in `.json`; the table goes beside it as `.md`.

    Raises:
        PeFoMedError: files are missing, malformed, about other items, or not made under the same control; all
            problems at once.
        ConfigError: `out` does not end in `.json`.
    """
    if out is not None and Path(out).suffix != ".json":
        raise ConfigError(f"out: found {out}, expected a file name that ends in .json")
    problems = Problems()
    read = [load_predictions(path, problems) for path in (first, second)]
    shared = {item.id for item in read[0]} & {item.id for item in read[1]}
    left_out = (len(read[0]) - len(shared), len(read[1]) - len(shared))
    one, other = read
    if intersect and shared:
        one, other = ([item for item in items if item.id in shared] for items in read)
    note_differing_items(Path(second), other, one, problems, f"{first}; --intersect leaves such ids out")
    under = [items[0].control if items else "" for items in read]
    if all(read) and under[0] != under[1]:
        names = [f"the control {name}" if name else "no control" for name in under]
        text = (
            f"its answers were given under {names[1]}, those of {first} under {names[0]}; `pefomed score --control` "
        )
        problems.add(Path(second), text + "sets a model beside its controls")
    train: list[Sample] = []
    if train_samples is not None and one:
        train = load_train_samples(train_samples, one[0].task, problems)
        note_other_dataset(Path(train_samples), train, one, problems)
    columns = load_slices(slices, one, problems) if slices is not None else {}
    problems.raise_if_any()
    by_id = {item.id: item for item in other}
    other = [by_id[item.id] for item in one]
    if one[0].task == "vqa":
        parts = vqa_slices(one, train, columns)
    else:
        parts = [Slice("overall", "", list(range(len(one)))), *common_slices(one, columns)]
    comparison = Comparison(
        *(one[0].task, Path(first).name, Path(second).name, len(one), left_out, compare_items(one, other, parts)),
        control=one[0].control,
    )
    if out is not None:
        write_text(Path(out).with_suffix(".md"), markdown_comparison(comparison))
        stored = json.loads(json.dumps(asdict(comparison)), parse_float=lambda text: round(float(text), FLOAT_DIGITS))
        write_text(out, json.dumps(stored, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return comparison


def compare_items(
    first: Sequence[Prediction], second: Sequence[Prediction], parts: Sequence[Slice]
) -> list[ComparedRow]:
    """Return one row a metric and slice, of two systems' answers to the same items in the same order.

    Slices of the same items as an earlier one are left out: they would only make Holm's adjustment stricter.
    """
    clusters = clusters_of(first)
    known: dict[tuple[int, ...], Slice] = {}
    for part in parts:
        known.setdefault(tuple(part.positions), part)
    rows = []
    for metric, score in _metrics(first):
        one, other = score(first), score(second)
        rows += [_compared(metric, one, other, clusters, part) for part in known.values()]
    tested = [row for row in rows if row.slice != "overall" and row.p_permutation is not None]
    adjusted = holm_adjusted([row.p_permutation for row in tested if row.p_permutation is not None])
    for row, p_value in zip(tested, adjusted, strict=True):
        row.p_holm = p_value
    return rows + (_compared_texts(first, second, clusters) if first[0].task in ("caption", "report") else [])


def _metrics(items: Sequence[Prediction]) -> list[tuple[Metric, Callable[[Sequence[Prediction]], ItemScores]]]:
    """Return the metrics of a task that are sums over items, so that slices can be compared."""
    if items[0].task == "vqa":
        return [(accuracy.ACCURACY, accuracy.score_answers)]
    if items[0].task == "refer":
        return [
            (boxes.MEAN_IOU, boxes.score_boxes),
            (boxes.ACCURACY_AT_IOU, lambda found: boxes.reached(boxes.score_boxes(found))),
        ]
    token_f1 = accuracy.TOKEN_METRICS[0]
    text = (token_f1, lambda found: accuracy.score_tokens(found)[token_f1.name])
    if reports.why_no_exact_facts(items):
        return [text]
    return [(reports.F1, lambda found: reports.score_facts(found)[reports.F1.name]), text]


def _compared_texts(
    first: Sequence[Prediction], second: Sequence[Prediction], clusters: Sequence[str]
) -> list[ComparedRow]:
    """Return the rows of numbers of the whole corpus, over all items: they are not sliced."""
    rows = []
    for metric, number in paired_text_numbers(first, second, clusters).items():
        row = ComparedRow(
            metric, "overall", "", "", len(first), len(set(clusters)), number.first, number.second, None, None, None
        )
        if number.first is not None and number.second is not None:
            row.difference = number.first - number.second
        row.interval, row.p_permutation = number.interval, number.p_value
        row.reason = number.reason or ("" if number.interval else ONE_CLUSTER)
        rows.append(row)
    return rows


def _compared(
    metric: Metric, first: ItemScores, second: ItemScores, clusters: Sequence[str], part: Slice
) -> ComparedRow:
    positions = np.asarray(part.positions, dtype=np.intp)
    kept = [clusters[at] for at in positions]
    one, other = first.take(positions), second.take(positions)
    row = ComparedRow(
        metric.name, part.name, part.value, part.answer_type, len(kept), len(set(kept)), None, None, None, None, None
    )
    values = [float(s.numerators.sum() / s.denominators.sum()) if s.denominators.sum() else None for s in (one, other)]
    row.first, row.second = values
    if row.first is None or row.second is None:
        row.reason = metric.reason if kept else NO_ITEM
        return row
    row.difference = row.first - row.second
    row.interval = ClusterBootstrap(kept).difference(one, other)
    row.p_permutation = paired_permutation(one, other, kept)
    row.reason = "" if row.interval else ONE_CLUSTER
    if metric.is_proportion:
        row.only_first, row.only_second, row.p_mcnemar = mcnemar_test(one, other)
    return row


def markdown_comparison(comparison: Comparison) -> str:
    """Return the comparison as a page; numbers are percentages, differences points, p-values 0..1."""
    header = ["", "n", "First", "Second", "Difference", "p", "p (Holm)", "Only first", "Only second", "p (McNemar)"]
    lines = []
    for row in comparison.rows:
        difference = UNDEFINED if row.difference is None else f"{100 * row.difference:+.1f}"
        if row.interval:
            difference += f" ({100 * row.interval.low:+.1f} to {100 * row.interval.high:+.1f})"
        lines.append(
            [
                row.name,
                f"{row.items:,}" + ("*" if row.items < SMALL_SLICE else ""),
                *(UNDEFINED if value is None else f"{100 * value:.1f}" for value in (row.first, row.second)),
                difference,
                *(_p(row.p_permutation), _p(row.p_holm)),
                *("-" if count is None else f"{count:,}" for count in (row.only_first, row.only_second)),
                _p(row.p_mcnemar),
            ]
        )
    notes = [
        f"- First: `{comparison.first}`. Second: `{comparison.second}`. Difference: first minus second, points, with "
        f"95 % intervals (paired bootstrap over images, {comparison.resamples:,} resamples, seed {comparison.seed}).",
        f"- p: permutation test, the systems exchanged for whole images, at most {comparison.permutations:,} times; "
        "Holm: the same, adjusted for all slices of the table. McNemar: exact, items taken as independent.",
        *(f"- {row.name}: {UNDEFINED}, {row.reason}." for row in comparison.rows if row.reason),
    ]
    if any(row.items < SMALL_SLICE for row in comparison.rows):
        notes.append(f"- \\* fewer than {SMALL_SLICE} items: read with care.")
    if comparison.control:
        notes.append(f"- Both were made under the control {comparison.control}: this compares no models' ability.")
    if any(comparison.left_out):
        only_first, only_second = comparison.left_out
        notes.append(f"- Left out: {only_first:,} items that only the first file has, {only_second:,} of the second.")
    title = f"# Comparison: {comparison.task}, {comparison.items:,} items in both"
    return "\n\n".join([title, markdown_table(header, lines, left=1), "\n".join(notes)]) + "\n"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"

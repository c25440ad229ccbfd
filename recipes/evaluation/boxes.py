# SPDX-License-Identifier: Apache-2.0
"""Boxes of [refer] answers: strict parsing, intersection over union, accuracy at IoU 0.5, beside trivial boxes."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence

from ..records import Prediction, Sample
from .intervals import ItemScores
from .results import Row
from .rows import Metric, Undefined, build_row, clusters_of
from .slices import Slice, common_slices

Box = tuple[int, int, int, int]

PROTOCOL = "pefomed-strict-refer-1"
IOU_THRESHOLD = 0.5
CENTRE_BOX: Box = (25, 25, 75, 75)
MEAN_IOU = Metric("mean_iou", is_proportion=False)
ACCURACY_AT_IOU = Metric(f"accuracy_at_iou_{IOU_THRESHOLD}", is_proportion=True)

_BOX = re.compile(r"\{<([0-9]{1,3})><([0-9]{1,3})><([0-9]{1,3})><([0-9]{1,3})>\}")


def parse_box(text: str) -> Box | None:
    """Return `(x1, y1, x2, y2)` from `{<x1><y1><x2><y2>}`, or `None` (unparsed).

    Integers 0..100, shares of the width and height from the top left corner, with x1 < x2 and y1 < y2. Nothing may
    stand around the box but blanks, and nothing is clamped, swapped or guessed.
    """
    match = _BOX.fullmatch(text.strip())
    if match is None:
        return None
    x1, y1, x2, y2 = (int(number) for number in match.groups())
    return (x1, y1, x2, y2) if x1 < x2 <= 100 and y1 < y2 <= 100 else None


def intersection_over_union(box: Box, other: Box) -> float:
    """Return the share 0..1 of the union's area that both boxes cover."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    common = max(width, 0) * max(height, 0)
    return common / (_area(box) + _area(other) - common)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def best_iou(box: Box | None, references: Sequence[str]) -> float:
    """Return the IoU with the nearest reference box; an unparsed prediction (`None`) has 0."""
    boxes = [parsed for parsed in map(parse_box, references) if parsed is not None]
    return max((intersection_over_union(box, reference) for reference in boxes), default=0.0) if box else 0.0


def score_boxes(predictions: Sequence[Prediction]) -> ItemScores:
    """Return each predicted box's IoU with the nearest reference, over 1 each; an unparsed one has 0."""
    boxes = [parse_box(item.prediction) for item in predictions]
    values = [best_iou(box, item.answers) for box, item in zip(boxes, predictions, strict=True)]
    return ItemScores.of(values, unparsed=[box is None for box in boxes])


def reached(scores: ItemScores) -> ItemScores:
    """Return 1 where the IoU is at least 0.5 and 0 elsewhere."""
    return ItemScores((scores.numerators >= IOU_THRESHOLD).astype(float), scores.denominators, scores.unparsed)


def median_box(train: Sequence[Sample]) -> Box | None:
    """Return the box of the training samples' median corners, or `None` where no reference parses."""
    boxes = [box for box in (parse_box(sample.answers[0]) for sample in train) if box is not None]
    if not boxes:
        return None
    x1, y1, x2, y2 = (round(statistics.median(corner)) for corner in zip(*boxes, strict=True))
    return (x1, y1, x2, y2)


def refer_rows(
    predictions: Sequence[Prediction],
    controls: Mapping[str, Sequence[Prediction]],
    train: Sequence[Sample],
    columns: Mapping[str, Sequence[str]] | None = None,
) -> list[Row]:
    """Return mean IoU and the accuracy at IoU 0.5, over all items and on slices; unparsed predictions count as IoU 0.

    Beside them the box over the middle quarter of the image, and the box of the training samples' median corners.
    Both numbers are 0..1, higher is better; their denominator is the items. `columns` are a user's own slices.
    """
    clusters = clusters_of(predictions)

    def everywhere(box: Box) -> ItemScores:
        return ItemScores.of([best_iou(box, item.answers) for item in predictions])

    model = score_boxes(predictions)
    scored_controls = {name: score_boxes(items) for name, items in controls.items()}
    typical = median_box(train)
    no_boxes = Undefined("no training boxes were given")
    baselines: dict[str, ItemScores | Undefined] = {
        "centre_box": everywhere(CENTRE_BOX),
        "median_train_box": everywhere(typical) if typical else no_boxes,
    }

    def row(metric: Metric, change: Callable[[ItemScores], ItemScores], part: Slice) -> Row:
        return build_row(
            metric,
            change(model),
            clusters=clusters,
            baselines={name: s if isinstance(s, Undefined) else change(s) for name, s in baselines.items()},
            controls={name: change(scores) for name, scores in scored_controls.items()},
            positions=part.positions,
            slice=part.name,
            value=part.value,
            headline=part.is_headline,
        )

    overall = Slice("overall", "", list(range(len(predictions))), is_headline=True)
    parts = [overall, *common_slices(predictions, columns or {})]
    metrics = ((MEAN_IOU, lambda scores: scores), (ACCURACY_AT_IOU, reached))
    return [row(metric, change, part) for part in parts for metric, change in metrics]

# SPDX-License-Identifier: Apache-2.0
"""Strict boxes, their overlap and the rows of a [refer] run."""

from __future__ import annotations

import pytest

from pefomed_recipes.evaluation.boxes import (
    best_iou,
    intersection_over_union,
    median_box,
    parse_box,
    refer_rows,
)
from pefomed_recipes.records import Prediction, Sample


def test_box_is_read() -> None:
    assert parse_box(" {<0><5><40><100>}\n") == (0, 5, 40, 100)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{<10><10><20>}",
        "{<10><10><20><20>",
        "<10><10><20><20>",
        "{<20><10><10><20>}",
        "{<10><20><20><10>}",
        "{<10><10><10><20>}",
        "{<10><10><20><101>}",
        "{<-1><10><20><20>}",
        "{<1.5><10><20><20>}",
        "{<10><10><20><20>} {<1><1><2><2>}",
        "the box is {<10><10><20><20>}",
        "{< 10><10><20><20>}",
        "{<\u0661><10><20><20>}",
    ],
)
def test_anything_but_one_exact_box_is_unparsed(text: str) -> None:
    assert parse_box(text) is None


def test_overlap_by_hand() -> None:
    assert intersection_over_union((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert intersection_over_union((0, 0, 10, 10), (5, 5, 15, 15)) == pytest.approx(25 / 175)
    assert intersection_over_union((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert intersection_over_union((0, 0, 10, 10), (50, 50, 60, 60)) == 0
    assert intersection_over_union((0, 0, 20, 20), (5, 5, 15, 15)) == pytest.approx(100 / 400)


def test_the_nearest_of_several_references_counts() -> None:
    assert best_iou((0, 0, 10, 10), ["{<50><50><60><60>}", "{<0><0><10><20>}"]) == 0.5
    assert best_iou(None, ["{<0><0><10><20>}"]) == 0


def _prediction(name: str, reference: str, prediction: str) -> Prediction:
    return Prediction(name, "refer", "lesion", [reference], prediction, image_id=name)


def test_rows_by_hand() -> None:
    predictions = [
        _prediction("1", "{<25><25><75><75>}", "{<25><25><75><75>}"),  # IoU 1, centre box 1
        _prediction("2", "{<0><0><10><10>}", "{<0><0><10><20>}"),  # IoU 0.5, centre box 0
        _prediction("3", "{<0><0><10><10>}", "upper left"),  # unparsed
        _prediction("4", "{<0><0><50><50>}", "{<60><60><70><70>}"),  # IoU 0, centre box 625 / 4375
    ]
    train = [Sample(str(at), "refer", [], "lesion", [f"{{<{at}><0><{at + 10}><10>}}"]) for at in (0, 10, 80)]
    mean_iou, at_half = refer_rows(predictions, {"blank_image": predictions}, train)
    assert mean_iou.score.value == pytest.approx(1.5 / 4)
    assert (mean_iou.score.unparsed, mean_iou.score.interval) == (1, None)
    assert mean_iou.score.cluster_interval is not None
    assert mean_iou.baselines["centre_box"].value == pytest.approx((1 + 625 / 4375) / 4)
    assert mean_iou.baselines["median_train_box"].value == pytest.approx(100 / 2500 / 4)  # {<10><0><20><10>}
    assert mean_iou.controls["blank_image"].value == mean_iou.score.value
    assert mean_iou.differences["centre_box"].value == pytest.approx((0.5 - 625 / 4375) / 4)
    assert (at_half.score.numerator, at_half.score.denominator) == (2, 4)
    assert at_half.baselines["centre_box"].value == 0.25


def test_training_boxes_are_summed_up_by_their_medians() -> None:
    train = [Sample("", "refer", [], "", [text]) for text in ("{<0><2><10><20>}", "{<4><2><30><20>}", "no box")]
    assert median_box(train) == (2, 2, 20, 20)
    assert median_box([]) is None
    [mean_iou, _] = refer_rows([_prediction("1", "{<0><0><10><10>}", "")], {}, [])
    assert mean_iou.baselines["median_train_box"].value is None
    assert mean_iou.baselines["median_train_box"].reason

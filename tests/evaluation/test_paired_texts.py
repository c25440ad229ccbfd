# SPDX-License-Identifier: Apache-2.0
"""Two systems' texts: tests and intervals are those of texts that are really exchanged, and really drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from pefomed_recipes.evaluation.cider import TOO_FEW, cider, cider_of_items
from pefomed_recipes.evaluation.comparing import compare_items
from pefomed_recipes.evaluation.intervals import ClusterBootstrap
from pefomed_recipes.evaluation.paired_texts import COMPARED, paired_text_numbers
from pefomed_recipes.evaluation.slices import Slice
from pefomed_recipes.evaluation.text_metrics import bleu, rouge_l
from pefomed_recipes.evaluation.text_rows import lexical_rows
from pefomed_recipes.evaluation.tokens import report_tokens
from pefomed_recipes.records import Prediction

from .report_texts import report_pairs

ITEMS = 10
CLUSTERS = [f"study {at // 2}" for at in range(ITEMS)]  # two reports each


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are the same on a machine with Java."""
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def systems() -> tuple[list[Prediction], list[Prediction]]:
    """Reports of two systems about the same studies: the second says half of it, but the same of the last study."""
    texts, references = report_pairs()
    first = [
        Prediction(f"{at}", "report", "", references[40 + at], texts[40 + at], study_id=CLUSTERS[at])
        for at in range(ITEMS)
    ]
    half = [replace(item, prediction=item.prediction[: len(item.prediction) // 2]) for item in first]
    return first, [*half[:-2], *first[-2:]]


def numbers(items: Sequence[Prediction]) -> dict[str, float]:
    """The numbers of these texts, and of nothing else."""
    said = [report_tokens(item.prediction) for item in items]
    references = [[report_tokens(text) for text in item.answers] for item in items]
    found: dict[str, float] = {}
    for family in (bleu, rouge_l, cider):
        found |= {name: float(value[0]) for name, value in family(said, references)(np.ones((1, len(items)))).items()}
    return {name: found[name] for name in COMPARED}


Systems = tuple[list[Prediction], list[Prediction]]


def test_the_p_value_is_that_of_all_exchanges_made_by_hand(systems: Systems) -> None:
    first, second = systems
    differences: dict[str, list[float]] = {name: [] for name in COMPARED}
    for exchanged in product([False, True], repeat=ITEMS // 2):
        pairs = [(b, a) if exchanged[at // 2] else (a, b) for at, (a, b) in enumerate(zip(first, second, strict=True))]
        one, other = (numbers([pair[side] for pair in pairs]) for side in (0, 1))
        for name in COMPARED:
            differences[name].append(one[name] - other[name])
    for name, number in paired_text_numbers(first, second, CLUSTERS).items():
        found = np.asarray(differences[name])
        assert number.first is not None and number.second is not None
        assert number.first - number.second == pytest.approx(found[0])
        far = np.minimum((found >= found[0] - 1e-12).mean(), (found <= found[0] + 1e-12).mean())
        assert number.p_value == pytest.approx(min(2 * far, 1))


def test_the_interval_is_that_of_resamples_drawn_for_both_systems(systems: Systems) -> None:
    first, second = systems
    rows = {r.metric: r for r in lexical_rows({"model": first, "other": second}, ClusterBootstrap(CLUSTERS))}
    for name, number in paired_text_numbers(first, second, CLUSTERS).items():
        assert number.interval == rows[name].differences["other"].interval is not None
        assert (number.first, number.second) == (rows[name].score.value, rows[name].controls["other"].value)


def test_the_other_way_round_only_signs_change(systems: Systems) -> None:
    there, back = paired_text_numbers(*systems, CLUSTERS), paired_text_numbers(*systems[::-1], CLUSTERS)
    for name in COMPARED:
        one, other = there[name].interval, back[name].interval
        assert one is not None and other is not None
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
        assert there[name].p_value == pytest.approx(back[name].p_value)


def test_equal_systems_do_not_differ(systems: Systems) -> None:
    for number in paired_text_numbers(systems[0], systems[0], CLUSTERS).values():
        assert number.first == number.second and number.p_value == 1
        assert number.interval is not None and (number.interval.low, number.interval.high) == (0, 0)


def test_one_study_has_numbers_and_no_test(systems: Systems) -> None:
    for number in paired_text_numbers(*systems, ["one"] * ITEMS).values():
        assert number.first is not None and (number.interval, number.p_value) == (None, None)


def test_cider_of_equal_references_is_not_defined_and_says_why(systems: Systems) -> None:
    first, second = ([replace(item, answers=["The lungs are clear."]) for item in items] for items in systems)
    rows = {row.metric: row for row in compare_items(first, second, [Slice("overall", "", list(range(ITEMS)))])}
    row = rows["cider_d"]
    assert (row.first, row.difference, row.interval, row.p_permutation, row.reason) == (
        None,
        None,
        None,
        None,
        TOO_FEW,
    )
    assert rows["bleu_4"].p_permutation is not None


def test_the_mean_of_the_items_cider_is_cider() -> None:
    texts, references = (each[:100] for each in report_pairs())
    said, known = [report_tokens(text) for text in texts], [[report_tokens(t) for t in each] for each in references]
    whole = cider(said, known)(np.ones((1, len(said))))
    for name, items in cider_of_items(said, known).items():
        assert np.mean(items) == pytest.approx(whole[name][0], rel=1e-12)

# SPDX-License-Identifier: Apache-2.0
"""Historic protocols: each quirk on a case that was worked out by hand, and none of them in our own rules."""

from __future__ import annotations

import pytest

from pefomed_recipes.evaluation.accuracy import score_answers
from pefomed_recipes.evaluation.compat import llava_med, lmms_eval, medevalkit, pefomed
from pefomed_recipes.records import Prediction


def _items(*rows: tuple[str, str], kind: str = "CLOSED", **labels: object) -> list[Prediction]:
    """(reference, prediction) pairs of one answer type."""
    return [
        Prediction(str(at), "vqa", "Is it?", [reference], said, kind, **labels)  # type: ignore[arg-type]
        for at, (reference, said) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Left Lung.", "left lung"),
        ("none", "0"),
        ("zero", "0"),
        ("Two", "2"),
        ("A", ""),
        ("e.g. a.b. c.", "eg ab c"),  # no look-behind: every full stop that no digit follows
        (".5", ".5"),
        ("5.", "5"),
        ("2.5 cm", "2.5 cm"),
        ("1,000 cells/ul", "1000 cellsul"),  # a comma between digits deletes all punctuation
        ("cells/ul", "cells ul"),
        ("left/ right", "left right"),
        ("yes, left", "yes left"),
        ("-5", "5"),
        ("10-20", "10 20"),
        ("t2-weighted", "t2 weighted"),
        ("x-ray", "xray"),
        ("apex ray", "apexray"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),
        ("a\tb\nc", "b c"),
    ],
)
def test_pefomed_normaliser(text: str, expected: str) -> None:
    assert pefomed.normalize(text) == expected


def test_pefomed_removes_the_first_32_full_stops_only() -> None:
    assert pefomed.normalize("." * 40) == "." * 8
    assert pefomed.normalize("x." * 32) == "x" * 32
    assert pefomed.normalize("x." * 33) == "x" * 33 + "."


def test_pefomed_numbers_are_by_the_types_as_they_are_written() -> None:
    items = [
        *_items(("yes", "Yes."), ("none", "0"), ("no", "yes"), question_types=["PRES"]),
        *_items(("A", ""), kind="CLOSED ", question_types=["PRES", "ABN"]),
    ]
    assert pefomed.numbers(items) == {
        "overall": (75.0, 4),  # an empty answer is right, and so is 0 for none
        "answer type CLOSED": (66.67, 3),
        "question type PRES": (66.67, 3),
        "answer type CLOSED ": (100.0, 1),
        "question type PRES, ABN": (100.0, 1),
    }
    assert score_answers(items).numerators.sum() == 1


def test_llava_med_leaves_wrong_answers_out_of_the_denominator() -> None:
    items = _items(
        ("yes", "yes"),
        ("no", "no"),
        ("no", "it looks normal"),  # "no" is part of "normal"
        ("no", "yes"),  # left out
        ("yes", "no"),  # left out
        ("yes", "no abnormality"),  # left out
        ("yes", "the lungs"),
    )
    numbers = llava_med.numbers(items)
    assert numbers["closed (run_eval)"] == (75.0, 4)
    assert numbers["closed (run_eval_batch)"] == (pytest.approx(300 / 7), 7)
    assert numbers["open recall"] == (None, 0)
    strict = score_answers(items)
    assert 100 * strict.numerators.mean() == pytest.approx(28.6, abs=0.05)  # 2 of 7


def test_llava_med_never_counts_an_answer_that_is_neither_yes_nor_no() -> None:
    numbers = llava_med.numbers(_items(("left", "left"), ("yes", "yes")))
    assert (numbers["closed (run_eval)"], numbers["closed (run_eval_batch)"]) == ((50.0, 2), (100.0, 2))


def test_llava_med_takes_a_reply_with_both_answers_as_right() -> None:
    assert llava_med.numbers(_items(("no", "yes and no"), ("yes", "yes and no")))["closed (run_eval)"] == (100.0, 2)


def test_llava_med_word_scores_are_not_clipped() -> None:
    assert llava_med.word_scores("left left left", "left lung") == pytest.approx((6 / 7, 1.0, 0.75))
    assert llava_med.word_scores("right", "left lung") == (0, 0, 0)
    assert llava_med.word_scores("", "left lung") == (0, 0, 0)
    assert llava_med.word_scores("the X-ray", "x ray") == (1, 1, 1)
    assert llava_med.found_words("left left lung base", "left lung") == 2 / 4
    assert llava_med.found_words("", "left lung") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes (probably)", "yes"),
        ("Yep!", "yes"),
        ("TRUE", "yes"),
        ("Nope.", "no"),
        ("Yes, there is.", "yes there is"),
        ("2.5 cm", "2 5 cm"),
        ("X-Ray", "xray"),
        ("chest x-ray", "chest x ray"),
        ("正常", "yes"),
        ("异常", "no"),
        ("左肺(上)", "左肺"),
    ],
)
def test_lmms_eval_normaliser(text: str, expected: str) -> None:
    assert lmms_eval.normalize(text) == expected


def test_lmms_eval_numbers_by_group() -> None:
    items = _items(("Yes", "yeah"), ("2.5", "2 5"), ("Yes", "Yes, it is"), modality="CT", question_types=["SIZE"])
    assert lmms_eval.numbers(items) == {
        name: (pytest.approx(200 / 3), 3)
        for name in ("overall", "language en", "answer type closed", "modality ct", "content type size")
    }


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("The answer is Left lung", " left lung"),
        ("\\boxed{Left}. So it is.", "left"),
        ("Well. <answer> No </answer>", "no"),
        ("**Answer**: no, answer: yes", " yes"),
        ("Left lung.", "left lung."),
    ],
)
def test_medevalkit_cuts_replies(reply: str, kept: str) -> None:
    assert medevalkit.cut_reply(reply) == kept


def test_medevalkit_numbers_by_hand() -> None:
    items = _items(
        ("yes", "Yes, it is."),
        ("no", "normal"),  # right: "no" is part of it
        ("yes", "yes, it is abnormal"),  # wrong: "no" is part of "abnormal" too
        ("left lung", "left lung"),
        ("left lung", "The answer is left lung"),  # wrong by its leading blank
        ("left lung", "lung lung base"),  # sets: 1 of 2 and 1 of 2
    )
    numbers = medevalkit.numbers(items)
    assert numbers["closed"] == (pytest.approx(200 / 3), 3)  # although the data set calls all six closed
    assert numbers["open"] == (pytest.approx(100 / 3), 3)
    assert numbers["overall"] == (50.0, 6)
    assert numbers["open precision"] == (pytest.approx(250 / 3), 3)
    assert numbers["open F1"] == (pytest.approx(250 / 3), 3)


def test_every_protocol_says_what_is_odd_about_it() -> None:
    for protocol in (pefomed, llava_med, lmms_eval, medevalkit):
        assert len(protocol.QUIRKS) >= 5
        assert all(not quirk.endswith(".") for quirk in protocol.QUIRKS)

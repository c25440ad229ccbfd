# SPDX-License-Identifier: Apache-2.0
"""The normaliser's promises, the parser of closed answers and the majority baseline."""

from __future__ import annotations

import random

import pytest

from pefomed_recipes.answers import (
    MajorityBaseline,
    closed_options,
    is_exact_match,
    normalize_answer,
    normalize_question_types,
    parse_closed_answer,
)
from pefomed_recipes.data.phantom_questions import questions
from pefomed_recipes.data.phantom_truth import case_seed, draw_phantom
from pefomed_recipes.records import Sample


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("  The Left Lung. ", "left lung"),
        ("3.5 cm", "3.5 cm"),
        (".5 ml", ".5 ml"),
        ("-5 HU", "-5 hu"),
        ("\u22125 HU", "-5 hu"),
        ("50 %", "50 %"),
        (">5 cm", ">5 cm"),
        ("1,000 cells/ul", "1000 cells/ul"),
        ("10-20", "10-20"),
        ("T2-weighted", "t2 weighted"),
        ("P.A. view", "pa view"),
        ("yes.No", "yes no"),
        ("\u201cYes\u201d", "yes"),
        ("**Yes**", "yes"),
        ("Crohn\u2019s disease", "crohns disease"),
        ("\uff23\uff34", "ct"),
        ("两侧。", "两侧"),
        ("two", "2"),
    ],
)
def test_normalizer_keeps_what_carries_meaning(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize("text", ["X-ray", "x ray", "XRAY", "x\u2013ray"])
def test_spellings_of_xray_are_equal(text: str) -> None:
    assert normalize_answer(f"chest {text}") == "chest xray"


def test_xray_rule_stops_at_word_borders() -> None:
    assert normalize_answer("apex ray") == "apex ray"


@pytest.mark.parametrize("text", ["A", "an", "the", "?", "-", "...", "`"])
def test_text_is_never_normalized_to_nothing(text: str) -> None:
    assert normalize_answer(text)


def test_option_letter_does_not_equal_an_empty_answer() -> None:
    assert not is_exact_match("", ["A"])
    assert is_exact_match("a.", ["A"])


def test_article_goes_only_before_a_word() -> None:
    assert normalize_answer("a mass in the lung") == "mass in lung"
    assert normalize_answer("hepatitis A") == "hepatitis a"


def test_none_is_not_zero() -> None:
    assert normalize_answer("none") == "none"
    assert not is_exact_match("none", ["0"])
    assert not is_exact_match("none", ["zero"])


def test_a_thousands_comma_does_not_change_other_punctuation() -> None:
    assert normalize_answer("1,000 left/right; upper") == "1000 left/right upper"


def test_every_period_of_a_long_text_is_removed() -> None:
    assert "." not in normalize_answer("seen. " * 60)


@pytest.mark.parametrize(
    ("one", "other"), [("5 cm", "-5 cm"), ("3.5", "35"), ("1.5", "15"), ("5 cm", "5 mm"), ("<5", ">5")]
)
def test_different_measurements_stay_different(one: str, other: str) -> None:
    assert normalize_answer(one) != normalize_answer(other)


def test_normalizing_again_changes_nothing() -> None:
    rng = random.Random(0)
    pieces = "a the x ray 0 1 7 , . - ' / : % > ½ ² ß İ ` | _ ( ) & no \u2212 \u2013 A 1,000 . .".split() + [" "] * 4
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 8)))
        once = normalize_answer(text)
        assert normalize_answer(once) == once, text
        assert once or not text.strip(), text


@pytest.mark.parametrize("prediction", ["", "   ", "\n"])
def test_blank_prediction_is_never_correct(prediction: str) -> None:
    assert not is_exact_match(prediction, ["yes", " ", ""])
    assert parse_closed_answer(prediction, "Is it normal?", "yes") is None
    assert parse_closed_answer(prediction, "Which one?", "aorta") is None


@pytest.mark.parametrize(
    ("prediction", "parsed"),
    [
        ("Yes", "yes"),
        ("No.", "no"),
        ("Yes, there is no fracture.", "yes"),
        ("No evidence of a mass", "no"),
        ("The answer is no.", "no"),
        ("Answer: Yes", "yes"),
        ("yes yes yes", "yes"),
        ("normal", None),
        ("nodule", None),
        ("none", None),
        ("not seen", None),
        ("There is no mass", None),
        ("yes and no", None),
        ("Yes or no", None),
        ("yes/no", None),
        ("Yes. No.", None),
        ("yes no yes no", None),
        ("Yes; actually no", None),
        ("No, but yes on the left", None),
    ],
)
def test_first_word_decides_yes_or_no(prediction: str, parsed: str | None) -> None:
    for reference in ("Yes", "no"):  # what is read does not depend on what is wanted
        assert parse_closed_answer(prediction, "Is there a mass?", reference) == parsed


@pytest.mark.parametrize(
    ("question", "reference", "options"),
    [
        ("Is this a CT or an MRI?", "CT", {"ct", "mri"}),
        ("Is this a CT or an MRI?", "mri", {"ct", "mri"}),
        ("What is the modality, CT or MRI?", "MRI", {"ct", "mri"}),
        ("Is the plane axial, coronal or sagittal?", "coronal", {"axial", "coronal", "sagittal"}),
        ("Is the plane axial, coronal, or sagittal?", "axial", {"axial", "coronal", "sagittal"}),
        ("Is the lesion on the left or the right side?", "right", {"left", "right"}),
        ("Is it a CT or a chest x-ray?", "Chest X-ray", {"ct", "chest xray"}),
        ("Is this T1- or T2-weighted?", "T2", {"t1", "t2"}),
        ("Which side is affected?", "left", {"left", "right"}),
        ("Is there a mass or a nodule?", "yes", {"yes", "no"}),
        ("Is the heart enlarged?", "normal", set()),
        ("Is it a CT or an MRI?", "ultrasound", set()),
        ("Is it in the left lung or the right lung?", "lung", set()),
    ],
)
def test_options_come_from_the_question(question: str, reference: str, options: set[str]) -> None:
    assert set(closed_options(question, reference)) == options


@pytest.mark.parametrize(
    ("prediction", "parsed"),
    [
        ("MRI", "mri"),
        ("It is a CT scan.", "ct"),
        ("CT or MRI", None),
        ("It is not a CT", None),
        ("ultrasound", None),
        ("yes", None),
        ("structure", None),
    ],
)
def test_reply_must_name_exactly_one_option(prediction: str, parsed: str | None) -> None:
    for reference in ("CT", "MRI"):
        assert parse_closed_answer(prediction, "Is this a CT or an MRI?", reference) == parsed


def test_every_closed_question_about_phantoms_offers_two_answers_that_are_read_back() -> None:
    for at in range(200):
        for asked in questions(draw_phantom(case_seed(0, "test", at))):
            if asked.answer_type != "CLOSED":
                continue
            options = closed_options(asked.question, asked.answer)
            assert len(options) == 2, asked
            assert normalize_answer(asked.answer) in options, asked
            for option in options:
                assert parse_closed_answer(f"{option.upper()}.", asked.question, asked.answer) == option, asked


def test_without_known_options_only_an_equal_answer_is_right() -> None:
    assert parse_closed_answer("Normal.", "Is the heart enlarged?", "normal") == "normal"
    assert parse_closed_answer("not normal", "Is the heart enlarged?", "normal") == "not normal"


def test_question_types_are_split_and_cleaned() -> None:
    assert normalize_question_types(["pres, ABN ", "PRES"]) == ("PRES", "ABN")


def _train(question: str, answer: str, question_type: str, answer_type: str = "CLOSED") -> Sample:
    return Sample("", "vqa", [], question, [answer], answer_type, [question_type])


def test_majority_prefers_question_then_type_then_overall() -> None:
    train = [_train("Is there a mass?", "Yes", "PRES")] * 2
    train += [_train("Is there a mass?", "no", "PRES")]
    train += [_train("Is there an effusion?", "no", "PRES")] * 4
    train += [_train("Which organ?", "lung", "ORGAN", "OPEN")] * 3
    baseline = MajorityBaseline.fit(train)
    assert baseline.predict(_train("is there a MASS", "", "PRES")) == "yes"
    assert baseline.predict(_train("Is there a nodule?", "", "PRES")) == "no"
    assert baseline.predict(_train("Name the organ", "", "organ", "open ")) == "lung"
    assert baseline.predict(_train("Which plane?", "", "PLANE", "OPEN")) == "no"


def test_majority_does_not_depend_on_the_order_of_the_samples() -> None:
    train = [_train("Side?", answer, "POS") for answer in ("right", "left", "right", "left")]
    assert MajorityBaseline.fit(train) == MajorityBaseline.fit(train[::-1])
    assert MajorityBaseline.fit(train).predict(_train("Side?", "", "POS")) == "left"


def test_majority_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="no training sample"):
        MajorityBaseline.fit([])

# SPDX-License-Identifier: Apache-2.0
"""What is asked and said of phantoms: true, in equal shares, with no shortcut through the text."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from pefomed_recipes.answers import MajorityBaseline, closed_options, is_exact_match, normalize_answer
from pefomed_recipes.data.phantom_questions import COUNT_QUESTION_SHARE
from pefomed_recipes.data.phantoms import (
    DIFFICULTIES,
    QUESTION_TYPES,
    Phantom,
    caption,
    case_seed,
    draw_phantom,
    facts,
    questions,
    report,
)
from pefomed_recipes.evaluation.phantom_facts import report_facts
from pefomed_recipes.records import Sample


def cases(count: int, stream: str = "train", difficulty: str = "easy") -> list[Phantom]:
    return [draw_phantom(case_seed(0, stream, index), difficulty) for index in range(count)]


def samples(phantoms: list[Phantom], *, training: bool = False) -> list[Sample]:
    return [
        Sample(
            id=f"{phantom.seed}-{number}",
            task="vqa",
            image_paths=[],
            instruction=asked.question,
            answers=[asked.answer],
            answer_type=asked.answer_type,
            question_types=[asked.question_type],
        )
        for phantom in phantoms
        for number, asked in enumerate(questions(phantom, training=training))
    ]


@pytest.fixture(scope="module", params=[False, True], ids=["exam", "drill"])
def training(request: pytest.FixtureRequest) -> list[Sample]:
    """Questions about the training images, in the mix of the test and in that of the training split."""
    return samples(cases(3000), training=request.param)


def test_in_training_a_value_is_compared_with_its_image_in_pairs() -> None:
    for phantom in cases(50):
        asked = [question for question in questions(phantom, training=True) if question.answer in ("yes", "no")]
        for code in ("MODALITY", "PLANE", "ORGAN"):
            answers = [question.answer for question in asked if question.question_type == code]
            assert sorted(answers) == ["no", "yes"], (phantom.seed, code)


def test_in_training_where_something_is_is_asked_in_both_orders() -> None:
    orders: Counter[str] = Counter()
    for phantom in cases(200):
        asked = [question for question in questions(phantom, training=True) if " side?" in question.question]
        either = [question for question in asked if " or " in question.question]
        assert len(either) in (0, 2, 4)
        for first, second in zip(either[::2], either[1::2], strict=True):
            assert first.answer == second.answer
            swapped = {"left": "right", "right": "left"}
            assert [swapped.get(word, word) for word in first.question.split()] == second.question.split()
        orders.update(question.answer for question in either)
    assert min(orders["left"], orders["right"]) > 40


def test_the_majority_answer_of_each_question_string_stays_near_chance(training: list[Sample]) -> None:
    baseline = MajorityBaseline.fit(training)
    hits: dict[str, list[bool]] = {"CLOSED": [], "OPEN": []}
    for sample in samples(cases(500, "test")):
        hits[sample.answer_type].append(is_exact_match(baseline.predict(sample), sample.answers))
    share = {answer_type: sum(right) / len(right) for answer_type, right in hits.items()}
    assert share["CLOSED"] < 0.53
    assert share["OPEN"] < 0.34
    assert sum(map(sum, hits.values())) / sum(map(len, hits.values())) < 0.46


def test_both_answers_of_every_closed_question_are_met_equally_often(training: list[Sample]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in training:
        if sample.answer_type == "CLOSED":
            answers[sample.instruction][sample.answers[0]] += 1
    for question, counted in answers.items():
        total = sum(counted.values())
        assert len(counted) == 2 or total < 10, (question, counted)  # one end of a rare pair may not be met
        # four standard deviations of a fair coin
        assert abs(max(counted.values()) - total / 2) < 2 * total**0.5, (question, counted)


def test_which_questions_are_asked_does_not_tell_whether_there_is_a_lesion_or_a_finding() -> None:
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for phantom in cases(3000):
        for asked in questions(phantom):
            if asked.question_type in ("PRES", "ABN", "SIZE") and asked.answer in ("yes", "no"):
                answers[phantom.view, asked.question_type][asked.answer] += 1
    for key, counted in answers.items():
        total = sum(counted.values())
        assert abs(counted["yes"] - total / 2) < 2 * total**0.5, (key, counted)


def test_closed_questions_offer_exactly_two_answers_that_the_scorer_understands(training: list[Sample]) -> None:
    for sample in training:
        options = closed_options(sample.instruction, sample.answers[0])
        if sample.answer_type == "CLOSED":
            assert len(options) == 2 and normalize_answer(sample.answers[0]) in options, sample.instruction
        else:
            assert sample.answer_type == "OPEN" and options == ()


def test_answers_are_short_and_every_question_code_occurs(training: list[Sample]) -> None:
    assert {code for sample in training for code in sample.question_types} == set(QUESTION_TYPES)
    assert all(1 <= len(sample.answers[0].split()) <= 3 for sample in training)
    assert 10 < len(training) / 3000 < 15
    count = sum(sample.question_types == ["COUNT"] for sample in training)
    assert 0.5 * COUNT_QUESTION_SHARE < count / 3000 < COUNT_QUESTION_SHARE
    for code in ("MODALITY", "ORGAN", "PLANE", "POS", "SIZE", "COLOR"):
        types = {sample.answer_type for sample in training if sample.question_types == [code]}
        assert types == {"OPEN", "CLOSED"}


def test_answers_agree_with_the_stated_facts() -> None:
    for phantom in cases(300, "validation"):
        stated = facts(phantom)
        for asked in questions(phantom):
            answer = asked.answer
            if asked.question in ("Is there a lesion?", "Is a lesion present?", "Do you see a lesion?"):
                assert (answer == "no") == ("lesions=0" in stated)
            elif asked.question_type == "COUNT":
                assert f"lesions={answer}" in stated
            elif asked.question_type in ("PLANE", "ORGAN") and answer not in ("yes", "no"):
                assert f"{asked.question_type.lower()}={answer.lower()}" in stated
            elif asked.question_type == "SIZE" and answer not in ("yes", "no"):
                assert f"size={answer}" in stated
            elif asked.question == "Is this image normal?":
                is_normal = not phantom.lesions and not stated & {
                    "cardiomegaly=yes", "ventricles=enlarged", "gallstone=yes",
                    "effusion=left", "effusion=right", "effusion=yes",
                }  # fmt: skip
                assert answer == ("yes" if is_normal else "no")


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_parser_recovers_exactly_the_facts_from_any_report(difficulty: str) -> None:
    for phantom in cases(300, difficulty=difficulty):
        assert report_facts(report(phantom)) == facts(phantom), report(phantom)


def test_the_parser_recovers_what_a_caption_states() -> None:
    unstated = ("effusion", "cardiomegaly", "ventricles", "gallstone")
    for phantom in cases(300):
        expected = {fact for fact in facts(phantom) if not fact.startswith(unstated)}
        assert report_facts(caption(phantom)) == expected, caption(phantom)


def test_the_parser_reads_other_wordings_and_invents_nothing() -> None:
    assert report_facts("") == report_facts("The patient feels well.") == frozenset()
    assert report_facts("findings: mri. a LARGE dark lesion on the left. impression: single lesion.") == {
        "modality=mri", "size=large", "tone=dark", "side=left", "lesions=1",
    }  # fmt: skip
    assert report_facts("No large lesion on the right.") == frozenset()
    assert report_facts("Two lesions. No pleural effusion.") == {"lesions=2", "effusion=no"}
    assert report_facts("Left pleural effusion. Cardiomegaly.") == {"effusion=left", "cardiomegaly=yes"}

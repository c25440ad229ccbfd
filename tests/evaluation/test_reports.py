# SPDX-License-Identifier: Apache-2.0
"""Factual scores against the phantoms' own truth, BLEU against a hand case, and the constant text."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from pefomed_recipes.data.phantom_texts import report
from pefomed_recipes.data.phantom_truth import Phantom, case_seed, draw_phantom, facts
from pefomed_recipes.evaluation.reports import corpus_bleu, most_central, report_rows, tokens_of
from pefomed_recipes.evaluation.results import Row
from pefomed_recipes.records import Prediction, Sample

PHANTOMS = [draw_phantom(case_seed(0, "test", at)) for at in range(24)]
ANSWERED = PHANTOMS[1:] + PHANTOMS[:1]  # each gets the report of its neighbour


def _predictions(texts: list[str], references: list[str], task: str = "report") -> list[Prediction]:
    return [
        Prediction(str(at), task, "", [reference], text, study_id=f"study {at}")
        for at, (text, reference) in enumerate(zip(texts, references, strict=True))
    ]


def _reports(phantoms: list[Phantom]) -> list[str]:
    return [report(phantom) for phantom in phantoms]


def _by_metric(rows: list[Row]) -> dict[str, Row]:
    return {row.metric: row for row in rows}


def test_factual_scores_equal_those_of_the_phantoms_truth() -> None:
    rows = report_rows(_predictions(_reports(ANSWERED), _reports(PHANTOMS)), {}, [])
    right = sum(len(facts(a) & facts(p)) for a, p in zip(ANSWERED, PHANTOMS, strict=True))
    predicted = wanted = sum(len(facts(p)) for p in PHANTOMS)
    assert [row.metric for row in rows] == ["fact_f1", "fact_precision", "fact_recall", "bleu"]
    by_metric = _by_metric(rows)
    assert (by_metric["fact_precision"].score.numerator, by_metric["fact_precision"].score.denominator) == (
        right,
        predicted,
    )
    assert by_metric["fact_recall"].score.value == pytest.approx(right / wanted)
    assert by_metric["fact_f1"].score.value == pytest.approx(2 * right / (predicted + wanted))
    assert by_metric["fact_f1"].score.cluster_interval is not None
    assert rows[0].clusters == len(PHANTOMS)


def test_equal_reports_score_one_and_beat_every_other_system() -> None:
    truth = _reports(PHANTOMS)
    train = [Sample(str(at), "report", [], "", [text]) for at, text in enumerate(_reports(ANSWERED))]
    control = _predictions(_reports(ANSWERED), truth)
    rows = report_rows(_predictions(truth, truth), {"blank_image": control}, train)
    for row in rows:
        assert row.score.value == pytest.approx(1)
        for other in (row.baselines["constant_text"], row.controls["blank_image"]):
            assert other.value is not None and other.value < 1
    difference = rows[0].differences["constant_text"]
    assert difference.interval is not None and difference.interval.low > 0


def test_empty_reports_have_no_precision_and_no_recall() -> None:
    rows = _by_metric(report_rows(_predictions([""] * len(PHANTOMS), _reports(PHANTOMS)), {}, []))
    assert rows["fact_precision"].score.value is None
    assert rows["fact_precision"].score.reason == "no fact was predicted"
    assert rows["fact_recall"].score.value == 0
    assert rows["fact_f1"].score.value == 0
    assert rows["bleu"].score.value == 0


def test_reports_of_real_images_have_no_exact_facts() -> None:
    references = ["The lungs are clear. There is no pleural effusion.", "Heart size is normal. No lesion is seen."]
    rows = report_rows(_predictions(references, references), {}, [])
    assert [row.metric for row in rows] == ["bleu", "fact_f1", "fact_precision", "fact_recall"]
    assert rows[0].score.value == pytest.approx(1)
    for row in rows[1:]:
        assert row.score.value is None
        assert "phantoms only, and the reference of '0'" in row.score.reason


def test_bleu_by_hand_and_with_its_signature() -> None:
    """All n-grams are found, 5 words against 6: only the brevity penalty exp(1 - 6/5) remains."""
    value, signature = corpus_bleu(_predictions(["a b c d e"], ["a b c d e f"]))
    assert value == pytest.approx(math.exp(-0.2))
    assert "tok:13a" in signature and "version:" in signature
    several = _predictions(["a b c d e", "g h i j"], ["x", "g h i j"])
    several[0].answers.append("a b c d e")
    assert corpus_bleu(several)[0] == pytest.approx(1)


def test_the_most_central_text_shares_most_with_the_others() -> None:
    texts = ["heart enlarged", "lungs clear, heart normal", "lungs clear", "lungs clear; no effusion"]
    # offered for the 12 words of the four: 2 * 3 / (4 * 2 + 12), 2 * 9 / (4 * 4 + 12), 2 * 6 / 20 and 2 * 8 / 28
    assert most_central([tokens_of(text) for text in texts]) == 1
    assert most_central([Counter(), Counter()]) == 0


def test_the_most_central_of_many_texts_is_sought_in_a_sample_of_them() -> None:
    bags = [Counter({"common": 1, f"rare {at}": 1}) for at in range(5000)] + [Counter({"common": 1})]
    assert most_central(bags) == 5000


def test_words_are_counted_without_case_and_punctuation() -> None:
    assert tokens_of("No focal-lesion; 3.5 cm. NO!") == Counter({"no": 2, "focal-lesion": 1, "3.5": 1, "cm": 1})

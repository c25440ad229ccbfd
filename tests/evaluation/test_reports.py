# SPDX-License-Identifier: Apache-2.0
"""Factual scores against the phantoms' own truth, the constant text, the sentences without support, and all rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pefomed_recipes.data.phantom_texts import report
from pefomed_recipes.data.phantom_truth import Phantom, case_seed, draw_phantom, facts
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.evaluation.constant_text import constant_text
from pefomed_recipes.evaluation.reports import report_rows
from pefomed_recipes.evaluation.results import Row
from pefomed_recipes.evaluation.scoring import score
from pefomed_recipes.evaluation.tables import markdown_report
from pefomed_recipes.evaluation.text_metrics import bleu
from pefomed_recipes.evaluation.tokens import report_tokens
from pefomed_recipes.records import CONTROLS, Prediction, Sample, write_records

from .report_texts import report_pairs

PHANTOMS = [draw_phantom(case_seed(0, "test", at)) for at in range(24)]
ANSWERED = PHANTOMS[1:] + PHANTOMS[:1]  # each gets the report of its neighbour
TEXT_METRICS = [*(f"bleu_{order}" for order in (4, 3, 2, 1)), "rouge_l", "rouge_l_f1", "cider_d", "cider", "meteor"]
FACT_METRICS = ["fact_f1", "fact_precision", "fact_recall"]


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """These tests are the same on a machine with Java."""
    monkeypatch.setenv("PATH", str(tmp_path))


def _predictions(texts: list[str], references: list[str], task: str = "report") -> list[Prediction]:
    return [
        Prediction(str(at), task, "", [reference], text, study_id=f"study {at}")
        for at, (text, reference) in enumerate(zip(texts, references, strict=True))
    ]


def _samples(texts: list[str], task: str = "report", split: str = "") -> list[Sample]:
    return [Sample(f"{split} {at}", task, [], "", [text], split=split) for at, text in enumerate(texts)]


def _reports(phantoms: list[Phantom]) -> list[str]:
    return [report(phantom) for phantom in phantoms]


def _by_metric(rows: list[Row]) -> dict[str, Row]:
    return {row.metric: row for row in rows}


def test_factual_scores_equal_those_of_the_phantoms_truth() -> None:
    rows = report_rows(_predictions(_reports(ANSWERED), _reports(PHANTOMS)), {}, [])
    right = sum(len(facts(a) & facts(p)) for a, p in zip(ANSWERED, PHANTOMS, strict=True))
    predicted = wanted = sum(len(facts(p)) for p in PHANTOMS)
    assert [row.metric for row in rows] == [*FACT_METRICS, *TEXT_METRICS]
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
    train = _samples(_reports(ANSWERED))
    control = _predictions(_reports(ANSWERED), truth)
    rows = report_rows(_predictions(truth, truth), {"blank_image": control}, train)
    for row in rows:
        if row.metric == "meteor":
            continue
        assert row.score.value == pytest.approx(10 if row.metric.startswith("cider") else 1)
        for other in (row.baselines["constant_text"], row.controls["blank_image"]):
            assert other.value is not None and other.value < row.score.value
        for difference in row.differences.values():
            assert difference.interval is not None and difference.interval.low > 0


def test_empty_reports_have_no_precision_and_no_recall() -> None:
    rows = _by_metric(report_rows(_predictions([""] * len(PHANTOMS), _reports(PHANTOMS)), {}, []))
    assert rows["fact_precision"].score.value is None
    assert rows["fact_precision"].score.reason == "no fact was predicted"
    assert rows["fact_recall"].score.value == 0
    assert rows["fact_f1"].score.value == 0
    assert {rows[name].score.value for name in TEXT_METRICS} == {0, None}


def test_reports_of_real_images_have_no_exact_facts() -> None:
    references = ["The lungs are clear. There is no pleural effusion.", "Heart size is normal. No lesion is seen."]
    rows = report_rows(_predictions(references, references), {}, [])
    assert [row.metric for row in rows] == [*TEXT_METRICS, *FACT_METRICS]
    assert rows[0].score.value == pytest.approx(1)
    for row in rows[-3:]:
        assert row.score.value is None
        assert "phantoms only, and the reference of '0'" in row.score.reason


def test_every_number_carries_its_signature_or_the_reason_why_it_is_not_there() -> None:
    predictions, references = report_pairs()
    rows = report_rows(_predictions(predictions[:20], [each[0] for each in references[:20]]), {}, [])
    for row in rows:
        assert (row.score.value is None) == bool(row.score.reason), row.metric
        assert "lib:" in row.signature if row.score.value is not None else row.metric in ("meteor", *FACT_METRICS)
        assert row.score.value is None or row.score.cluster_interval is not None
        assert row.metric in FACT_METRICS or row.score.value is None or not row.baselines["constant_text"].value
    by_metric = _by_metric(rows)
    assert by_metric["meteor"].score.reason == "java not found"
    assert by_metric["bleu_4"].signature.startswith("tok:pefomed-ptb-1|clean:none|refs:all|smooth:none|agg:corpus|")


def test_one_study_has_numbers_without_an_interval_and_no_cider() -> None:
    rows = _by_metric(report_rows(_predictions(["a b c d"], ["a b c d e"]), {}, []))
    assert rows["bleu_4"].score.cluster_interval is None
    assert "fewer than two clusters" in rows["bleu_4"].score.reason
    assert rows["cider_d"].score.value is None
    assert "all references say the same" in rows["cider_d"].score.reason


def test_all_references_count_for_the_text_metrics() -> None:
    items = _predictions(["a b c d e", "g h i j"], ["x", "g h i j"])
    items[0].answers.append("a b c d e")
    assert _by_metric(report_rows(items, {}, []))["bleu_4"].score.value == pytest.approx(1)


def test_the_constant_text_has_the_highest_bleu_on_validation() -> None:
    """Tried by hand: every candidate is offered for every validation text."""
    _, references = report_pairs()
    train, validation = [each[0] for each in references[:40]], [each[0] for each in references[40:80]]
    chosen = constant_text(_samples(train), _samples(validation), by_facts=False)
    words = [[report_tokens(text)] for text in validation]
    scores = {
        text: bleu([report_tokens(text)] * len(words), words)(np.ones((1, len(words))))["bleu_4"][0] for text in train
    }
    assert scores[chosen] == max(scores.values()) > 0
    on_train = constant_text(_samples(train), by_facts=False)
    assert on_train in train and scores[on_train] <= scores[chosen]


def test_the_constant_text_has_the_highest_factual_f1_on_validation() -> None:
    train, validation = _reports(PHANTOMS[:12]), _reports(PHANTOMS[12:])
    chosen = constant_text(_samples(train), _samples(validation), by_facts=True)
    scores = {
        text: report_rows(_predictions([text] * len(validation), validation), {}, [])[0].score.value for text in train
    }
    assert scores[chosen] == max(scores.values())


@pytest.mark.parametrize("by_facts", [True, False])
def test_ties_between_constant_texts_go_to_the_more_frequent_then_to_the_first(by_facts: bool) -> None:
    assert constant_text(_samples(["x one", "y", "z", "y"]), _samples(["a"]), by_facts=by_facts) == "y"
    assert constant_text(_samples(["x", "y"]), _samples(["a"]), by_facts=by_facts) == "x"


def test_the_constant_text_of_many_is_sought_among_the_most_frequent() -> None:
    texts = [f"rare{at}" for at in range(5000)] + ["the same plain words"] * 2
    assert constant_text(_samples(texts), by_facts=False) == "the same plain words"


def test_sentences_that_the_image_made_less_likely_are_a_share_of_all() -> None:
    items = _predictions(["a. b. c.", "d.", "e."], ["a", "d", "e"])
    items[0].sentence_support = [1.5, -0.1, 0.0]
    items[1].sentence_support = [-2.0]
    blank = [replace(item, sentence_support=None) for item in items]
    row = _by_metric(report_rows(items, {"blank_image": blank}, []))["unsupported_sentences"]
    assert (row.score.numerator, row.score.denominator, row.score.value) == (2, 4, 0.5)
    assert row.controls["blank_image"].reason == "its predictions carry no sentence_support"
    assert "unsupported_sentences" not in _by_metric(report_rows(blank, {}, []))


@pytest.mark.integration
@pytest.mark.parametrize("task", ["report", "caption"])
def test_texts_are_scored_from_files_with_historic_numbers(tmp_path: Path, task: str) -> None:
    predictions, references = report_pairs()
    items = _predictions(predictions[:30], [each[0] for each in references[:30]], task)
    write_records(tmp_path / "predictions.jsonl", items)
    for name in ("blank", "shuffle"):
        said = [replace(item, prediction="No mass.", control=CONTROLS[name]) for item in items]
        write_records(tmp_path / f"{name}.jsonl", said)
    for split, start in (("train", 30), ("validation", 90)):
        texts = [each[0] for each in references[start : start + 60]]
        write_records(tmp_path / f"{split}.jsonl", _samples(texts, task, split))
    paths = {split: tmp_path / f"{split}.jsonl" for split in ("train", "validation")}
    results = score(
        tmp_path / "predictions.jsonl",
        controls={name: tmp_path / f"{name}.jsonl" for name in ("blank", "shuffle")},
        train_samples=paths["train"],
        validation_samples=paths["validation"],
        compat=["r2gen"],
    )
    assert results.missing == []
    assert results.files["validation"].records == 60
    (protocol,) = results.historic
    assert set(protocol.numbers[0].values) == {"model", "constant_text", "blank_image", "shuffled_images"}
    page = markdown_report(results)
    assert "scores best on 60 validation samples" in page
    assert "**BLEU-4 " in page and "| CIDEr-D, of 1,000 (COCO's CIDEr)" in page
    assert "Historic protocol `r2gen`" in page and "METEOR 1.5: n/a, java not found" in page
    with pytest.raises(ConfigError, match="compat 'coco' needs Java: java not found"):
        score(tmp_path / "predictions.jsonl", train_samples=paths["train"], compat=["coco"])
    with pytest.raises(ConfigError, match="compat 'llava-med' is for vqa, these are predictions of"):
        score(tmp_path / "predictions.jsonl", compat=["llava-med"])
    with pytest.raises(PeFoMedError, match="found no validation sample"):
        score(tmp_path / "predictions.jsonl", validation_samples=paths["train"])


@pytest.mark.parametrize("support", [[float("nan")], [None], "0.5", [True]])
def test_a_sentence_support_that_is_no_list_of_numbers_is_refused(tmp_path: Path, support: object) -> None:
    items = _predictions(["a", "b"], ["a", "b"])
    items[1].sentence_support = support  # type: ignore[assignment]
    write_records(tmp_path / "predictions.jsonl", items)
    with pytest.raises(PeFoMedError, match="line 2: sentence_support, expected a list of finite numbers or null"):
        score(tmp_path / "predictions.jsonl")

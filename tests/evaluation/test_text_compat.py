# SPDX-License-Identifier: Apache-2.0
"""R2Gen's words by hand, quirk by quirk, and the COCO tools' names and reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from pefomed_recipes.errors import ConfigError
from pefomed_recipes.evaluation.compat import coco, r2gen
from pefomed_recipes.records import Prediction, Sample

WORDS = "a b c d e".split()


def _predictions(pairs: list[tuple[str, str]], source: str = "iu_xray") -> list[Prediction]:
    return [Prediction(str(at), "report", "", [ref], said, source=source) for at, (said, ref) in enumerate(pairs)]


def _train(*texts: str) -> list[Sample]:
    return [Sample(str(at), "report", [], "", [text]) for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("No edema. Heart is normal.", "no edema . heart is normal ."),
        ("T2/FLAIR; 3.5 cm (x-ray) patient's [XXXX]", "t2flair 35 cm x-ray patients xxxx ."),
        ("1. Edema. 2. No mass. 3. Normal", "edema . no mass . normal ."),
        ("Wait... no.. yes", "wait . no . yes ."),
        ("a. . b", "a . . b ."),
        ("x < 5 = $7 # 8 | 9", "x 5 $7 # 8 | 9 ."),
    ],
)
def test_reports_are_cleaned_as_r2gen_does(text: str, words: str) -> None:
    assert r2gen.clean_report(text) == words.split()


def test_underscores_and_lines_are_squeezed_for_mimic() -> None:
    assert r2gen.clean_report("Dr. ___ saw\n\n it", r2gen.MIMIC_CXR) == "dr . saw it .".split()


def test_references_are_cut_and_rare_words_replaced_but_predictions_are_not() -> None:
    train = [sample.answers[0] for sample in _train("common rare", "common odd", "common")]
    vocabulary = r2gen.vocabulary_of(train, r2gen.IU_XRAY)
    assert vocabulary == {"common", "."}
    text = "common rare " * 40
    assert r2gen.reference_words(text, vocabulary, r2gen.IU_XRAY) == (["common", "<unk>"] * 30)[:59]
    assert r2gen.prediction_words(text, r2gen.IU_XRAY) == [*(["common", "rare"] * 40), "."]
    assert r2gen.prediction_words(" ", r2gen.IU_XRAY) == []


def test_settings_are_those_of_the_data_set() -> None:
    assert r2gen.convention_of(["mimic_cxr"]) == r2gen.MIMIC_CXR
    assert r2gen.convention_of(["mimic_cxr", "iu_xray"]) == r2gen.convention_of([]) == r2gen.IU_XRAY


def test_the_full_stop_is_a_word_that_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = r2gen.numbers(_predictions([("x", "a b"), ("a b", "a b")]), _train("a b", "a b", "a b"))
    # 4 of 5 words are found, of 6 wanted: the penalty is exp(1 - 6/5)
    assert found["BLEU-1"] == (pytest.approx(100 * 0.8 * 2.718281828**-0.2), 2)
    assert found["METEOR"] == (None, 2)
    assert set(found) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "METEOR"}


def test_what_a_protocol_lacks_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="give --train FILE"):
        r2gen.numbers(_predictions([("a", "b")]), [])
    with pytest.raises(ConfigError, match="java not found"):
        coco.numbers(_predictions([("a", "b")]), [])

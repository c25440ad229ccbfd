# SPDX-License-Identifier: Apache-2.0
"""BLEU, ROUGE-L and CIDEr against sacrebleu, against what pycocoevalcap gave for 500 reports, and by hand."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from pefomed_recipes.evaluation.cider import cider
from pefomed_recipes.evaluation.text_metrics import Values, bleu, common_length, rouge_l
from pefomed_recipes.evaluation.tokens import report_tokens

from .report_texts import coco_values, report_pairs

FAMILIES = (bleu, rouge_l, cider)
Corpus = tuple[list[list[str]], list[list[list[str]]]]


@cache
def _corpus() -> Corpus:
    predictions, references = report_pairs()
    return [report_tokens(text) for text in predictions], [[report_tokens(t) for t in each] for each in references]


def _numbers(said: list[list[str]], wanted: list[list[list[str]]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for family in FAMILIES:
        values |= _at_once(family(said, wanted), len(said))
    return values


@cache
def _corpus_numbers() -> dict[str, float]:
    return _numbers(*_corpus())


def _at_once(values: Values, items: int) -> dict[str, float]:
    return {name: float(column[0]) for name, column in values(np.ones((1, items))).items()}


def test_the_texts_are_those_that_the_committed_values_are_of() -> None:
    assert hashlib.sha256(json.dumps(report_pairs()).encode()).hexdigest() == coco_values()["texts_sha256"]


def test_numbers_equal_those_of_pycocoevalcap_on_the_same_words() -> None:
    found = _corpus_numbers()
    for name, value in coco_values()["our_words"].items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


def test_each_report_has_the_rouge_l_that_pycocoevalcap_gave() -> None:
    found = [_at_once(rouge_l([said], [wanted]), 1)["rouge_l"] for said, wanted in zip(*_corpus(), strict=True)]
    assert found == pytest.approx(coco_values()["rouge_l_of_items"], rel=1e-9)


def test_our_words_give_the_numbers_of_the_java_words_to_a_thousandth() -> None:
    found = _corpus_numbers()
    for name, value in coco_values()["java_words"].items():
        assert found[name] == pytest.approx(value, abs=1e-3), name


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_that_of_sacrebleu(order: int) -> None:
    said, wanted = _corpus()
    most = max(map(len, wanted))
    references = [[" ".join(each[at]) if at < len(each) else None for each in wanted] for at in range(most)]
    scorer = BLEU(max_ngram_order=order, tokenize="none", smooth_method="none", force=True)
    expected = scorer.corpus_score([" ".join(words) for words in said], references).score / 100  # type: ignore[arg-type]
    assert _corpus_numbers()[f"bleu_{order}"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resample_has_the_numbers_of_the_items_it_repeats(family: type) -> None:
    said, wanted = _corpus()
    said, wanted = said[:60], wanted[:60]
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=3).astype(float)
    resampled = family(said, wanted)(weights)
    for draw, drawn in enumerate(weights):
        repeated = [at for at, times in enumerate(drawn) for _ in range(int(times))]
        alone = _at_once(family([said[at] for at in repeated], [wanted[at] for at in repeated]), len(repeated))
        for name, value in alone.items():
            assert resampled[name][draw] == pytest.approx(value, rel=1e-9), name


def test_bleu_by_hand() -> None:
    """All n-grams are found, 5 words against the nearer reference's 6: only the penalty exp(1 - 6/5) remains."""
    values = _at_once(bleu(["a b c d e".split()], [["a b c d e f".split(), "x y z".split()]]), 1)
    assert values == pytest.approx({f"bleu_{order}": math.exp(-0.2) for order in range(1, 5)})
    clipped = _at_once(bleu(["a a a b".split()], [["a b c d".split()]]), 1)  # found: 1 a and 1 b of 4, "a b" of 3
    assert clipped == pytest.approx({"bleu_1": 0.5, "bleu_2": math.sqrt(0.5 / 3), "bleu_3": 0, "bleu_4": 0})


def test_rouge_l_by_hand() -> None:
    """Of "a b c d", "b d" is common with the first reference (P 2/4, R 2/2) and "a c" with the second (2/4, 2/5)."""
    values = _at_once(rouge_l(["a b c d".split()], [["b d".split(), "x a y c z".split()]]), 1)
    assert values["rouge_l"] == pytest.approx((1 + 1.44) * 0.5 * 1 / (1 + 1.44 * 0.5))
    assert values["rouge_l_f1"] == pytest.approx(2 * 2 / (4 + 2))


def test_the_longest_common_subsequence_is_that_of_the_table() -> None:
    rng = random.Random(0)
    for _ in range(200):
        one, other = ([rng.choice("abcd") for _ in range(rng.randrange(12))] for _ in range(2))
        table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, a in enumerate(one):
            for j, b in enumerate(other):
                table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
        assert common_length(one, other) == table[-1][-1]


def test_unclipped_cider_is_the_mean_cosine() -> None:
    """Computed from the definition, one pair at a time, beside the vectorised form."""
    said, wanted = ["a b a c".split(), "d b".split()], [["a b c".split()], ["b d d".split(), "b c".split()]]
    expected = 0.0
    for order in range(1, 5):
        bags = [[_ngrams(words, order) for words in each] for each in wanted]
        having = Counter(ngram for each in bags for ngram in set().union(*each))
        for words, each in zip(said, bags, strict=True):
            one = _ngrams(words, order)
            for other in each:
                weight = {n: math.log(2 / max(having[n], 1)) ** 2 for n in one | other}
                norms = [math.sqrt(sum(weight[n] * bag[n] ** 2 for n in bag)) for bag in (one, other)]
                if all(norms):
                    expected += sum(weight[n] * one[n] * other[n] for n in one) / norms[0] / norms[1] / len(each)
    assert _at_once(cider(said, wanted), 2)["cider"] == pytest.approx(10 * expected / 4 / 2)


def _ngrams(words: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))


@pytest.mark.parametrize("wanted", [[["a b c d e".split()]], [["a b".split()], ["a b".split()]]])
def test_cider_is_not_defined_where_no_ngram_tells_items_apart(wanted: list[list[list[str]]]) -> None:
    values = _at_once(cider([each[0] for each in wanted], wanted), len(wanted))
    assert all(math.isnan(value) for value in values.values())


def test_empty_predictions_have_nothing() -> None:
    wanted = [["a b c d".split()], ["e f g h".split()]]
    assert set(_numbers([[], []], wanted).values()) == {0.0}
    assert _numbers([words for (words,) in wanted], wanted) == pytest.approx(
        {f"bleu_{order}": 1.0 for order in range(1, 5)}
        | {"rouge_l": 1.0, "rouge_l_f1": 1.0, "cider": 10.0, "cider_d": 10.0}
    )

# SPDX-License-Identifier: Apache-2.0
"""BLEU and ROUGE-L of lists of words, as numbers that can be computed again for each resample of the items.

A number over a corpus is a function of weights: how often each item counts. All ones gives the number itself, a
bootstrap's draws give its resamples. What each item adds is counted once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .intervals import Floats

Words = Sequence[str]
# From weights (draws, items) to each metric's values (draws,), NaN where it is not defined.
Values = Callable[[Floats], dict[str, Floats]]

MAX_ORDER = 4
BETA = 1.2


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> Values:
    """Return `bleu_1` .. `bleu_4`, each 0..1, higher is better.

    n-grams are pooled over the corpus: BLEU-k = penalty * (p_1 * .. * p_k) ** (1/k), where p_n = n-grams that a
    reference has, each counted at most as often as there / all n-grams of the hypotheses, and penalty = exp(1 - r/c)
    where the c words of the hypotheses are fewer than the r words of the references that are nearest in length (ties:
    the shorter). Where no n-gram of an order is found, or all hypotheses are empty, the number is 0; nothing is
    smoothed.

    Source: Papineni et al. 2002; what each item adds is counted by sacrebleu. The COCO tools' numbers are the same,
    except that theirs are some 1e-4 where these are 0.
    """
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(tokenize="none", smooth_method="none", force=True, effective_order=True)
    rows = []
    for hypothesis, item_references in zip(hypotheses, references, strict=True):
        score = scorer.sentence_score(" ".join(hypothesis), [" ".join(words) for words in item_references])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    counts = np.asarray(rows, dtype=np.float64)  # (items, 10)
    return lambda weights: _bleu_of_counts(weights @ counts)


def _bleu_of_counts(counts: Floats) -> dict[str, Floats]:
    """Return BLEU of summed counts: (draws, 4 found + 4 offered + words of hypotheses + words of references)."""
    found, offered, length, wanted = counts[:, :4], counts[:, 4:8], counts[:, 8], counts[:, 9]
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(offered > 0, found / offered, 0.0)
        penalty = np.where(length > 0, np.exp(np.minimum(0.0, 1 - wanted / length)), 0.0)
        means = np.exp(np.cumsum(np.log(precisions), axis=1) / np.arange(1, MAX_ORDER + 1))
    return {f"bleu_{order}": penalty * means[:, order - 1] for order in range(1, MAX_ORDER + 1)}


def rouge_l(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> Values:
    """Return `rouge_l` and `rouge_l_f1`, each the mean over items, 0..1, higher is better.

    Of an item's hypothesis and one reference: P = longest common subsequence / words of the hypothesis, R = the same /
    words of the reference. `rouge_l` weighs R by beta 1.2: (1 + b²) P R / (R + b² P), with the highest P and the
    highest R over the references, be they of two different ones. `rouge_l_f1` is the highest 2 P R / (P + R) over the
    references. An empty hypothesis has 0.

    Source: Lin 2004; `rouge_l` as the COCO tools compute it.
    """
    weighted, balanced = [], []
    for hypothesis, item_references in zip(hypotheses, references, strict=True):
        common = [(common_length(hypothesis, reference), len(reference)) for reference in item_references]
        precision = max(length for length, _ in common) / max(len(hypothesis), 1)
        recall = max(length / max(words, 1) for length, words in common)
        both = recall + BETA**2 * precision
        weighted.append((1 + BETA**2) * precision * recall / both if both else 0.0)
        balanced.append(max(2 * length / max(len(hypothesis) + words, 1) for length, words in common))
    return means_of({"rouge_l": weighted, "rouge_l_f1": balanced})


def means_of(items: Mapping[str, Sequence[float]]) -> Values:
    """Return each number as the mean of what the items have."""
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in items.items()}
    return lambda weights: {name: weights @ values / weights.sum(axis=1) for name, values in columns.items()}


def common_length(words: Words, other: Words) -> int:
    """Return the length of the longest common subsequence.

    Source: Hyyrö 2004: a column of the dynamic program is the bits of one integer.
    """
    at: dict[str, int] = {}
    for position, word in enumerate(words):
        at[word] = at.get(word, 0) | 1 << position
    full = (1 << len(words)) - 1
    state = full
    for word in other:
        matched = state & at.get(word, 0)
        state = (state + matched | state - matched) & full
    return len(words) - state.bit_count()

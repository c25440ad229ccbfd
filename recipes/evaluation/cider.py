# SPDX-License-Identifier: Apache-2.0
"""CIDEr and CIDEr-D of lists of words, computed again for each resample with that resample's own rarity of n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .intervals import Floats
from .text_metrics import MAX_ORDER, Values, Words

SIGMA = 6.0
CHUNK = 64  # resamples at a time: some 10 MB for 600 reports
TOO_FEW = "n-grams are weighed by how few items have them, and all references say the same"


def cider(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> Values:
    """Return `cider_d` and `cider`, each 0..10 (tables print it times 100, as the field does), higher is better.

    Each n-gram of a text weighs its count there times log(items / items whose references have it); an n-gram that no
    reference has counts as in one. `cider` is the cosine of hypothesis and reference under these weights, times 10,
    the mean over n = 1..4, an item's references, and items. `cider_d` cuts a hypothesis' counts to those of the
    reference, and multiplies by exp(-d² / 72), where d is the difference in length: it is what the COCO tools, and so
    nearly all papers, print as CIDEr. Words are not stemmed.

    An empty hypothesis has 0. Where every n-gram of the references is in all items (a single item, equal references)
    nothing has weight, and the number is not defined. The weights depend on the items scored: numbers of two test sets
    cannot be compared.

    Source: Vedantam et al. 2015; `cider_d` as in pycocoevalcap, which gives 0 where this is not defined.
    """
    item_of_pair = _items_of_pairs(references)
    pair_numbers = _pair_numbers(hypotheses, references)

    def values(weights: Floats) -> dict[str, Floats]:
        found: dict[str, list[Floats]] = {"cider_d": [], "cider": []}
        for start in range(0, len(weights), CHUNK):
            chunk = weights[start : start + CHUNK].T  # (items, draws)
            for name, numbers in pair_numbers(chunk).items():
                found[name].append((numbers * chunk[item_of_pair]).sum(axis=0) / chunk.sum(axis=0))
        return {name: np.concatenate(chunks) for name, chunks in found.items()}

    return values


def cider_of_items(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, list[float]]:
    """Return `cider_d` and `cider` of each item, n-grams weighed by all references: their means are the
    numbers of [`cider`]. NaN where these are not defined."""
    numbers = _pair_numbers(hypotheses, references)(np.ones((len(hypotheses), 1)))
    item_of_pair = _items_of_pairs(references)
    return {name: np.bincount(item_of_pair, weights=column[:, 0]).tolist() for name, column in numbers.items()}


def _items_of_pairs(references: Sequence[Sequence[Words]]) -> np.ndarray:
    """Return for each pair of a hypothesis and one reference the item that it belongs to: (pairs,)."""
    return np.repeat(np.arange(len(references)), [len(each) for each in references])


def _pair_numbers(
    hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]
) -> Callable[[Floats], dict[str, Floats]]:
    """Return what gives, for how often each item is drawn (items, draws), what each pair adds to its item's numbers:
    (pairs, draws), NaN in draws in which nothing has weight."""
    item_of_pair = _items_of_pairs(references)
    pairs = [words for each in references for words in each]
    orders = [_Order(hypotheses, references, pairs, item_of_pair, order) for order in range(1, MAX_ORDER + 1)]
    bigrams = [np.array([max(len(words) - 1, 0) for words in texts]) for texts in (hypotheses, pairs)]
    penalty = np.exp(-((bigrams[0][item_of_pair] - bigrams[1]) ** 2) / (2 * SIGMA**2))[:, None]  # (pairs, 1)
    share = (1 / np.bincount(item_of_pair))[item_of_pair][:, None]  # of an item's number: (pairs, 1)

    def numbers(weights: Floats) -> dict[str, Floats]:
        parts = [order.similarities(weights) for order in orders]
        scale = np.where(np.any([part[2] for part in parts], axis=0), 10.0, np.nan)  # (draws,)
        return {
            "cider_d": np.mean([part[0] for part in parts], axis=0) * penalty * share * scale,
            "cider": np.mean([part[1] for part in parts], axis=0) * share * scale,
        }

    return numbers


class _Order:
    """The n-grams of one order: what hypotheses and references share, ready to be weighed."""

    def __init__(
        self,
        hypotheses: Sequence[Words],
        references: Sequence[Sequence[Words]],
        pairs: Sequence[Words],
        item_of_pair: np.ndarray,
        order: int,
    ) -> None:
        columns: dict[tuple[str, ...], int] = {}
        of_references = [_count(words, order) for words in pairs]
        for counts in of_references:
            for ngram in counts:
                columns.setdefault(ngram, len(columns))
        of_hypotheses = [_count(words, order) for words in hypotheses]
        reference = _matrix(of_references, columns)
        hypothesis = _matrix(of_hypotheses, columns)
        present = _matrix([set().union(*(_count(words, order) for words in each)) for each in references], columns)
        self.unknown = np.array(
            [sum(count**2 for ngram, count in counts.items() if ngram not in columns) for counts in of_hypotheses],
            dtype=np.float64,
        )[:, None]  # squared counts of n-grams that no reference has: (items, 1)
        self.item_of_pair = item_of_pair
        self.items_with = present.T.tocsr()  # (n-grams, items)
        beside = hypothesis[item_of_pair]
        self.cut_product = beside.minimum(reference).multiply(reference).tocsr()  # (pairs, n-grams), as the next
        self.product = beside.multiply(reference).tocsr()
        self.hypothesis_squares = hypothesis.multiply(hypothesis).tocsr()
        self.reference_squares = reference.multiply(reference).tocsr()

    def similarities(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Return cut and plain cosines, both (pairs, draws), and whether any n-gram has weight, (draws,).

        Args:
            weights: how often each item is drawn, (items, draws).
        """
        items = np.log(weights.sum(axis=0))  # (draws,)
        rarity = (items - np.log(np.maximum(self.items_with @ weights, 1.0))) ** 2  # (n-grams, draws)
        squares = self.hypothesis_squares @ rarity + self.unknown * items**2  # (items, draws)
        of_references = self.reference_squares @ rarity
        norm = np.sqrt(squares[self.item_of_pair] * of_references)  # (pairs, draws)
        cut, plain = (
            np.divide(product @ rarity, norm, out=np.zeros_like(norm), where=norm > 0)
            for product in (self.cut_product, self.product)
        )
        has_weight = ((of_references > 0) & (weights[self.item_of_pair] > 0)).any(axis=0)
        return cut, plain, has_weight


def _count(words: Words, order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def _matrix(bags: Sequence[Iterable[tuple[str, ...]]], columns: dict[tuple[str, ...], int]) -> Any:
    """Return the counts of known n-grams, a row a bag, as a sparse matrix."""
    from scipy.sparse import csr_matrix

    entries = [
        (row, columns[ngram], bag[ngram] if isinstance(bag, Counter) else 1)
        for row, bag in enumerate(bags)
        for ngram in bag
        if ngram in columns
    ]
    rows, at, counts = zip(*entries, strict=True) if entries else ((), (), ())
    return csr_matrix((np.asarray(counts, dtype=np.float64), (rows, at)), shape=(len(bags), max(len(columns), 1)))

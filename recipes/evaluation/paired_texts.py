# SPDX-License-Identifier: Apache-2.0
"""Two systems' reports or captions: BLEU-4, ROUGE-L and CIDEr with paired intervals and permutation tests.

These are numbers of a corpus, not sums over items: they are computed again on each resample and each exchange.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..records import Prediction
from .cider import TOO_FEW, cider, cider_of_items
from .intervals import PERMUTATION_CELLS, PERMUTATIONS, SEED, ClusterBootstrap, Floats
from .results import Interval
from .text_metrics import Values, bleu, means_of, rouge_l
from .tokens import report_tokens

COMPARED = ("bleu_4", "rouge_l", "cider_d")


@dataclass(frozen=True)
class PairedNumber:
    """One number of both systems, the interval of first minus second, and the p-value of the difference (0..1).

    What is null is not defined: without a value `reason` says why, and with fewer than two clusters neither interval
    nor p-value is there.
    """

    first: float | None
    second: float | None
    interval: Interval | None = None
    p_value: float | None = None
    reason: str = ""


def paired_text_numbers(
    first: Sequence[Prediction], second: Sequence[Prediction], clusters: Sequence[str]
) -> dict[str, PairedNumber]:
    """Return the numbers of `COMPARED` for two systems' texts about the same items in the same order.

    Intervals are those of the difference on resamples of whole clusters, the same for both systems; CIDEr weighs its
    n-grams anew on each. The test exchanges the systems for whole clusters, as [`paired_permutation`] does. CIDEr's
    weights stay then, because they come from the references, which both systems share.
    """
    references = [[report_tokens(text) for text in item.answers] for item in first]
    one, other = ([report_tokens(item.prediction) for item in items] for items in (first, second))
    bootstrap = ClusterBootstrap(clusters)
    drawn = bootstrap.item_weights()
    weights = np.concatenate([np.ones((1, len(one))), drawn])  # the numbers themselves, then their resamples
    exchange = _Exchange(clusters, [a != b for a, b in zip(one, other, strict=True)])
    of_items, of_others = cider_of_items(one, references), cider_of_items(other, references)
    both = {name: of_items[name] + of_others[name] for name in of_items}
    families = (
        (bleu, bleu(one + other, references * 2)),
        (rouge_l, rouge_l(one + other, references * 2)),
        (cider, means_of(both)),
    )
    found = {}
    for family, exchanged in families:
        values, other_values = family(one, references)(weights), family(other, references)(weights)
        for name in sorted(set(COMPARED) & set(values)):
            here, there = values[name], other_values[name]
            if math.isnan(here[0]) or math.isnan(there[0]):
                found[name] = PairedNumber(None, None, reason=TOO_FEW)
                continue
            found[name] = PairedNumber(
                float(here[0]),
                float(there[0]),
                bootstrap.percentiles(here[1:] - there[1:], "paired bootstrap"),
                exchange.p_value(exchanged, name),
            )
    return {name: found[name] for name in COMPARED}


class _Exchange:
    """Exchanges two systems for whole clusters.

    Args:
        clusters: of each item.
        differs: whether the systems say something else about it. Where they do not, an exchange changes nothing.
    """

    def __init__(self, clusters: Sequence[str], differs: Sequence[bool]) -> None:
        names, self.cluster_of_item = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        self.clusters = len(names)
        self.differing = np.unique(self.cluster_of_item[np.asarray(differs, dtype=bool)])

    def p_value(self, values: Values, name: str) -> float | None:
        """Return the two-sided p-value of a number's difference, `None` with fewer than two clusters.

        All exchanges are made where there are few, else 9,999 random ones, with p = (at least as far + 1) /
        (exchanges + 1).

        Args:
            values: the numbers of a set of items, those with the first system's texts before those with the second's.

        Source: scipy.stats.permutation_test, `permutation_type="samples"`.
        """
        from scipy.stats import permutation_test

        if self.clusters < 2:
            return None
        if len(self.differing) < 2:
            return 1.0

        def difference(one: Floats, other: Floats, axis: int) -> npt.NDArray[np.float64]:
            exchanged = np.zeros((math.prod(one.shape[:-1]), self.clusters))  # (draws, clusters)
            exchanged[:, self.differing] = one.reshape(len(exchanged), -1)
            second = exchanged[:, self.cluster_of_item]  # whether an item's text is the second system's
            weights = np.concatenate([1 - second, second], axis=1)
            apart = values(weights)[name] - values(1 - weights)[name]
            return apart.reshape(one.shape[:-1])

        test = permutation_test(
            (np.zeros(len(self.differing)), np.ones(len(self.differing))),
            difference,
            permutation_type="samples",
            vectorized=True,
            n_resamples=PERMUTATIONS,
            batch=max(1, PERMUTATION_CELLS // (2 * len(self.cluster_of_item))),
            axis=-1,
            rng=np.random.default_rng(SEED),
        )
        return float(test.pvalue)

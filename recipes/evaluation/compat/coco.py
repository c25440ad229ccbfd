# SPDX-License-Identifier: Apache-2.0
"""The COCO caption tools' numbers on the words of their own tokenizer, which is Java.

Source: the rules of pycocoevalcap 1.2, whose tokenizer and METEOR are run; its other numbers are computed here.
Differs: a BLEU without a match of some order is 0, not some 1e-4; SPICE is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import ConfigError
from ...records import Prediction, Sample
from ..cider import cider
from ..java import JavaUnavailableError, meteor, ptb_words
from ..text_metrics import Words, bleu, rouge_l

QUIRKS = [
    "words by Stanford CoreNLP's tokenizer in lower case, without punctuation, but with brackets as words (-lrb-)",
    "BLEU takes the reference nearest in length; ROUGE-L (beta 1.2) may take precision and recall from two references",
    "CIDEr is CIDEr-D without stemming; it weighs n-grams by the scored references, so that test sets do not compare",
    "METEOR pools its counts over the corpus: it is not the mean of what single reports score",
]


def numbers(predictions: Sequence[Prediction], train: Sequence[Sample]) -> dict[str, tuple[float | None, int]]:
    """Return BLEU-1 to 4, ROUGE-L, CIDEr and METEOR times 100 against all references.

    Raises:
        ConfigError: Java or the extra `[coco]` is missing.
    """
    texts = [text for item in predictions for text in (item.prediction, *item.answers)]
    try:
        words = iter(ptb_words(texts))
    except JavaUnavailableError as error:
        raise ConfigError(f"compat 'coco' needs Java: {error}") from None
    split = [(next(words), [next(words) for _ in item.answers]) for item in predictions]
    return coco_numbers([said for said, _ in split], [wanted for _, wanted in split])


def coco_numbers(said: Sequence[Words], wanted: Sequence[Sequence[Words]]) -> dict[str, tuple[float | None, int]]:
    """Return the COCO tools' numbers of lists of words, times 100, by the names that papers print."""
    weights = np.ones((1, len(said)))
    found = {**bleu(said, wanted)(weights), **rouge_l(said, wanted)(weights), **cider(said, wanted)(weights)}
    try:
        found |= meteor({"model": said}, wanted)["model"](weights)
    except JavaUnavailableError:
        found["meteor"] = np.array([np.nan])
    names = {f"bleu_{order}": f"BLEU-{order}" for order in range(1, 5)}
    names |= {"rouge_l": "ROUGE-L", "cider_d": "CIDEr", "meteor": "METEOR"}
    return {
        shown: (None if np.isnan(found[name][0]) else 100 * float(found[name][0]), len(said))
        for name, shown in names.items()
    }

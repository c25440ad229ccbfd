# SPDX-License-Identifier: Apache-2.0
"""MedEvalKit without its judge: substrings on yes/no questions, equality and word sets on all others.

Source: the rules of its VQA-RAD, SLAKE and PathVQA tasks, written anew.
Differs: BLEU and ROUGE are left out, and so is its judge, which adds closed hits a second time on SLAKE and can exceed
100 %; a number without any item is null instead of a division by zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...answers import YES_NO
from ...records import Prediction

QUIRKS = [
    "closed means that the reference is yes or no, whatever the data set says: another denominator than elsewhere",
    "closed: letters inside words count ('normal' holds 'no'), and a reply with both 'yes' and 'no' in it is wrong: "
    "'yes, it is abnormal'",
    "open: what follows 'answer is' is compared with its leading blank, so that no reply in these words can be right",
    "open: a final full stop makes a reply wrong",
    "precision and recall compare sets of words, split at blanks",
    "only the first reference counts",
]
# Looked for in this order; what follows the last occurrence is kept.
_LEAD_INS = (
    *("**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "答案:"),
    *("final answer", "final answer is"),
)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def cut_reply(reply: str) -> str:
    """Return the part of a reply that is compared: what is boxed or tagged, lower case, after the lead-in."""
    marked = _BOXED.findall(reply) or _TAGGED.findall(reply)
    kept = (marked[-1] if marked else reply).lower().strip()
    for lead_in in _LEAD_INS:
        kept = kept.split(lead_in)[-1]
    return kept


def numbers(predictions: Sequence[Prediction]) -> dict[str, tuple[float | None, int]]:
    """Return accuracy overall, closed and open, and word precision, recall and F1 on open questions, in percent."""
    scores: dict[str, list[float]] = {
        name: [] for name in ("overall", "closed", "open", "open precision", "open recall", "open F1")
    }
    for item in predictions:
        reply, wanted = cut_reply(item.prediction), item.answers[0].lower().strip()
        if wanted in YES_NO:
            plain = reply.replace("\n", "").replace(".", "")
            is_right = ("yes" in plain) != ("no" in plain) and wanted in plain
            scores["closed"].append(is_right)
        else:
            is_right = reply == wanted
            scores["open"].append(is_right)
            said, expected = set(reply.split()), set(wanted.split())
            shared = len(said & expected)
            scores["open precision"].append(shared / len(said) if said else 0.0)
            scores["open recall"].append(shared / len(expected))
            scores["open F1"].append(2 * shared / (len(said) + len(expected)))
        scores["overall"].append(is_right)
    return {name: (100 * sum(found) / len(found) if found else None, len(found)) for name, found in scores.items()}

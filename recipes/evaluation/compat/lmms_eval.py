# SPDX-License-Identifier: Apache-2.0
"""lmms-eval's SLAKE task: exact match of whole replies after its own normaliser.

Source: the rules of its `slake` task (0.7), written anew. It has no other medical question set.
Differs: a group without an item is null instead of 0.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from ...records import Prediction

QUIRKS = [
    "text in brackets is dropped, from references too",
    "all punctuation becomes a blank: '2.5 cm' is '2 5 cm' and '-5' is '5'",
    "'yes, there is' is wrong: only a whole reply of yes, yeah, yep or true is yes, and of no, nope or false is no",
    "'x-ray' and 'xray' are alike only as the whole answer",
    "in Chinese, 'normal' and 'has' count as yes, 'abnormal' and 'without' as no",
    "only the first reference counts",
]
_BRACKETS = re.compile(r"\([^)]*\)|（[^）]*）")
_CHINESE_MARKS = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》【】"
_BLANKED = str.maketrans(dict.fromkeys(string.punctuation + _CHINESE_MARKS, " "))
_ALIASES = {
    **dict.fromkeys(("yes", "yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会", "正常"), "yes"),
    **dict.fromkeys(("no", "nope", "false", "否", "不是", "没有", "无", "不包含", "不能", "不会"), "no"),
    **dict.fromkeys(("不可以", "不正常", "异常"), "no"),
    "x ray": "xray",
}


def normalize(text: str) -> str:
    """Return a text as the task compares it."""
    plain = " ".join(_BRACKETS.sub(" ", text.strip().lower()).translate(_BLANKED).split())
    return _ALIASES.get(plain, plain)


def numbers(predictions: Sequence[Prediction]) -> dict[str, tuple[float | None, int]]:
    """Return exact match overall and by language, answer type, modality and content type (here: question type)."""
    groups: dict[str, list[bool]] = {"overall": []}
    for item in predictions:
        match = normalize(item.prediction) == normalize(item.answers[0])
        groups["overall"].append(match)
        for name, value in (
            ("language", item.language),
            ("answer type", item.answer_type),
            ("modality", item.modality),
            ("content type", ", ".join(item.question_types)),
        ):
            groups.setdefault(f"{name} {value.strip().lower() or 'unknown'}", []).append(match)
    return {name: (100 * sum(marks) / len(marks), len(marks)) for name, marks in groups.items()}

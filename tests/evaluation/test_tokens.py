# SPDX-License-Identifier: Apache-2.0
"""Our words of a report against those that the COCO tools' Java tokenizer gave."""

from __future__ import annotations

import pytest

from pefomed_recipes.evaluation.tokens import report_tokens

from .report_texts import TOKENIZER_CASES, coco_values


@pytest.mark.parametrize(
    ("text", "java_words"), list(zip(TOKENIZER_CASES, coco_values()["java_words_of_cases"], strict=True))
)
def test_words_are_those_of_the_java_tokenizer(text: str, java_words: str) -> None:
    assert " ".join(report_tokens(text)) == java_words


@pytest.mark.parametrize("text", ["", " \n\t ", ". , -- ...", "\"'`"])
def test_a_text_without_words_has_none(text: str) -> None:
    assert report_tokens(text) == []

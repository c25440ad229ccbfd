# SPDX-License-Identifier: Apache-2.0
"""The words of a report or caption as the COCO tools' Penn Treebank tokenizer gives them, without Java."""

from __future__ import annotations

import re

TOKENIZER = "pefomed-ptb-1"

_SPELLED_OUT = {"’": "'", "½": " 1/2 ", "(": " -lrb- ", ")": " -rrb- "} | {
    "[": " -lsb- ", "]": " -rsb- ", "{": " -lcb- ", "}": " -rcb- "
}  # fmt: skip
_SPELL_OUT = str.maketrans(_SPELLED_OUT)
_CANNOT = re.compile(r"\bcannot\b")
_CLITIC = re.compile(r"(?<=[^\W_])(n't|'(?:s|m|d|ll|re|ve))(?![^\W_])")
_LETTER = r"[^\W\d_]"
_TOKEN = re.compile(
    rf"""
      -[lr][rsc]b-                                   # a bracket
    | n't(?!\w) | '(?:s|m|d|ll|re|ve)(?!\w)          # what a clitic left
    | (?:dr|ph\.d|mrs?|ms|st|[js]r|vs|cf|etc|[lr]t|dept|figs?|jan|feb|mar|apr|aug|sept?|oct|nov|dec)\.(?!\w)
    | no\.(?=\s*\d)                                  # number, not the word no
    | (?:{_LETTER}\.)+{_LETTER}?(?!\w)               # p.m., u.s, type c.
    | [-+]?(?:\d+(?:[.,:]\d+)+|\.\d+)(?:-\w+)*      # 3.5, .5, 10:30, 1,000, 1.5-cm
    | {_LETTER}+(?:\.{_LETTER}+)+                     # a forgotten blank: lungs.no
    | (?:(?<!\w)[-+](?=\d))?\w+(?:(?:[-/]|(?<={_LETTER})'(?={_LETTER}))\w+)*  # words; well-defined, t2/flair
    | [^\w\s.?!,:;'"`“”‘…–—-]                        # any other sign by itself: % < > = °
    """,
    re.VERBOSE,
)


def report_tokens(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation; an empty text has none.

    Numbers keep their decimals (`3.5`), words their hyphens and slashes, abbreviations their dots (`dr.`, `p.m.`);
    `can't` becomes `ca n't`, `patient's` becomes `patient 's`; a bracket is a word (`-lrb-`), because the COCO tools
    forget to drop it.

    Source: Stanford CoreNLP 3.4.1's PTBTokenizer with `-lowerCase`, less the punctuation of pycocoevalcap's list.
    Differs: rare contractions (`gimme`), web addresses and signs that reports do not use are not split as there.
    """
    spelled = text.lower().translate(_SPELL_OUT)
    return _TOKEN.findall(_CLITIC.sub(r" \1", _CANNOT.sub("can not", spelled)))

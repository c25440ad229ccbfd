# SPDX-License-Identifier: Apache-2.0
"""What counts as the same answer: the normaliser, the parser of closed answers and the majority-answer baseline.

The data checks and the evaluation use the same rules from here. Nothing in this module imports torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, TypeVar

# Answers and questions repeat within a data set; those of the largest test split fit in.
_REMEMBERED = 2**16
NORMALIZER_VERSION = "pefomed-normalizer-1"

YES_NO = ("yes", "no")
SIDES = ("left", "right")

_NUMBER_WORDS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ALWAYS_KEPT = "%‰&"
_SPACED_INITIALS = re.compile(r"\b[a-z](?:\.[a-z])+\b\.?")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_X_RAY = re.compile(r"\bx ray(s?)\b")
# An article stands before a word: a lone "a" is an option letter and the "a" of "hepatitis a" is a name.
_ARTICLE = re.compile(r"(?<!\S)(?:a|an|the) (?=\S)")

_ANSWER_LEAD_IN = re.compile(r"^\W*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\b[^\w]*")
_CLAUSE_BREAK = re.compile(r"[.,;:!?\n/]|\b(?:and|or|but)\b")
_OPTION_BREAK = re.compile(r"\s*,\s*(?:or\s+)?|\s+or\s+")
_OPTION_LIST = re.compile(r"[\s,]or\s")
_ASKING_WORDS = {"which", "what", "where", "how", "who", "when"}
_FUNCTION_WORDS = set(
    "is are was were be been does do did has have it its this that these there in on at of to by for from with as "
    "either mainly mostly more rather seen shown".split()
)
_NEGATIONS = {"no", "not", "never", "neither", "nor", "without", "isnt", "cannot"}


Key = TypeVar("Key", bound=Hashable)


class Answerable(Protocol):
    """What the baseline needs of a record: `Sample` and `Prediction` both have it."""

    instruction: str
    answers: list[str]
    answer_type: str
    question_types: list[str]


@lru_cache(maxsize=_REMEMBERED)
def normalize_answer(text: str) -> str:
    """Return the spelling under which two answers are compared.

    In order: Unicode NFKC and case folding; all dashes become `-`; initials lose their periods (`P.A.` is `pa`);
    thousands commas go (`1,000` is `1000`); punctuation becomes a space, except what carries meaning in a number or
    unit: decimal points and commas, `:` and `-` between digits, the sign of a number, `/` between words, `%`, `<`,
    `>`, `=`; an apostrophe inside a word goes; zero to ten become digits; an article before a word goes; `x-ray` and
    `x ray` as words of their own become `xray`.

    Text that is not blank is never mapped to "": a lone article stays, and what has no word at all stays as it is.
    `none` is a word, not the number 0. The result is stable: normalising it again changes nothing.

    Differs: from the released evaluator's normaliser, whose period, comma, article and x-ray rules make unequal
    answers equal ("A" and an empty answer, "none" and "0") and equal ones unequal.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = "".join("-" if c == "\u2212" or unicodedata.category(c) == "Pd" else c for c in folded)
    folded = folded.replace("\u2019", "'").replace("\u2018", "'")
    bare = _SPACED_INITIALS.sub(lambda match: match.group().replace(".", ""), folded)
    bare = _THOUSANDS_COMMA.sub("", bare)
    bare = "".join(_keep(bare, at) for at in range(len(bare)))
    bare = " ".join(_NUMBER_WORDS.get(word, word) for word in bare.split())
    bare = _X_RAY.sub(r"xray\1", _ARTICLE.sub("", bare))
    return bare or " ".join(folded.split())


def _keep(text: str, at: int) -> str:
    """Return the character at `at` if it carries meaning there, "" where it goes without a gap, else a space."""
    c = text[at]
    if not unicodedata.category(c).startswith("P"):
        return " " if c in "`|" else c
    before = text[at - 1] if at else " "
    after = text[at + 1] if at + 1 < len(text) else " "
    if c in _ALWAYS_KEPT:
        return c
    if c == "'":
        return "" if before.isalpha() and after.isalpha() else " "
    if c == ".":  # a decimal point, also in ".5"; never the end of a sentence
        return c if after.isdigit() and not before.isalpha() and before != "." else " "
    if c in ",:":
        return c if before.isdigit() and after.isdigit() else " "
    if c == "-":  # a sign or a range of numbers; hyphens between words are spaces
        signed = after.isdigit() or (after == "." and text[at + 2 : at + 3].isdigit())
        return c if signed and not before.isalpha() and before not in "-." else " "
    if c == "/":
        return c if before.isalnum() and after.isalnum() else " "
    return " "


def normalize_answer_type(answer_type: str) -> str:
    """Return `OPEN`, `CLOSED` or "" (unknown), whatever the case and the blanks of the data set's spelling."""
    return answer_type.strip().upper()


def normalize_question_types(question_types: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct question types in order; `"PRES, ABN"` is two types, split on `,`, `/` and `;`."""
    parts = (part.strip().upper() for kind in question_types for part in re.split(r"[,/;]", kind))
    return tuple(dict.fromkeys(part for part in parts if part))


def is_exact_match(prediction: str, references: Iterable[str]) -> bool:
    """Whether the normalised prediction equals any normalised reference. A blank prediction never does."""
    if not prediction.strip():
        return False
    answer = normalize_answer(prediction)
    return any(answer == normalize_answer(reference) for reference in references)


@lru_cache(maxsize=_REMEMBERED)
def closed_options(question: str, reference: str) -> tuple[str, ...]:
    """Return the normalised answers that a closed question offers, or `()` where it names none.

    A reference of yes or no means the two of them. Otherwise the question must list alternatives (`A or B`,
    `A, B or C`) and exactly one of them must hold the reference; that one is the reference itself, the others are the
    words nearest to their `or` or comma, as many as the reference has. Left and right always offer each other.
    """
    wanted = normalize_answer(reference)
    if wanted in YES_NO:
        return YES_NO
    options = _listed_options(question, wanted)
    return options or (SIDES if wanted in SIDES else ())


def _listed_options(question: str, wanted: str) -> tuple[str, ...]:
    question = unicodedata.normalize("NFKC", question).casefold()
    if not _OPTION_LIST.search(question):
        return ()
    listed = [normalize_answer(part).split() for part in _OPTION_BREAK.split(question) if part.strip()]
    # "Which plane is it, axial or coronal?": the clause that asks offers nothing.
    segments = [words for words in listed[:-1] if not _ASKING_WORDS & set(words)] + listed[-1:]
    holders = [at for at, words in enumerate(segments) if f" {wanted} " in f" {' '.join(words)} "]
    if len(holders) != 1:
        return ()
    length = len(wanted.split())
    options = []
    for at, words in enumerate(segments):
        near = words[:length] if at == len(segments) - 1 else words[-length:]
        options.append(wanted if at == holders[0] else " ".join(_trim_function_words(near)))
    return tuple(dict.fromkeys(option for option in options if option))


def _trim_function_words(words: Sequence[str]) -> Sequence[str]:
    while words and words[0] in _FUNCTION_WORDS:
        words = words[1:]
    while words and words[-1] in _FUNCTION_WORDS:
        words = words[:-1]
    return words


@lru_cache(maxsize=_REMEMBERED)
def parse_closed_answer(prediction: str, question: str, reference: str) -> str | None:
    """Return the one option that a reply to a closed question takes, normalised, or `None` (unparsed).

    The reply is right when the result equals `normalize_answer(reference)`.

    - Yes or no: the first word decides, after an optional "the answer is". `No.` and `No evidence of a mass` are no;
      `normal`, `none` and `There is no mass` are unparsed, and so is a reply that takes both (`yes and no`).
    - Options named by the question, see [`closed_options`]: the reply holds exactly one of them as whole words, with
      no negation before it.
    - No option known: the whole normalised reply, so that only an equal answer is right.

    A blank reply is always unparsed.
    """
    if not prediction.strip():
        return None
    options = closed_options(question, reference)
    if options == YES_NO:
        return _parse_yes_no(prediction)
    if options:
        return _parse_choice(prediction, options)
    return normalize_answer(prediction)


def _parse_yes_no(prediction: str) -> str | None:
    text = _ANSWER_LEAD_IN.sub("", unicodedata.normalize("NFKC", prediction).casefold())
    clauses = [normalize_answer(part).split() for part in _CLAUSE_BREAK.split(text) if re.search(r"\w", part)]
    if not clauses or clauses[0][0] not in YES_NO:
        return None
    answer = clauses[0][0]
    other = "no" if answer == "yes" else "yes"
    if clauses[0][1:2] == [other]:
        return None
    for clause in clauses[1:]:
        # "no" before a noun only denies the noun ("Yes, no fracture"); at a clause's end it is an answer.
        if clause[-1] == other or (other == "yes" and "yes" in clause):
            return None
    return answer


def _parse_choice(prediction: str, options: Sequence[str]) -> str | None:
    words = f" {normalize_answer(prediction)} "
    rest = words
    found = []
    for option in sorted(options, key=len, reverse=True):  # the longest first: "left" in "left lung" is used up
        if f" {option} " in rest:
            found.append(option)
        while f" {option} " in rest:
            rest = rest.replace(f" {option} ", " | ")
    if len(found) != 1:
        return None
    before = words[: words.index(f" {found[0]} ")].split()
    return None if _NEGATIONS & set(before) else found[0]


@dataclass
class MajorityBaseline:
    """The answer a model gives that never sees an image: the most frequent one of the training samples.

    It looks for the same question string first, then for the same question types and answer type, then takes the most
    frequent answer of all. Ties go to the answer that sorts first, so that the result does not depend on file order.
    """

    by_question: dict[str, str] = field(default_factory=dict)
    by_type: dict[tuple[tuple[str, ...], str], str] = field(default_factory=dict)
    overall: str = ""

    @classmethod
    def fit(cls, samples: Iterable[Answerable]) -> MajorityBaseline:
        """Count the first reference of each *training* sample, normalised.

        Raises:
            ValueError: there is no sample.
        """
        by_question: dict[str, Counter[str]] = defaultdict(Counter)
        by_type: dict[tuple[tuple[str, ...], str], Counter[str]] = defaultdict(Counter)
        overall: Counter[str] = Counter()
        for sample in samples:
            answer = normalize_answer(sample.answers[0])
            by_question[normalize_answer(sample.instruction)][answer] += 1
            by_type[_type_key(sample)][answer] += 1
            overall[answer] += 1
        if not overall:
            raise ValueError("no training sample to take a majority answer from")
        return cls(_most_frequent(by_question), _most_frequent(by_type), _most_frequent({"": overall})[""])

    def predict(self, item: Answerable) -> str:
        """Return the normalised majority answer; the references of `item` are not looked at."""
        question = normalize_answer(item.instruction)
        return self.by_question.get(question) or self.by_type.get(_type_key(item)) or self.overall


def _type_key(item: Answerable) -> tuple[tuple[str, ...], str]:
    types = tuple(sorted(normalize_question_types(item.question_types)))
    return types, normalize_answer_type(item.answer_type)


def _most_frequent(counts: dict[Key, Counter[str]]) -> dict[Key, str]:
    return {key: min(counter, key=lambda answer: (-counter[answer], answer)) for key, counter in counts.items()}

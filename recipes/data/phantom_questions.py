# SPDX-License-Identifier: Apache-2.0
"""Questions about a phantom with exact answers, in VQA-RAD's question codes, without a shortcut through the text.

Every closed question has both its answers in equal shares, over all images and over the images of each view: an
alternative is drawn so that each pair is met as often from either end, and a finding is asked about as often where it
is present as where it is absent. Which questions are asked therefore tells nothing about the answers.
Nothing here imports numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .phantom_texts import MODALITY_WITH_ARTICLE, MODALITY_WORDS, PLANE_WITH_ARTICLE, PLANE_WORDS
from .phantom_truth import FINDING_SHARE, LESION_COUNT_SHARES, VIEWS, Draws, Phantom

QUESTION_TYPES = ("ABN", "ATTRIB", "COLOR", "COUNT", "MODALITY", "ORGAN", "PLANE", "POS", "PRES", "SIZE")
COUNT_QUESTION_SHARE = 0.25  # of the images; counting is hard for small models

# How a bright or dark lesion is called in each modality.
APPEARANCE_WORDS = {
    ("ct", "bright"): "hyperdense",
    ("ct", "dark"): "hypodense",
    ("mri", "bright"): "hyperintense",
    ("mri", "dark"): "hypointense",
    ("xray", "bright"): "opaque",
    ("xray", "dark"): "lucent",
    ("ultrasound", "bright"): "hyperechoic",
    ("ultrasound", "dark"): "hypoechoic",
}

# Attribute of the phantom: question code and wordings.
FINDING_QUESTIONS = {
    "cardiomegaly": (("PRES", "Is there cardiomegaly?"), ("SIZE", "Is the heart enlarged?")),
    "effusion": (("PRES", "Is there a pleural effusion?"), ("PRES", "Do you see a pleural effusion?")),
    "ventricles": (("SIZE", "Are the ventricles enlarged?"), ("SIZE", "Is there enlargement of the ventricles?")),
    "gallstone": (("PRES", "Is there a gallstone?"), ("PRES", "Does the gallbladder contain a stone?")),
}
# Of each part of the examination: how a value is said in an answer and in a question, and the wordings of open, yes/no
# and either/or questions.
EXAMINATION: dict[str, tuple[dict[str, str], dict[str, str], tuple[str, ...], tuple[str, ...], str]] = {
    "MODALITY": (
        MODALITY_WORDS,
        MODALITY_WITH_ARTICLE,
        ("What imaging modality is this?", "Which modality was used?", "What type of scan is this?"),
        ("Is this {} image?", "Was {} taken?"),
        "Is this {a} or {b}?",
    ),
    "PLANE": (
        PLANE_WORDS,
        PLANE_WITH_ARTICLE,
        ("In which plane was this image taken?", "What is the plane of this image?", "Which view is this?"),
        ("Is this {} view?", "Is this {} image?"),
        "Is this {a} or {b} view?",
    ),
    "ORGAN": (
        {},
        {},
        ("Which part of the body is shown?", "What body region is this?", "What part of the body was imaged?"),
        ("Is the {} shown?", "Is this an image of the {}?"),
        "Does this image show the {a} or the {b}?",
    ),
}


@dataclass(frozen=True)
class Question:
    """One question with its answer; `answer_type` is OPEN or CLOSED, `question_type` one of `QUESTION_TYPES`."""

    question: str
    answer: str
    answer_type: str
    question_type: str


def questions(phantom: Phantom, *, training: bool = False) -> list[Question]:
    """Return the questions of one image, 10 or 11 on average. The same phantom always gets the same ones.

    Args:
        training: ask the same questions in another mix. What is learned last, to compare the image with a word, is
            asked in pairs, once of the truth and once of another value; where something is, in both orders; what is
            learned first, more rarely.
    """
    draws = Draws(phantom.seed, 3)
    asked = [*_examination_questions(phantom, draws, training), *_presence_questions(phantom, draws, training)]
    if len(phantom.lesions) == 1:
        asked.extend(_lesion_questions(phantom, draws, training))
    return asked


def _open(code: str, answer: str, draws: Draws, *wordings: str) -> Question:
    return Question(draws.pick(wordings), answer, "OPEN", code)


def _yes_no(code: str, is_so: bool, draws: Draws, *wordings: str) -> Question:
    return Question(draws.pick(wordings), "yes" if is_so else "no", "CLOSED", code)


def _either(code: str, answer: str, wording: str, first: str, second: str, draws: Draws) -> Question:
    """Ask for one of two, in either order; `wording` has the places `{a}` and `{b}`."""
    if draws.share(0.5):
        first, second = second, first
    return Question(wording.format(a=first, b=second), answer, "CLOSED", code)


def _which_of_two(
    wording: str, answer: str, pair: tuple[str, str], draws: Draws, both_orders: bool
) -> Iterator[Question]:
    """Ask where something is, in an order that is drawn, or once in each order."""
    if both_orders:
        for first, second in (pair, pair[::-1]):
            yield Question(wording.format(a=first, b=second), answer, "CLOSED", "POS")
    else:
        yield _either("POS", answer, wording, *pair, draws)


def _examination_questions(phantom: Phantom, draws: Draws, training: bool) -> Iterator[Question]:
    for code, (words, names, open_wordings, yes_no_wordings, either_wording) in EXAMINATION.items():
        attribute = code.lower()
        truth = getattr(phantom, attribute)
        if not training or draws.share(0.3):
            yield _open(code, words.get(truth, truth), draws, *open_wordings)
        other = draws.pick(*_alternatives(attribute, truth))
        ask_either = not draws.share(0.75 if training else 0.5)
        if training or not ask_either:
            for named in (truth, other) if training else (draws.pick((truth, other)),):
                name = names.get(named, named)
                yield _yes_no(code, named == truth, draws, *(wording.format(name) for wording in yes_no_wordings))
        if ask_either:
            pair = (names.get(truth, truth), names.get(other, other))
            yield _either(code, words.get(truth, truth), either_wording, *pair, draws)
        if code == "MODALITY" and phantom.sequence and draws.share(0.6):
            yield _either("MODALITY", phantom.sequence.upper(), "Is this a {a} or a {b} image?", "T1", "T2", draws)
    if phantom.contrast is not None:
        yield _yes_no("PRES", phantom.contrast, draws, "Was contrast given?", "Is contrast seen in the vessels?")


def _presence_questions(phantom: Phantom, draws: Draws, training: bool) -> Iterator[Question]:
    count, view = len(phantom.lesions), VIEWS[phantom.view]
    share_without = LESION_COUNT_SHARES[0]
    if draws.share(_thinned(count > 0, 1 - share_without)):
        yield _yes_no("PRES", count > 0, draws, "Is there a lesion?", "Is a lesion present?", "Do you see a lesion?")
    for finding in view.findings:
        seen = getattr(phantom, finding) not in (False, "no")
        if draws.share(_thinned(seen, FINDING_SHARE)):
            code, wording = draws.pick(FINDING_QUESTIONS[finding])
            yield _yes_no(code, seen, draws, wording)
    if phantom.effusion in ("left", "right"):
        wording = "Is the pleural effusion on the {a} or the {b} side?"
        yield from _which_of_two(wording, phantom.effusion, ("left", "right"), draws, training)
    share_normal = share_without * (1 - FINDING_SHARE) ** len(view.findings)
    if draws.share(_thinned(phantom.is_normal, share_normal)):
        if draws.share(0.5):
            yield _yes_no("ABN", phantom.is_normal, draws, "Is this image normal?", "Does this image look normal?")
        else:
            yield _yes_no("ABN", not phantom.is_normal, draws, "Is this image abnormal?", "Is there an abnormality?")
    rarest = min(LESION_COUNT_SHARES)
    most = COUNT_QUESTION_SHARE / (len(LESION_COUNT_SHARES) * rarest)
    if draws.share(min(most, 1.0) * rarest / LESION_COUNT_SHARES[count]):
        yield _open("COUNT", str(count), draws, "How many lesions are there?", "How many lesions do you see?")
    sides = {lesion.side for lesion in phantom.lesions}
    if len(sides) == 1 and "" not in sides:
        for side in ("left", "right") if training else (draws.pick(("left", "right")),):
            wordings = f"Is there a lesion on the {side} side?", f"Is there a lesion on the {side}?"
            yield _yes_no("PRES", side in sides, draws, *wordings)


def _lesion_questions(phantom: Phantom, draws: Draws, training: bool) -> Iterator[Question]:
    """Ask about the only lesion of an image: its attributes are drawn evenly, so every answer is balanced."""
    lesion, levels = phantom.lesions[0], VIEWS[phantom.view].levels
    if lesion.side:
        wording = "Is the lesion on the {a} or the {b} side?"
        yield from _which_of_two(wording, lesion.side, ("left", "right"), draws, training)
    if draws.share(0.5):
        wording = "Is the lesion in the {a} or the {b} part?"
        yield from _which_of_two(wording, lesion.level, levels, draws, training)
    if draws.share(0.6):
        place = f"{lesion.side} {lesion.level}" if lesion.side else lesion.level
        yield _open("POS", place, draws, "Where is the lesion?", "What is the location of the lesion?")
    if draws.share(0.7):
        yield _either("SIZE", lesion.size, "Is the lesion {a} or {b}?", "small", "large", draws)
    if draws.share(0.5):
        yield _open("SIZE", lesion.size, draws, "What is the size of the lesion?", "How large is the lesion?")
    if draws.share(0.7):
        yield _either("COLOR", lesion.tone, "Is the lesion {a} or {b}?", "bright", "dark", draws)
    if draws.share(0.4):
        appearance = APPEARANCE_WORDS[phantom.modality, lesion.tone]
        yield _open("COLOR", appearance, draws, "How does the lesion appear?", "What is the appearance of the lesion?")
    if draws.share(0.3):
        yield _either("ATTRIB", lesion.shape, "Is the lesion {a} or {b}?", "round", "elongated", draws)
    if draws.share(0.5):
        pairs = ((lesion.tone, ("bright", "dark")), (lesion.size, ("small", "large")))
        seen, values = draws.pick(pairs)
        for named in values if training else (draws.pick(values),):
            yield _yes_no("PRES", named == seen, draws, f"Is there a {named} lesion?", f"Do you see a {named} lesion?")


def _thinned(is_present: bool, share_present: float) -> float:
    """Return how often to ask, so that presence and absence are asked about equally often."""
    here = share_present if is_present else 1 - share_present
    return min(1.0, (1 - here) / here)


def _alternatives(attribute: str, truth: str) -> tuple[tuple[str, ...], list[float]]:
    """Return the other values of an attribute and how often to set each beside the truth."""
    weights = _PAIRINGS[attribute][truth]
    return tuple(weights), list(weights.values())


def _pairing(shares: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return symmetric weights of pairs whose rows sum to the values' shares.

    Drawing a truth's alternative by its row meets each pair as often from either end. Exists where no share exceeds
    one half; found by alternate scaling.
    """
    factor = dict.fromkeys(shares, 1.0)
    for _ in range(200):
        for key, share in shares.items():
            others = math.fsum(factor[other] for other in shares if other != key)
            factor[key] = 0.5 * factor[key] + 0.5 * share / others
    return {key: {other: factor[key] * factor[other] for other in shares if other != key} for key in shares}


def _shares(attribute: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for view in VIEWS.values():
        key = getattr(view, attribute)
        shares[key] = shares.get(key, 0.0) + view.share
    return shares


_PAIRINGS = {attribute: _pairing(_shares(attribute)) for attribute in ("modality", "plane", "organ")}

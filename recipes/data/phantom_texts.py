# SPDX-License-Identifier: Apache-2.0
"""Captions, reports and located phrases of a phantom, and the words that they are built from.

Every statement of a report is one sentence of a fixed family, so that a parser recovers exactly
[`phantom_truth.facts`]. Nothing here imports numpy.
"""

from __future__ import annotations

from collections import Counter

from .phantom_truth import Box, Draws, Lesion, Phantom

MODALITY_WORDS = {"ct": "CT", "mri": "MRI", "xray": "X-ray", "ultrasound": "ultrasound"}
MODALITY_WITH_ARTICLE = {"ct": "a CT", "mri": "an MRI", "xray": "an X-ray", "ultrasound": "an ultrasound"}
PLANE_WORDS = {
    "axial": "axial",
    "coronal": "coronal",
    "sagittal": "sagittal",
    "pa": "PA",
    "lateral": "lateral",
    "oblique": "oblique",
}
PLANE_WITH_ARTICLE = {key: f"an {word}" if word[0] in "ao" else f"a {word}" for key, word in PLANE_WORDS.items()}
SEQUENCE_WORDS = {"t1": "T1-weighted", "t2": "T2-weighted"}
CONTRAST_WORDS = {True: "with contrast", False: "without contrast"}
COUNT_WORDS = ("No", "One", "Two", "Three")

# (present, absent), each in the wordings that reports use; `{side}` is left or right.
FINDING_SENTENCES = {
    "cardiomegaly": (
        ("The heart is enlarged.", "There is cardiomegaly."),
        ("The heart size is normal.", "There is no cardiomegaly."),
    ),
    "ventricles": (
        ("The ventricles are enlarged.", "There is enlargement of the ventricles."),
        ("The ventricles are normal.", "The ventricles are of normal size."),
    ),
    "gallstone": (
        ("There is a gallstone.", "A gallstone is seen."),
        ("There is no gallstone.", "No gallstone is seen."),
    ),
    "effusion": (
        ("There is a {side}pleural effusion.", "A {side}pleural effusion is seen."),
        ("There is no pleural effusion.", "No pleural effusion is seen."),
    ),
}
LESION_SENTENCES = ("There is {lesion}.", "{Lesion} is seen.")
NO_LESION_SENTENCES = ("There is no lesion.", "No lesion is seen.")
LEVEL_PHRASES = {
    "upper": "in the upper part",
    "lower": "in the lower part",
    "anterior": "in the anterior part",
    "posterior": "in the posterior part",
    "superficial": "in the superficial part",
    "deep": "in the deep part",
}
IMPRESSION_FINDINGS = {
    "cardiomegaly": "Cardiomegaly.",
    "ventricles": "Enlarged ventricles.",
    "gallstone": "Gallstone.",
    "effusion": "{Side}pleural effusion.",
}
FINDING_ORDER = ("effusion", "cardiomegaly", "ventricles", "gallstone")


def examination(phantom: Phantom) -> str:
    """Return what was examined, such as `Axial T2-weighted MRI of the head` or `PA X-ray of the chest`."""
    words = [PLANE_WORDS[phantom.plane], SEQUENCE_WORDS.get(phantom.sequence, ""), MODALITY_WORDS[phantom.modality]]
    text = _capital(" ".join(word for word in words if word)) + f" of the {phantom.organ}"
    return text if phantom.contrast is None else f"{text} {CONTRAST_WORDS[phantom.contrast]}"


def describe_lesion(lesion: Lesion) -> str:
    """Return the full description, such as `a large bright round lesion on the left in the upper part`."""
    side = f" on the {lesion.side}" if lesion.side else ""
    return f"a {lesion.size} {lesion.tone} {lesion.shape} lesion{side} {LEVEL_PHRASES[lesion.level]}"


def caption(phantom: Phantom) -> str:
    """Return one or two sentences: the examination, then each lesion's size, tone, shape and place, or none."""
    lesions = [describe_lesion(lesion) for lesion in phantom.lesions]
    if not lesions:
        return f"{examination(phantom)}. No lesion is seen."
    if len(lesions) == 1:
        return f"{examination(phantom)}. There is {lesions[0]}."
    return f"{examination(phantom)}. There are {COUNT_WORDS[len(lesions)].lower()} lesions: {'; '.join(lesions)}."


def report(phantom: Phantom) -> str:
    """Return a report in two sections, `FINDINGS: ... IMPRESSION: ...`, that states exactly the phantom's facts."""
    draws = Draws(phantom.seed, 2)
    findings = [f"{examination(phantom)}."]
    if not phantom.lesions:
        findings.append(draws.pick(NO_LESION_SENTENCES))
    for lesion in phantom.lesions:
        text = describe_lesion(lesion)
        findings.append(draws.pick(LESION_SENTENCES).format(lesion=text, Lesion=_capital(text)))
    impression = [f"{COUNT_WORDS[len(phantom.lesions)]} lesion{'s' if len(phantom.lesions) > 1 else ''}."]
    for finding in FINDING_ORDER:
        seen = getattr(phantom, finding)
        if seen is None:
            continue
        is_present = seen not in (False, "no")
        side = f"{seen} " if seen in ("left", "right") else ""
        findings.append(draws.pick(FINDING_SENTENCES[finding][0 if is_present else 1]).format(side=side))
        if is_present:
            text = IMPRESSION_FINDINGS[finding].format(Side=side)
            impression.append(_capital(text))
    return f"FINDINGS: {' '.join(findings)} IMPRESSION: {' '.join(impression)}"


def referring_phrases(phantom: Phantom) -> list[tuple[str, Box]]:
    """Return `(phrase, box)` of each lesion that words can single out, such as `the large bright lesion on the left`.

    The phrase names size, tone and place; it is left out where two lesions of the image share them all. Boxes are
    (x1, y1, x2, y2), integers 0..100 of the image's width and height.
    """
    phrases = []
    for lesion in phantom.lesions:
        side = f" on the {lesion.side}" if lesion.side else ""
        phrases.append(f"the {lesion.size} {lesion.tone} lesion{side} {LEVEL_PHRASES[lesion.level]}")
    count = Counter(phrases)
    return [
        (phrase, lesion.box) for phrase, lesion in zip(phrases, phantom.lesions, strict=True) if count[phrase] == 1
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

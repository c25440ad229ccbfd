# SPDX-License-Identifier: Apache-2.0
"""Reads the facts that a report of a phantom states, so that any model's report can be scored against the exact truth.

Standard library only: a file of predictions can be scored where the phantoms themselves are not installed.
"""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"[.;:\n]+")
_SECTION = re.compile(r"\b(?:findings|impression)\s*:", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:no|not|without|absent|absence of)\b")

# Fact: what states it, as whole words, in the sentence that names the examination.
_MODALITIES = {"ct": "ct", "mri": "mri", "xray": "x-ray|xray|x ray|radiograph", "ultrasound": "ultrasound"}
_PLANES = {name: name for name in ("axial", "coronal", "sagittal", "pa", "lateral", "oblique")}
_ORGANS = {name: name for name in ("head", "chest", "abdomen")}
_SEQUENCES = {"t1": "t1(?:-weighted)?", "t2": "t2(?:-weighted)?"}

_LESION_WORDS = {
    "side": ("left", "right"),
    "level": ("upper", "lower", "anterior", "posterior", "superficial", "deep"),
    "size": ("small", "large"),
    "tone": ("bright", "dark"),
    "shape": ("round", "elongated"),
}
_COUNTS = {"no": 0, "one": 1, "single": 1, "two": 2, "three": 3}
_COUNTED_LESIONS = re.compile(rf"\b({'|'.join(_COUNTS)})\s+lesions?\b")


def report_facts(text: str) -> frozenset[str]:
    """Return the facts that a report or caption states, such as `{"modality=ct", "side=left", "lesions=1"}`.

    For a phantom's own report this is exactly its truth. Keys: modality, plane, organ, sequence, contrast, effusion
    (left, right, yes, no), cardiomegaly and gallstone (yes, no), ventricles (enlarged, normal), lesions (their number)
    and, of each lesion, side, level, size, tone, shape.

    Each sentence is read by itself, whatever its case. The number of lesions is what is stated (`Two lesions`, `no
    lesion`); where none is stated, the number of sentences that describe one. A report that contradicts itself states
    both facts. Text that states nothing known gives the empty set.
    """
    facts: set[str] = set()
    described = 0
    for sentence in _SENTENCE_END.split(_SECTION.sub(".", text.lower())):
        words = " ".join(sentence.split())
        if "lesion" in words:
            count = _COUNTED_LESIONS.search(words)
            if count:
                facts.add(f"lesions={_COUNTS[count.group(1)]}")
                continue
            stated = _lesion_attributes(words)
            if stated and not _NEGATED.search(words):
                described += 1
                facts |= stated
        else:
            facts |= _findings(words) or _examination(words)
    if described and not any(fact.startswith("lesions=") for fact in facts):
        facts.add(f"lesions={described}")
    return frozenset(facts)


def _lesion_attributes(words: str) -> set[str]:
    return {f"{key}={word}" for key, known in _LESION_WORDS.items() for word in known if _has(words, word)}


def _findings(words: str) -> set[str]:
    is_absent = bool(_NEGATED.search(words))
    if "effusion" in words:
        if is_absent:
            return {"effusion=no"}
        return {f"effusion={side}" for side in ("left", "right") if _has(words, side)} or {"effusion=yes"}
    if "gallstone" in words:
        return {f"gallstone={'no' if is_absent else 'yes'}"}
    if "cardiomegaly" in words or _has(words, "heart"):
        is_large = ("cardiomegaly" in words or "enlarge" in words) and not is_absent
        return {f"cardiomegaly={'yes' if is_large else 'no'}"}
    if "ventricle" in words:
        return {f"ventricles={'enlarged' if 'enlarge' in words and not is_absent else 'normal'}"}
    return set()


def _examination(words: str) -> set[str]:
    facts = {
        f"{key}={name}"
        for key, known in (
            ("modality", _MODALITIES), ("plane", _PLANES), ("organ", _ORGANS), ("sequence", _SEQUENCES)
        )
        for name, spelling in known.items()
        if _has(words, spelling)
    }  # fmt: skip
    if _has(words, "without (?:intravenous )?contrast"):
        facts.add("contrast=no")
    elif _has(words, "with (?:intravenous )?contrast"):
        facts.add("contrast=yes")
    return facts


def _has(words: str, spelling: str) -> bool:
    return re.search(rf"(?<![\w-])(?:{spelling})(?![\w-])", words) is not None

# SPDX-License-Identifier: Apache-2.0
"""500 invented report pairs with everything that tokenizers quarrel about, the same on every machine."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COUNT = 500

# Texts whose words are not what one would guess.
TOKENIZER_CASES = (
    "",
    "hepatitis C. difficile, type b. next",
    "no. There is no. 3. No change; approx. 3, Jan. 3, etc.",
    "s.p. resection, s/p, w/o, p.o. q.d. b.i.d., M.D., Ph.D., U.S.",
    "3.5x2.1 cm, 3.5 x 2.1cm, 2x3x4 cm, 10mm, 10-mm, 1.5-cm, 0.5-1.5",
    "T1. L5-S1. C5/C6. 10:30am, 10:45 p.m., 98.6F, 0.9%, 50%-60%",
    "+5, -5, 5+, +/- 5, ±5, <5 mm, >1.5 cm, ~3, ≥3, $5, #3 & 1,000,000.5 1,2,3",
    "o'clock, O'Brien's, patients', 20's, it’s, can’t, cannot, shouldn't've, I'm",
    "(XXXX) [x] {y} \"quoted\" 'single' “curly” — en–dash -- … ... - end-",
    "lungs.No space,none 3.No 1.First top-normal.No a.b C.spine 6.1.2015",
    "non- op post-op -op well-defined and/or AP/PA ½ µm naïve CO2 m2 __ _ * ^ = |",
    "Dr. Smith vs. Mr. Jones, Lt. lung, Rt. arm, St. John; Fig. 2, fig 3.",
)

_SENTENCES = (
    "The {side} lung is clear.",
    "No focal consolidation, pleural effusion, or pneumothorax is seen.",
    "No acute cardiopulmonary abnormality.",
    "The heart size is {size}; the mediastinal contours are within normal limits.",
    "There is a {n}.{m} cm {shape} nodule in the {side} {lobe} lobe (series {n}, image {big}).",
    "{side} pleural effusion, {size}, measuring approx. {n} x {m}.{n} cm.",
    "Degenerative changes of the thoracic spine at T{big}-L{n} are {size}.",
    "Cannot exclude a {size} {side}-sided infiltrate/atelectasis.",
    "The patient's {side} hemidiaphragm isn't well-defined.",
    "Findings were discussed with Dr. {name} at {n}:{big} p.m. by phone",
    "Compared to the prior exam of {n}/{big}/2019, there's no significant change.",
    "FINDINGS: {size} cardiomegaly.  IMPRESSION: stable; {side} base opacity",
    "A {n}-mm calcified granuloma [XXXX] is noted in the {lobe} lobe.",
    "T2-weighted/FLAIR images show {big}% volume loss vs. the {side} hemisphere.",
    "ET tube tip is {n}.{m} cm above the carina. NG tube isn't seen...",
    "Lungs are hyperexpanded, e.g. in COPD; no air-space disease.",
    "1. {size} edema. 2. No fracture. 3. Follow-up in {n}-{m} weeks",
    "Hounsfield units of -{big} suggest fat; <{n} mm septa, {m}.{big} mm wall.",
    "It's the '{shape}' sign, \"{size}\" in degree - don't over-call it!",
    "Osseous structures: {size} scoliosis -- unchanged since {n}.{m} years?",
    "XXXX-year-old with {n},{big}00 mL of fluid & {m}+ nodes (stage {n}b).",
    "{side} lower-lobe collapse can't be ruled out; it wasn't there before",
    "Mediastinum {size}.No hilar adenopathy.",
    "The {lobe} zones, i.e. {n}/{m} of the {side} lung, are {size}",
)
_WORDS: dict[str, Sequence[str]] = {
    "side": ("left", "Right", "bilateral"),
    "size": ("normal", "mildly enlarged", "moderate", "severe", "minimal", "top-normal"),
    "shape": ("round", "spiculated", "ill-defined", "oval"),
    "lobe": ("upper", "lower", "middle"),
    "name": ("Lee", "O'Hara", "Novak"),
}


def _pick(rng: random.Random, choices: Sequence[str]) -> str:
    return choices[int(rng.random() * len(choices))]  # `choice` may change with Python's version, `random` not


def _sentence(rng: random.Random) -> str:
    words = {name: _pick(rng, choices) for name, choices in _WORDS.items()}
    return _pick(rng, _SENTENCES).format(
        n=1 + int(rng.random() * 9), m=1 + int(rng.random() * 9), big=10 + int(rng.random() * 49), **words
    )


def report_pairs() -> tuple[list[str], list[list[str]]]:
    """Return the 500 predictions and the one to three references of each.

    A prediction keeps some sentences of its first reference and invents others; some are empty, some are equal.
    """
    rng = random.Random(0)
    predictions, references = [], []
    for at in range(COUNT):
        sentences = [_sentence(rng) for _ in range(1 + int(rng.random() * 6))]
        kept = [sentence for sentence in sentences if rng.random() < 0.6]
        invented = [_sentence(rng) for _ in range(int(rng.random() * 3))]
        prediction = " ".join(sentences if at % 50 == 1 else kept + invented)
        others = [" ".join(_sentence(rng) for _ in range(3)) for _ in range(2 if at % 10 == 3 else at % 10 == 7)]
        predictions.append("" if at % 100 == 99 else prediction)
        references.append([" ".join(sentences), *others])
    return predictions, references


def coco_values() -> dict[str, Any]:
    """Return what pycocoevalcap and Java gave for these texts; `make_report_values.py` wrote it."""
    return dict(json.loads((Path(__file__).parent / "data" / "report_values.json").read_text(encoding="utf-8")))

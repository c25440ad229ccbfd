# SPDX-License-Identifier: Apache-2.0
"""What is asked of the model: the text after the task identifier, and the spelling of boxes.

Everything is deterministic: the same seed and sample id draw the same wording on every machine.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from typing import Literal

from ..errors import ConfigError, PeFoMedError, did_you_mean
from ..records import TASKS, Sample

VqaInstruction = Literal["plain", "short_answer", "mixed"]

# Source: the paper's two VQA instructions; one of them at random in training, the second at test.
VQA_PREFIXES = {
    "plain": "",
    "short_answer": "Based on the image, respond to this question with a short answer: ",
}
# Source: the paper's MS-CXR grounding instruction.
REFER_PREFIX = "give me the location of "

# The paper draws from pools of paraphrases; these are our own. The first of each is the one used at test.
CAPTION_REQUESTS = (
    "Give this medical image a short caption.",
    "What does this image show? Answer in one or two sentences.",
    "State in brief what was examined and what can be seen.",
    "Caption this scan.",
    "Name the main content of the image in one sentence.",
    "Sum up what is visible as a short caption.",
    "Tell me in a few words what this picture is.",
    "Write the line that would stand under this figure in an article.",
    "Which structures and changes are visible? Keep it short.",
    "Compose a brief legend for the image.",
)
# Differs: each of the paper's pool that asks something else than a report has no counterpart here.
REPORT_REQUESTS = (
    "Write the radiology report for this examination.",
    "Prepare the written report of this study.",
    "Dictate the full report of this examination.",
    "Draft the report that a radiologist would give on this study.",
    "Set down all findings as a radiology report.",
    "Produce the diagnostic report that belongs to this examination.",
    "Read this study and report on it in full.",
    "As the reading radiologist, write up this examination as a report.",
)
# Further wordings for the sets whose images are all of one kind: figures of articles, or chest X-rays. They are drawn
# from beside their task's; the one used at test stays the task's first.
_FIGURES = (
    "This figure is from a medical article: write its caption.",
    "Which caption would an author put under this figure?",
    "Caption this figure for a reader who has not seen the article.",
)
_CHEST_CAPTIONS = (
    "Say in brief what this chest X-ray shows.",
    "Caption this chest X-ray in one or two sentences.",
    "Sum up this radiograph of the chest.",
)
_CHEST_REPORTS = (
    "Report on this chest X-ray: heart, lungs, pleura and bones.",
    "Write the report of this radiograph of the chest.",
    "Prepare findings and impression of this chest X-ray as a report.",
)
DATASET_REQUESTS = {
    **{(name, "caption"): _FIGURES for name in ("roco", "rocov2", "clef_caption", "medicat")},
    ("mimic_cxr", "caption"): _CHEST_CAPTIONS,
    ("mimic_cxr", "report"): _CHEST_REPORTS,
    ("iu_xray", "report"): _CHEST_REPORTS,
}
# The released code's pools by meaning: 17 for captions; 15 for reports, some of which ask for less than the report
# that is to be the answer. Drawn from with `template: released` only.
RELEASED_CAPTION_REQUESTS = (
    *CAPTION_REQUESTS,
    "Describe this image briefly.",
    "Say concisely what the picture shows.",
    "A short description of this image, please.",
    "What is depicted here, in brief?",
    "Give the gist of this image.",
    "Provide a compact account of what is seen.",
    "Short caption for this picture:",
)
RELEASED_REPORT_REQUESTS = (
    *REPORT_REQUESTS,
    "Is this examination normal on the whole?",
    "Which findings does this image show?",
    "Is there anything abnormal to be seen?",
    "What is your impression of this study?",
    "Describe the findings in this image.",
    "What does this examination tell about the patient?",
    "Comment on the heart and the lungs.",
)


def vqa_instruction(
    question: str, instruction: VqaInstruction = "mixed", seed: int | Sequence[int] = 0, sample_id: str = ""
) -> str:
    """Return a question in one of the paper's two VQA instructions.

    Args:
        question: the raw question.
        instruction: `plain` is the question alone, `short_answer` asks for a short answer, `mixed` draws one of them.
        seed: with `sample_id`, decides the draw. Several numbers, such as (seed, epoch), draw anew each epoch.
        sample_id: id of the sample, or of the image where all questions of a packed row shall share one wording.

    Raises:
        ConfigError: the instruction is unknown.
        PeFoMedError: the question is empty.

    Source: the paper's VQA instruction templates.
    """
    if not question.strip():
        raise PeFoMedError("The question is empty; expected some text")
    chosen = _draw(tuple(VQA_PREFIXES), seed, sample_id) if instruction == "mixed" else instruction
    if chosen not in VQA_PREFIXES:
        known = [*VQA_PREFIXES, "mixed"]
        raise ConfigError(
            f"Unknown VQA instruction {instruction!r}{did_you_mean(instruction, known)}; "
            f"expected one of {', '.join(known)}"
        )
    return VQA_PREFIXES[chosen] + question


def render_instruction(
    sample: Sample,
    *,
    training: bool,
    instruction: VqaInstruction = "mixed",
    seed: int | Sequence[int] = 0,
    released: bool = False,
) -> str:
    """Return the text that follows the task identifier.

    A caption or report sample that brings its own request keeps it. Otherwise a request is drawn in training from the
    pools of its task and of its data set, and the task's first one stands at test. At test, `mixed` means
    `short_answer`, as in the paper; `plain` and `short_answer` hold in both, so that a model is asked as it was
    trained.

    Args:
        sample: `instruction` holds the raw question, phrase or request, `source` the data set's slug.
        training: whether wordings are drawn.
        instruction: for `vqa`, see [`vqa_instruction`].
        seed: with the sample's id, decides every draw.
        released: draw from the released code's pools, by meaning.

    Raises:
        ConfigError: the VQA instruction is unknown.
        PeFoMedError: the task is unknown, or the question or phrase is empty.
    """
    if sample.task == "vqa":
        chosen: VqaInstruction = "short_answer" if instruction == "mixed" and not training else instruction
        return vqa_instruction(sample.instruction, chosen, seed, sample.id)
    if sample.task == "refer":
        if not sample.instruction.strip():
            raise PeFoMedError("The phrase to locate is empty; expected some text")
        return REFER_PREFIX + sample.instruction
    if sample.task not in ("caption", "report"):
        raise PeFoMedError(
            f"Unknown task {sample.task!r}{did_you_mean(sample.task, TASKS)}; expected one of {', '.join(TASKS)}"
        )
    if sample.instruction.strip():
        return sample.instruction
    requests: tuple[str, ...] = CAPTION_REQUESTS if sample.task == "caption" else REPORT_REQUESTS
    if not training:
        return requests[0]
    if released:
        requests = RELEASED_CAPTION_REQUESTS if sample.task == "caption" else RELEASED_REPORT_REQUESTS
    else:
        requests += DATASET_REQUESTS.get((sample.source, sample.task), ())
    return _draw(requests, seed, sample.id)


def format_box(box: Sequence[int]) -> str:
    """Return `{<x1><y1><x2><y2>}`, the spelling of a [refer] answer.

    Args:
        box: left, top, right, bottom: integers 0..100, shares of the image's width and height in percent.

    Raises:
        PeFoMedError: these are not four integers 0..100 with x1 < x2 and y1 < y2.

    Source: the paper's MS-CXR grounding answers.
    """
    try:
        if any(isinstance(value, bool) for value in box):
            raise TypeError
        x1, y1, x2, y2 = (operator.index(value) for value in box)
    except (TypeError, ValueError):
        raise PeFoMedError("a box must be four integers [x1, y1, x2, y2]") from None
    if not (0 <= x1 < x2 <= 100 and 0 <= y1 < y2 <= 100):
        raise PeFoMedError("a box must have 0 <= x1 < x2 <= 100 and 0 <= y1 < y2 <= 100")
    return f"{{<{x1}><{y1}><{x2}><{y2}>}}"


def _draw(pool: Sequence[str], seed: int | Sequence[int], sample_id: str) -> str:
    """Return one entry of a pool. Not by `hash()`, which differs from process to process."""
    numbers = seed if isinstance(seed, Sequence) else [seed]
    key = "\x1f".join([*map(str, numbers), sample_id])
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    return pool[int.from_bytes(digest[:8], "big") % len(pool)]

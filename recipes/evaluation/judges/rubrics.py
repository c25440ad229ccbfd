# SPDX-License-Identifier: Apache-2.0
"""What a judge is asked: rubrics as files, and the messages that put an answer before it.

A rubric's file, its scale and the layout of the messages are fingerprinted: scores under other words are other scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ...errors import ConfigError, did_you_mean
from ...ledger import fingerprint
from ...records import RUBRICS

# Candidate first turns the two texts round, reversed turns the list of levels; both must leave a good judge unmoved.
FORMS = ("plain", "candidate_first", "levels_reversed")


@dataclass(frozen=True)
class Rubric:
    """The wording of a rubric, with `{levels}` where the scale goes, and its scale, from 0 up."""

    name: str
    wording: str
    levels: tuple[str, ...]

    @property
    def top(self) -> int:
        """The highest score."""
        return len(self.levels) - 1

    @property
    def sha256(self) -> str:
        """The fingerprint of all that is put before a judge but the data: wording, scale, layout and form of reply."""
        blank = Answer("", "", "vqa", "", ("", ""), "")
        return fingerprint({"chats": [messages(self, blank, form) for form in FORMS], "reply": self.reply_format()})

    def instructions(self, *, levels_reversed: bool = False) -> str:
        """Return the text that comes before the data, with the levels from the top down, or from 0 up."""
        lines = [f"{score}: {meaning}" for score, meaning in enumerate(self.levels)]
        return self.wording.format(levels="\n".join(lines if levels_reversed else lines[::-1]))

    def reply_format(self) -> dict[str, Any]:
        """Return the schema of the reply, for endpoints that can hold a model to one."""
        score = {"type": "integer", "enum": list(range(self.top + 1))}
        schema: dict[str, Any] = {"type": "object", "properties": {"score": score}, "required": ["score"]}
        if '"errors"' in self.wording:
            counts = {"type": "object", "properties": {kind: {"type": "integer", "minimum": 0} for kind in "abcdef"}}
            schema["properties"] = {"errors": counts, "score": score}
            schema["required"] = ["errors", "score"]
        return {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}


def load_rubric(name: str) -> Rubric:
    """Return a packaged rubric.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in RUBRICS:
        raise ConfigError(
            f"Unknown rubric {name!r}{did_you_mean(name, RUBRICS)}; expected one of {', '.join(RUBRICS)}"
        )
    wording = (resources.files(__package__) / "rubrics" / f"{name}.md").read_text(encoding="utf-8")
    return Rubric(name, wording, RUBRICS[name])


def rubric_for(task: str, name: str = "") -> Rubric:
    """Return the rubric of that name, or the default for a task: the paper's for questions, ours for texts.

    Raises:
        ConfigError: there is none, or it is for the other kind of task.
    """
    rubric = load_rubric(name or ("paper-vqa" if task == "vqa" else "pefomed-report"))
    if (task == "vqa") != (rubric.top == 1):
        raise ConfigError(f"rubric {rubric.name} has the scale 0..{rubric.top}, which is not for the task {task}")
    return rubric


@dataclass(frozen=True)
class Answer:
    """One system's answer to one item, as a judge sees it: neither who gave it nor anything of the image.

    `control` names a change that the gate made, "" for a real answer.
    """

    item_id: str
    system: str
    task: str
    question: str
    references: tuple[str, ...]
    candidate: str
    control: str = ""


def messages(rubric: Rubric, answer: Answer, form: str = "plain") -> list[dict[str, str]]:
    """Return the chat that puts an answer before a judge.

    Texts stand between tags and cannot close them: `<` and `>` are written as `&lt;` and `&gt;`.

    Args:
        form: one of `FORMS`.
    """
    references = [_tagged("reference", text) for text in answer.references]
    candidate = [_tagged("candidate", answer.candidate)]
    parts = [*candidate, *references] if form == "candidate_first" else [*references, *candidate]
    if answer.task == "vqa":
        parts.insert(0, _tagged("question", answer.question))
    if len(references) > 1:
        parts.append("The references are alternatives: the one that is nearest to the candidate counts.")
    return [
        {"role": "system", "content": rubric.instructions(levels_reversed=form == "levels_reversed")},
        {"role": "user", "content": "\n".join(parts)},
    ]


def _tagged(tag: str, text: str) -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<{tag}>\n{safe}\n</{tag}>"


def middle(scores: Sequence[int | None]) -> float | None:
    """Return the median of an answer's samples, `None` where none could be read or the median lies between two levels.

    For the scale 0/1 this is the majority. Samples that could not be read are left out.
    """
    read = sorted(score for score in scores if score is not None)
    if not read:
        return None
    low, high = read[(len(read) - 1) // 2], read[len(read) // 2]
    return float(low) if low == high else None

# SPDX-License-Identifier: Apache-2.0
"""Runs of known quality for the report page: answers, controls, a judge that knows words, and what the page finds."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

from pefomed_recipes.evaluation.judges.judging import Ask, Outcome
from pefomed_recipes.evaluation.judges.rubrics import Rubric, load_rubric
from pefomed_recipes.evaluation.judges.running import run_judge
from pefomed_recipes.evaluation.page.finding import Finding
from pefomed_recipes.evaluation.page.rendering import write_report
from pefomed_recipes.evaluation.results import Results
from pefomed_recipes.evaluation.scoring import score
from pefomed_recipes.records import CONTROLS, Prediction, write_records

IMAGES = 60
SECRET = "a lesion that nobody may read about"


class WordJudge:
    """Right is what has all words of the reference and denies as it does; `always` gives one score to everything."""

    def __init__(self, name: str = "words-1", always: int | None = None) -> None:
        self.name, self.always = name, always

    def outcomes(self, asks: Sequence[Ask], rubric: Rubric) -> list[Outcome]:
        return [Outcome(self._score(ask) if self.always is None else self.always, reply="{}") for ask in asks]

    def _score(self, ask: Ask) -> int:
        said, wanted = (
            set(re.findall("[a-z]+", text.lower())) for text in (ask.answer.candidate, ask.answer.references[0])
        )
        return int(bool(said) and wanted <= said and ("no" in said) == ("no" in wanted))

    def afresh(self, ledger: Path) -> WordJudge:
        return self


def page_predictions(images: int = IMAGES) -> list[Prediction]:
    """Right answers about chests and heads; every tenth image is answered wrongly."""
    items = []
    for at in range(images):
        organ, side = ("chest", "head")[at % 2], ("left", "right")[at // 2 % 2]
        yes = at % 3 == 0
        for number, (question, answer, wrong, kind, code) in enumerate(
            (
                ("Is there a mass?", "yes" if yes else "no", "no" if yes else "yes", "CLOSED", "PRES"),
                ("Is it on the left or the right?", side, "left" if side == "right" else "right", "CLOSED", "POS"),
                ("Which organ is shown?", organ, "knee", "OPEN", "ORGAN"),
                (f"What is shown, of {SECRET}?", f"{organ} {side}", "nothing", "OPEN", "OTHER"),
            )
        ):
            said = wrong if at % 10 == 7 else answer
            items.append(
                Prediction(
                    id=f"image{at}-{number}",
                    task="vqa",
                    instruction=question,
                    answers=[answer],
                    prediction=said,
                    answer_type=kind,
                    question_types=[code],
                    organ=organ,
                    image_id=f"image {at}",
                    source="handwritten",
                    split="test",
                    model="base",
                    adapter="stage2@0123",
                    p_yes={"yes": 0.9, "no": 0.1}.get(said),
                )
            )
    return items


def score_into(
    folder: Path, items: Sequence[Prediction], name: str = "results.json", *, control: bool = True, blank: str = "yes"
) -> Results:
    """Write predictions and what belongs to them into `folder`, and score them."""
    stem = "" if name == "results.json" else f"{Path(name).stem}-"
    answers = folder / f"{stem}predictions.jsonl"
    write_records(answers, items)
    controls = {name: folder / f"{stem}predictions-{name}.jsonl" for name in CONTROLS.values()}
    for control_name, path in controls.items():
        said = [replace(i, prediction=blank or i.prediction, control=control_name, p_yes=None) for i in items]
        write_records(path, said)
    train = [{"question": i.instruction, "answer": i.answers[0], "answer_type": i.answer_type} for i in items[:16]]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in train), encoding="utf-8")
    return score(
        answers, controls=controls if control else {}, train_samples=folder / "train.jsonl", out=folder / name
    )


def judge_into(folder: Path, judge: WordJudge, items: Sequence[Prediction]) -> None:
    run_judge(judge, load_rubric("paper-vqa"), items, folder / "verdicts.jsonl", samples=2)


def found_in(folder: Path, *more: Path) -> dict[str, Finding]:
    """Return what the report of a folder finds, by name."""
    return {finding.name: finding for finding in write_report([folder, *more], folder / "page.html").findings}


def mix_up_sides(item: Prediction) -> Prediction:
    return replace(item, prediction="left") if item.question_types == ["POS"] else item


@dataclass
class Page(HTMLParser):
    """What a reader of the markup meets."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def read(cls, path: Path) -> Page:
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, *names: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag in names]

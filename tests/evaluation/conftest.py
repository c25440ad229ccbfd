# SPDX-License-Identifier: Apache-2.0
"""A handwritten run of visual question answering: predictions, a blank-image control and training samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pefomed_recipes.records import CONTROLS, Prediction, write_records

QUESTIONS = (
    ("Is there a mass?", "yes", "CLOSED", "PRES"),
    ("Is it on the left or the right?", "right", "CLOSED", "POS"),
    ("Which organ is shown?", "chest", "OPEN", "ORGAN"),
)


@pytest.fixture
def vqa_run(tmp_path: Path) -> Path:
    """A folder with `predictions.jsonl` (every fourth answer wrong), `blank.jsonl`, `shuffle.jsonl` and `mirror.jsonl`
    (always yes), and `train.jsonl`."""
    items = [
        Prediction(
            id=f"{image}-{at}",
            task="vqa",
            instruction=question,
            answers=[answer],
            prediction="no idea" if (image + at) % 4 == 0 else f"{answer.title()}.",
            answer_type=answer_type,
            question_types=[question_type],
            image_id=f"image {image}",
            source="handwritten",
            model="tiny",
        )
        for image in range(12)
        for at, (question, answer, answer_type, question_type) in enumerate(QUESTIONS)
    ]
    write_records(tmp_path / "predictions.jsonl", items)
    for name, control in CONTROLS.items():
        write_records(tmp_path / f"{name}.jsonl", [replace(i, prediction="yes", control=control) for i in items])
    lines = [
        {"image": "1.png", "question": question, "answer": answer, "answer_type": kind, "question_type": type_}
        for question, answer, kind, type_ in QUESTIONS
    ]
    lines[1]["answer"] = "left"
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path

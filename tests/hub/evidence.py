# SPDX-License-Identifier: Apache-2.0
"""A run whose answers were scored, calibrated, judged and rated, with everything written by the project's own code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pefomed_recipes.evaluation.agreeing import agree, write_agreement
from pefomed_recipes.evaluation.calibration import adapter_digest, calibrate
from pefomed_recipes.evaluation.judges.judging import Ask, Outcome
from pefomed_recipes.evaluation.judges.rubrics import Rubric, load_rubric
from pefomed_recipes.evaluation.judges.running import run_judge
from pefomed_recipes.evaluation.scoring import score
from pefomed_recipes.records import Prediction, Rating, write_records

QUESTIONS = (
    ("Is there a mass?", "yes", "CLOSED", "PRES"),
    ("Is it normal?", "no", "CLOSED", "ABN"),
    ("Which organ is shown?", "chest", "OPEN", "ORGAN"),
)


class ExactJudge:
    """A judge by rule: the top for the reference's own words, in any order of the prompt, else nothing."""

    name = "exact-judge"

    def outcomes(self, asks: list[Ask], rubric: Rubric) -> list[Outcome]:
        """Score each ask."""
        right = [ask.answer.candidate.strip(" .").lower() == ask.answer.references[0].lower() for ask in asks]
        return [Outcome(rubric.top if one else 0, "by rule", "by rule") for one in right]

    def afresh(self, ledger: Path) -> ExactJudge:
        """Return itself: it remembers nothing."""
        return self


def predictions_of(adapter: str, split: str = "test") -> list[Prediction]:
    """Answers to three questions about each of 24 images, every fifth one wrong."""
    return [
        Prediction(
            id=f"{split}-{image}-{at}",
            task="vqa",
            instruction=question,
            answers=[answer],
            prediction="nothing" if (image + at) % 5 == 0 else f"{answer.title()}.",
            answer_type=answer_type,
            question_types=[question_type],
            image_id=f"{split} {image}",
            source="handwritten",
            split=split,
            model="base",
            adapter=adapter,
            p_yes=0.9 - 0.7 * ((image + at) % 3 == 0) if answer_type == "CLOSED" else None,
        )
        for image in range(24)
        for at, (question, answer, answer_type, question_type) in enumerate(QUESTIONS)
    ]


def run_record(task: str, adapter: str | None, output: Path) -> dict[str, Any]:
    """What a training run writes, with the folders of a machine in its settings."""
    data = {"samples": 72, "images": 24, "sha256": "ab" * 32}
    licensed = data | {"sources": ["handwritten"], "licences": ["CC0-1.0"], "credentialed": False}
    return {
        "seconds": 61.5,
        "steps": 37,
        "trainable_parameters": 12_345,
        "settings": {
            "task": task,
            "adapter": adapter,
            "output_dir": str(output),
            "data_root": str(output.parent / "data"),
            "dataset": "jsonl",
            "learning_rate": 0.0003,
            "lora_r": 4,
            "lora_alpha": 8,
        },
        "data": {"train": licensed, "validation": licensed | {"samples": 9}},
        "peft_type": "LORA",
        "quantization": "none",
        "validation_loss_before": 4.25,
        "validation_loss_after": 1.125,
        "template": "paper",
        "environment": {"device": "CPU (x86_64)", "threads": 2, "python": "3.11.7", "packages": {"torch": "2.13.0"}},
        "finished": "2026-11-24T11:40:20+00:00",
        "code_commit": "c0ffee",
    }


def write_records_of_training(adapter: Path) -> None:
    """Write `run.json` of an adapter and of the one that it continued."""
    earlier = adapter.with_name("stage1")
    earlier.mkdir(exist_ok=True)
    for folder, task, before in ((earlier, "caption", None), (adapter, "vqa", str(earlier))):
        (folder / "run.json").write_text(json.dumps(run_record(task, before, folder)), encoding="utf-8")


def write_evidence(adapter: Path, everything: bool = False) -> Path:
    """Write `results.json` into the folder around an adapter, with its controls and baseline, and return the folder.

    Args:
        everything: calibrate, judge and rate the answers as well.
    """
    folder = adapter.parent
    named = f"{adapter.name}@{adapter_digest(adapter)}"
    items = predictions_of(named)
    write_records(folder / "predictions.jsonl", items)
    controls = {name: folder / f"{name}.jsonl" for name in ("blank_image", "shuffled_images")}
    for name, path in controls.items():
        write_records(path, [replace(item, prediction="yes", control=name) for item in items])
    lines = [
        {"image": "1.png", "question": question, "answer": answer, "answer_type": kind, "question_type": type_}
        for question, answer, kind, type_ in QUESTIONS
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    fitted = None
    if everything:
        write_records(folder / "validation.jsonl", predictions_of(named, "validation"))
        calibrate(folder / "validation.jsonl", adapter, target_accuracy=0.6)
        fitted = adapter / "calibration.json"
        run_judge(ExactJudge(), load_rubric("paper-vqa"), items, folder / "judged.jsonl", samples=1)
        ratings = [
            Rating(item.id, item.system, rater, "vqa", "paper-vqa", int(item.prediction != "nothing"))
            for rater in ("ada", "bo")
            for item in items
        ]
        write_records(folder / "ratings.jsonl", ratings)
        agreed = agree([folder / "ratings.jsonl", folder / "judged.jsonl", folder / "predictions.jsonl"])
        write_agreement(folder / "agreement.json", agreed, "")
    score(
        folder / "predictions.jsonl",
        controls=controls,
        train_samples=folder / "train.jsonl",
        calibration=fitted,
        out=folder / "results.json",
    )
    return folder

# SPDX-License-Identifier: Apache-2.0
"""Examines a model, and data for it: `python recipes/doctor.py MODEL --data DIR --dataset jsonl --task vqa`."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

import typer

from pefomed_recipes.errors import one_line_errors


def doctor(
    model: Annotated[str, typer.Argument(help="Base model or adapter: a folder or Hub id.")],
    data: Annotated[str | None, typer.Option(help="A data set's folder; its first sample is shown.")] = None,
    dataset: Annotated[str, typer.Option(help="jsonl, phantoms or another data set's slug.")] = "jsonl",
    task: Annotated[Literal["caption", "vqa", "report", "refer"], typer.Option(help="What answers are.")] = "vqa",
    language: Annotated[str | None, typer.Option(help="Of a data set that mixes languages.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows whose memory is estimated.")] = 1,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of a row.")] = 1024,
) -> None:
    """Show what a model is trained on and what is wrong with it; exit with 1 where something must be changed."""
    with one_line_errors():
        from pefomed_recipes.inference.generate import MAX_NEW_TOKENS
        from pefomed_recipes.training.doctor import examine

        text, findings = examine(
            model,
            data_root=data,
            dataset=dataset,
            task=task,
            language=language,
            rows=batch_size,
            max_length=max_length,
            answer_limits=MAX_NEW_TOKENS,
            colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
        )
        print(text, *findings, sep="\n")
        errors = sum(finding.level == "error" for finding in findings)
        print(f"{len(findings)} findings, {errors} of them errors", file=sys.stderr)
        if errors:
            raise SystemExit(1)


if __name__ == "__main__":
    typer.run(doctor)

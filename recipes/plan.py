# SPDX-License-Identifier: Apache-2.0
"""Turns a GPU, hours and data into a configuration: `python recipes/plan.py --gpu 24GB --hours 8 --data DIR`."""

from __future__ import annotations

from typing import Annotated

import typer

from pefomed_recipes.errors import one_line_errors


def plan(
    gpu: Annotated[str, typer.Option(help="Memory, as 24GB, or a card, as 'RTX 4090', A40, A100, H100.")],
    hours: Annotated[float, typer.Option(help="For the whole run, validations included.")],
    data: Annotated[str, typer.Option(help="The data set's folder.")],
    dataset: Annotated[str, typer.Option(help="jsonl, phantoms or another data set's slug.")] = "jsonl",
    task: Annotated[str, typer.Option(help="caption, vqa, report or refer.")] = "vqa",
    language: Annotated[str | None, typer.Option(help="Of a data set that mixes languages.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model: folder or Hub id; else the paper's sizes.")] = None,
    target_modules: Annotated[str, typer.Option(help="Layers that LoRA adapts.")] = "q_proj,v_proj",
    max_length: Annotated[int, typer.Option(help="Tokens of a row.")] = 1024,
    max_questions_per_image: Annotated[int, typer.Option(help="Questions packed behind one image.")] = 16,
) -> None:
    """Estimate memory and time before anything is spent: a YAML file on stdout, its arithmetic on stderr."""
    with one_line_errors():
        from pefomed_recipes.training.planning import plan_run

        config, table = plan_run(
            gpu,
            hours,
            data,
            dataset=dataset,
            task=task,
            language=language,
            base=base,
            target_modules=target_modules,
            max_length=max_length,
            max_questions_per_image=max_questions_per_image,
        )
        typer.echo(table, err=True)
        typer.echo(config, nl=False)


if __name__ == "__main__":
    typer.run(plan)

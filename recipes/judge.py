# SPDX-License-Identifier: Apache-2.0
"""Has a model judge predictions: `python recipes/judge.py PREDICTIONS.jsonl --url URL --model NAME --out OUT`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pefomed_recipes import endpoint_options as options
from pefomed_recipes.errors import one_line_errors


def judge(
    predictions: Annotated[list[Path], typer.Argument(help="Prediction files of one task, of one or more systems.")],
    out: Annotated[Path, typer.Option(help="Verdicts, JSON lines; the report goes beside it as .json and .md.")],
    url: Annotated[str, typer.Option(help="An OpenAI-compatible endpoint, such as http://localhost:8000/v1.")] = "",
    model: Annotated[str, typer.Option(help="The endpoint's model; a dated name where there is one.")] = "",
    local: Annotated[str, typer.Option(help="Instead: a language model's folder or Hub id, on this machine.")] = "",
    how: Annotated[Literal["chat", "decision"], typer.Option(help="How a local model is asked.")] = "chat",
    rubric: Annotated[str, typer.Option(help="paper-vqa, paper-report or pefomed-report; by default by task.")] = "",
    samples: Annotated[int, typer.Option(min=1, help="Verdicts on each answer.")] = 3,
    temperature: Annotated[float, typer.Option(min=0, help="Of the endpoint's sampling.")] = 0.0,
    gate_items: Annotated[int, typer.Option(min=20, help="Items whose references make the gate's answers.")] = 40,
    ledger: options.LedgerFile = None,
    key_variable: options.KeyVariable = options.KEY_VARIABLE,
    concurrency: options.Concurrency = 8,
    per_minute: options.PerMinute = None,
    input_price: options.InputPrice = 0.0,
    output_price: options.OutputPrice = 0.0,
    max_cost: options.MaxCost = None,
    dry_run: options.DryRun = False,
) -> None:
    """Have a model judge predictions: gate, verdicts, WASM with intervals. The report goes to stdout, too."""
    with one_line_errors():
        from pefomed_recipes.chat_api import Endpoint
        from pefomed_recipes.evaluation.judges import judging, rubrics, running
        from pefomed_recipes.ledger import Ledger

        running.check_options(out, url, local)
        items = running.read_answers(predictions)
        chosen = rubrics.rubric_for(items[0].task, rubric)
        if local:
            from pefomed_recipes.inference.judge import LocalJudgeModel

            who: judging.Judge = judging.LocalJudge(LocalJudgeModel(local), decides=how == "decision")
        else:
            key = os.environ.get(key_variable, "")
            there = Endpoint(url, model, key, concurrency, per_minute, input_price, output_price)
            kept = Ledger(ledger or out.with_suffix(".ledger.jsonl"))
            who = running.chat_judge(there, kept, items, max_cost, temperature)
        report = running.run_judge(who, chosen, items, out, samples=samples, gate_items=gate_items, dry_run=dry_run)
        if report is not None:
            typer.echo(running.as_markdown(report), nl=False)


if __name__ == "__main__":
    typer.run(judge)

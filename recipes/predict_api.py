# SPDX-License-Identifier: Apache-2.0
"""Answers a data set with a model behind an endpoint: `python recipes/predict_api.py --api URL --model NAME ...`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pefomed_recipes import endpoint_options as options
from pefomed_recipes.errors import one_line_errors


def predict_api(
    api: Annotated[str, typer.Option("--api", "--url", help="An OpenAI-compatible endpoint: https://HOST/v1.")],
    model: Annotated[str, typer.Option(help="The endpoint's model; a dated name where there is one.")],
    data_root: Annotated[Path, typer.Option(help="The data set's folder.")],
    dataset: Annotated[str, typer.Option(help="jsonl, csv, imagefolder, prepared, phantoms, or a slug.")] = "jsonl",
    language: Annotated[str | None, typer.Option(help="Only samples in this language.")] = None,
    on_missing: Annotated[Literal["fail", "skip"], typer.Option(help="When image files are missing.")] = "fail",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    task: Annotated[str, typer.Option(help="caption, vqa, report or refer.")] = "vqa",
    out: Annotated[Path, typer.Option(help="Where the predictions go.")] = Path("predictions.jsonl"),
    control: Annotated[str, typer.Option(help="Images changed on purpose: blank, shuffle or mirror.")] = "",
    instruction: Annotated[
        Literal["plain", "short_answer"], typer.Option(help="plain or short_answer wording of questions.")
    ] = "short_answer",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first samples.")] = None,
    longest_side: Annotated[int, typer.Option(min=32, help="Larger pictures are scaled down to it (px).")] = 1024,
    ledger: options.LedgerFile = None,
    key_variable: options.KeyVariable = options.KEY_VARIABLE,
    concurrency: options.Concurrency = 8,
    per_minute: options.PerMinute = None,
    input_price: options.InputPrice = 0.0,
    output_price: options.OutputPrice = 0.0,
    max_cost: options.MaxCost = None,
    dry_run: options.DryRun = False,
) -> None:
    """Answer every sample of a split with a vision model behind an endpoint; replies are kept and paid for once."""
    with one_line_errors():
        from pefomed_recipes.chat_api import Endpoint
        from pefomed_recipes.data.datasets_index import load_samples
        from pefomed_recipes.inference.api import predict_with_api
        from pefomed_recipes.ledger import Ledger

        samples = load_samples(dataset, data_root, split, task, language=language, on_missing=on_missing)[:limit]
        key = os.environ.get(key_variable, "")
        there = Endpoint(api, model, key, concurrency, per_minute, input_price, output_price)
        kept = Ledger(ledger or out.with_suffix(".ledger.jsonl"))
        asked: dict[str, Any] = {"control": control, "instruction": instruction, "longest_side": longest_side}
        if predict_with_api(there, kept, samples, out, **asked, max_cost=max_cost, dry_run=dry_run):
            typer.echo(f"wrote {out}", err=True)


if __name__ == "__main__":
    typer.run(predict_api)

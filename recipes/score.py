# SPDX-License-Identifier: Apache-2.0
"""Scores predictions: `python recipes/score.py PREDICTIONS.jsonl --control NAME=PATH --train PATH --out PATH`.

Works on any model's predictions and needs no GPU. The table goes to stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pefomed_recipes.errors import one_line_errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)  # a traceback must not show patient text


@app.command()
def command(
    predictions: Annotated[Path, typer.Argument(help="Predictions of one task, JSON lines.")],
    control: Annotated[list[str] | None, typer.Option(help="NAME=PATH of blank, shuffle or mirror.")] = None,
    train: Annotated[Path | None, typer.Option(help="Training samples, for the trivial baseline.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Validation samples, to choose the constant text.")] = None,
    slices: Annotated[Path | None, typer.Option(help="CSV with a column id and others to slice by.")] = None,
    compat: Annotated[
        list[str] | None,
        typer.Option(help="Historic numbers too: pefomed, llava-med, lmms-eval, medevalkit; r2gen, coco."),
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="The adapter's calibration.json, to apply.")] = None,
    bertscore: Annotated[str | None, typer.Option(help="An encoder for BERTScore: a folder or a Hub name.")] = None,
    clinical_python: Annotated[Path | None, typer.Option(help="Python of an environment that has radeval.")] = None,
    clinical_metric: Annotated[list[str] | None, typer.Option(help="Of radeval: radgraph, green, ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Results file ending in .json; a .md goes beside it.")] = None,
) -> None:
    """Score a file of predictions beside its baselines and controls, with intervals."""
    with one_line_errors():
        from pefomed_recipes.evaluation.scoring import named_paths, score
        from pefomed_recipes.evaluation.tables import markdown_report
        from pefomed_recipes.evaluation.text_rows import TextModels

        results = score(
            predictions,
            controls=named_paths("--control", control or []),
            train_samples=train,
            validation_samples=validation,
            slices=slices,
            compat=compat or [],
            calibration=calibration,
            text_models=TextModels(bertscore, clinical_python, tuple(clinical_metric or ())),
            out=out,
        )
        print(markdown_report(results), end="")
        if out is not None:
            typer.echo(f"wrote {out} and {out.with_suffix('.md')}", err=True)


if __name__ == "__main__":
    app()

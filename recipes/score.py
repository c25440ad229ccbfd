# SPDX-License-Identifier: Apache-2.0
"""Scores predictions: `python recipes/score.py PREDICTIONS.jsonl --control NAME=PATH --train PATH --out PATH`.

Works on any model's predictions and needs no GPU. The table goes to stdout.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pefomed_recipes.errors import ConfigError, PeFoMedError


def main(predictions: Path, control: list[str], train: Path | None, out: Path | None) -> int:
    """Score, print the table and return the exit code: 0, 1 (bad input) or 2 (bad option)."""
    from pefomed_recipes.evaluation.scoring import score
    from pefomed_recipes.evaluation.tables import markdown_report

    try:
        controls: dict[str, Path] = {}
        for option in control:
            name, separator, path = option.partition("=")
            if not (name and separator and path) or name in controls:
                raise ConfigError(f"--control: found {option!r}, expected NAME=PATH with each NAME once")
            controls[name] = Path(path)
        results = score(predictions, controls=controls, train_samples=train, out=out)
    except PeFoMedError as error:
        if os.environ.get("PEFOMED_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(markdown_report(results), end="")
    if out is not None:
        print(f"wrote {out} and {out.with_suffix('.md')}", file=sys.stderr)
    return 0


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)  # a traceback must not show patient text


@app.command()
def command(
    predictions: Annotated[Path, typer.Argument(help="Predictions of one task, JSON lines.")],
    control: Annotated[list[str] | None, typer.Option(help="NAME=PATH of a control, as blank_image=PATH.")] = None,
    train: Annotated[Path | None, typer.Option(help="Training samples, for the trivial baseline.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results file ending in .json; a .md goes beside it.")] = None,
) -> None:
    """Score a file of predictions beside its baselines and controls, with intervals."""
    raise typer.Exit(main(predictions, control or [], train, out))


if __name__ == "__main__":
    app()

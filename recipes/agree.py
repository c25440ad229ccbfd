# SPDX-License-Identifier: Apache-2.0
"""How raters, judges and metrics agree: `python recipes/agree.py RATINGS... VERDICTS... PREDICTIONS... --out PATH`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pefomed_recipes.errors import ConfigError, one_line_errors


def agree(
    files: Annotated[
        list[Path], typer.Argument(help="Ratings, verdicts, predictions: what a file is shows in its first line.")
    ],
    scores: Annotated[
        list[Path] | None, typer.Option(help="More metrics: JSON lines of item_id, system and numbers.")
    ] = None,
    margin: Annotated[float, typer.Option(help="Kappa that a judge may lose against raters among themselves.")] = 0.1,
    epsilon: Annotated[
        float, typer.Option(help="Of the alternative-annotator test: 0.2 for raters who are experts, else 0.1.")
    ] = 0.2,
    out: Annotated[Path | None, typer.Option(help="Results ending in .json; a .md goes beside it.")] = None,
) -> None:
    """Hold judges and metrics against raters, and raters against each other: the table goes to stdout."""
    with one_line_errors():
        from pefomed_recipes.evaluation.agreeing import agree as run
        from pefomed_recipes.evaluation.agreeing import write_agreement
        from pefomed_recipes.evaluation.agreement_tables import agreement_page

        if out is not None and out.suffix != ".json":
            raise ConfigError(f"--out: found {out}, expected a file name that ends in .json")
        results = run(files, scores=scores or (), margin=margin, epsilon=epsilon)
        page = agreement_page(results)
        typer.echo(page, nl=False)
        if out is not None:
            write_agreement(out, results, page)
            typer.echo(f"wrote {out} and {out.with_suffix('.md')}", err=True)


if __name__ == "__main__":
    typer.run(agree)

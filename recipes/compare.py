# SPDX-License-Identifier: Apache-2.0
"""Compares two systems on the same items: `python recipes/compare.py A.jsonl B.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pefomed_recipes.errors import one_line_errors


def compare(
    first: Annotated[Path, typer.Argument(help="Predictions of one system.")],
    second: Annotated[Path, typer.Argument(help="Predictions of another about the same items.")],
    intersect: Annotated[bool, typer.Option("--intersect", help="Compare on the ids that both have.")] = False,
    train: Annotated[Path | None, typer.Option(help="Training samples, for the slice of unseen answers.")] = None,
    slices: Annotated[Path | None, typer.Option(help="CSV with a column id and others to slice by.")] = None,
    out: Annotated[Path | None, typer.Option(help="Comparison file ending in .json; a .md goes beside it.")] = None,
) -> None:
    """Test whether one system is better than another, overall and by slice, with paired tests."""
    with one_line_errors():
        from pefomed_recipes.evaluation.comparing import compare as run
        from pefomed_recipes.evaluation.comparing import markdown_comparison

        comparison = run(first, second, intersect=intersect, train_samples=train, slices=slices, out=out)
        print(markdown_comparison(comparison), end="")
        if out is not None:
            typer.echo(f"wrote {out} and {out.with_suffix('.md')}", err=True)


if __name__ == "__main__":
    typer.run(compare)

# SPDX-License-Identifier: Apache-2.0
"""One page that holds a run's results and what is wrong with them: `python recipes/report.py RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pefomed_recipes.errors import one_line_errors


def report(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_FILES...", help="A run's folder, or results and what belongs to them."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page, ending in .html; report.html of the run without.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="The scored samples, JSON lines with id and image: thumbnails on the page.")
    ] = None,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Questions and answers on the page, never of credentialed data.")
    ] = False,
) -> None:
    """Write one HTML page with results, failure signatures, plots and items; the same as .md and .json beside it."""
    with one_line_errors():
        from pefomed_recipes.evaluation.page.rendering import write_report

        out = out or (files[0] if files[0].is_dir() else files[0].parent) / "report.html"
        made = write_report(files, out, samples=samples, show_text=show_text)
        for finding in made.findings:
            if finding.level == "problem":
                typer.echo(f"problem: {finding.title}. {finding.evidence}", err=True)
        if show_text or samples is not None:
            typer.echo("the page holds texts or images of the data: think before you pass it on", err=True)
        typer.echo(f"wrote {out}, {out.with_suffix('.md')} and {out.with_suffix('.json')}", err=True)


if __name__ == "__main__":
    typer.run(report)

# SPDX-License-Identifier: Apache-2.0
"""`pefomed rate`: blinded sheets for raters, ratings from tables and back, and checks of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pefomed_recipes.errors import one_line_errors

rate_app = typer.Typer(
    help="Ratings by people: blinded sheets, import, checks.", no_args_is_help=True, add_completion=False
)
Predictions = Annotated[list[Path] | None, typer.Option(help="Predictions: ids they do not have are refused.")]
Rubric = Annotated[str, typer.Option(help="paper-vqa (0, 1) or paper-report (0 to 4); by default the task's.")]


@rate_app.command("export")
def export(
    predictions: Annotated[list[Path], typer.Argument(help="Predictions, one file for each system.")],
    rater: Annotated[str, typer.Option(help="The rater's code; it decides the order of the rows.")],
    out: Annotated[Path, typer.Option(help="The sheet, ending in .csv.")],
    key: Annotated[Path | None, typer.Option(help="Where the key goes; SHEET.key.json without.")] = None,
    rubric: Rubric = "",
    limit: Annotated[int | None, typer.Option(min=1, help="So many items, drawn with --seed for all raters.")] = None,
    seed: Annotated[int, typer.Option(help="Of items and order.")] = 0,
) -> None:
    """Write a sheet that hides who answered, with hidden repeats and controls, and the key that tells."""
    with one_line_errors():
        from pefomed_recipes.evaluation.rating_sheets import export_sheet, read_systems

        key = key or out.with_suffix(".key.json")
        items = read_systems(predictions)
        rows = export_sheet(items, rater, out, key, rubric=rubric, limit=limit, seed=seed)
        typer.echo(f"wrote {out} ({rows} rows) and {key}: keep the key from the rater", err=True)
        if any(item.credentialed for item in items):
            typer.echo("the sheet holds credentialed data: only for raters who have access to it", err=True)


@rate_app.command("merge")
def merge(
    sheets: Annotated[list[Path], typer.Argument(help="Filled-in sheets.")],
    out: Annotated[Path, typer.Option(help="Ratings, JSON lines; new ones are appended.")],
    key: Annotated[list[Path] | None, typer.Option(help="A key for each sheet; SHEET.key.json without.")] = None,
) -> None:
    """Give each row of filled-in sheets its item and system back, and append the ratings."""
    with one_line_errors():
        from pefomed_recipes.evaluation.rating_files import merge_sheets

        for line in merge_sheets(sheets, key or [sheet.with_suffix(".key.json") for sheet in sheets], out):
            typer.echo(line, err=True)


@rate_app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="CSV, a rating a row or a rater a column; or JSON lines.")],
    out: Annotated[Path, typer.Option(help="Ratings: .jsonl is appended to, .csv is written anew.")],
    predictions: Predictions = None,
    task: Annotated[str, typer.Option(help="caption, vqa, report or refer, where the files do not say.")] = "",
    rubric: Rubric = "",
    system: Annotated[str, typer.Option(help="Who answered, where the files do not say.")] = "",
    rename: Annotated[list[str] | None, typer.Option(help="THEIRS=OURS of a column: study_number=item_id.")] = None,
) -> None:
    """Bring ratings into one form, JSON lines or CSV; all that is wrong with them is listed and nothing is written."""
    with one_line_errors():
        from pefomed_recipes.errors import ConfigError
        from pefomed_recipes.evaluation.raters import Defaults
        from pefomed_recipes.evaluation.rating_files import import_ratings

        pairs = [option.partition("=") for option in rename or []]
        if any(not (theirs and ours) for theirs, _, ours in pairs):
            raise ConfigError(f"--rename: found {', '.join(rename or [])}, expected THEIRS=OURS")
        names = {theirs: ours for theirs, _, ours in pairs}
        for line in import_ratings(files, out, predictions or [], Defaults(task, rubric, system, names)):
            typer.echo(line, err=True)


@rate_app.command("check")
def check(
    files: Annotated[list[Path], typer.Argument(help="Ratings, JSON lines or CSV.")],
    predictions: Predictions = None,
) -> None:
    """List all that is wrong with ratings and exit with 1, or say what is in them and how steady the raters are."""
    with one_line_errors():
        from pefomed_recipes.evaluation.raters import read_ratings
        from pefomed_recipes.evaluation.rating_files import describe_ratings
        from pefomed_recipes.evaluation.rating_sheets import read_systems

        ratings, notes = read_ratings(files, read_systems(predictions or []))
        typer.echo(describe_ratings(ratings))
        for note in notes:
            typer.echo(note, err=True)


if __name__ == "__main__":
    rate_app()

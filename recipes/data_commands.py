# SPDX-License-Identifier: Apache-2.0
"""`pefomed data`: check a data set before training, pack it into shards, find images that are in several sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from .errors import ConfigError, one_line_errors

data_app = typer.Typer(
    help="Check data sets, pack them into shards, find duplicates.", no_args_is_help=True, add_completion=False
)
Name = Annotated[str, typer.Argument(help="The data set: vqa_rad, slake, ..., or jsonl for your own.")]
Root = Annotated[Path, typer.Option(help="The data set's folder.")]
Language = Annotated[str | None, typer.Option(help="en, zh or all, for data sets that mix languages.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; by default one for each processor.")]


@data_app.command()
def check(
    name: Name,
    root: Root,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; with --make-split, for the split.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="A kind of finding that does not fail: counts, missing, corrupt, duplicates, leakage, ..."),
    ] = None,
    language: Language = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A model's folder: lengths are counted in its tokens.")
    ] = None,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Write questions and answers into sheet and report.")
    ] = False,
    sheet_images: Annotated[int, typer.Option(min=0, help="Images on the contact sheet.")] = 20,
    make_split: Annotated[
        Literal["image-disjoint"] | None,
        typer.Option(help="Write the data to --out, split anew without leaks, and check that."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of --make-split.")] = 0,
    workers: Workers = None,
) -> None:
    """Check counts, images, duplicates and leaks; exit with 1 where something is wrong that --allow does not name.

    Writes check.json, check.md and contact_sheet.png to --out (runs/data_check/NAME), a short report to stdout.
    """
    with one_line_errors():
        from .data.check_report import as_markdown, write_check
        from .data.checks import check_dataset

        if make_split is not None:
            from .data.resplitting import write_disjoint_split

            if out is None:
                raise ConfigError("--make-split needs --out, a new folder for the split")
            root = write_disjoint_split(name, root, out, language=language, seed=seed, workers=workers)
            typer.echo(f"wrote {root}", err=True)
            name, language, out = "jsonl", None, root / "check"
        found = check_dataset(
            name,
            root,
            language=language,
            allow=allow or (),
            count_tokens=_token_counter(tokenizer) if tokenizer else None,
            sheet_images=sheet_images,
            show_text=show_text,
            workers=workers,
        )
        folder = write_check(found, out or Path("runs/data_check") / name)
        typer.echo(as_markdown(found.report, short=True))
        typer.echo(f"wrote {folder}", err=True)
        if not found.report["passed"]:
            raise SystemExit(1)


@data_app.command()
def prepare(
    name: Name,
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder for the shards; an interrupted run goes on there.")],
    splits: Annotated[str, typer.Option(help="Such as train,validation; all that there are without.")] = "",
    language: Language = None,
    shard_size: Annotated[str, typer.Option(help="Largest sum of a shard's original images.")] = "500MB",
    max_side: Annotated[int | None, typer.Option(min=1, help="Scale longer sides down to this, in pixels.")] = None,
    on_missing: Annotated[
        Literal["fail", "skip"], typer.Option(help="Stop at missing images, or leave their samples out.")
    ] = "fail",
    workers: Workers = None,
) -> None:
    """Write Parquet shards with embedded images, to train on with --dataset prepared, and to stream."""
    with one_line_errors():
        from .data.preparing import parse_size, prepare_dataset

        folder = prepare_dataset(
            name,
            root,
            out,
            splits=[split.strip() for split in splits.split(",") if split.strip()],
            language=language,
            shard_bytes=parse_size(shard_size),
            max_side_px=max_side,
            on_missing=on_missing,
            workers=workers or os.cpu_count() or 1,
        )
        typer.echo(f"wrote {folder}", err=True)


@data_app.command()
def duplicates(
    sets: Annotated[list[str], typer.Argument(help="NAME:DIR, the data set and its folder; several of them.")],
    out: Annotated[Path | None, typer.Option(help="JSON file with all pairs and counts.")] = None,
    language: Language = None,
    max_distance: Annotated[int, typer.Option(min=0, max=16, help="Bits in which two hashes may differ.")] = 6,
    workers: Workers = None,
) -> None:
    """List images that are in several sets or splits, the same or nearly so: one pair a line, separated by TAB."""
    with one_line_errors():
        from .data.duplicates import find_duplicates, write_duplicates

        report = find_duplicates(sets, language=language, max_distance=max_distance, workers=workers)
        for pair in report["listed"]:
            typer.echo("\t".join([str(pair["distance"]), *pair["names"]]))
        if out is not None:
            write_duplicates(report, out)
        for line in report["summary"]:
            typer.echo(line, err=True)


def _token_counter(folder: Path) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text, without special ones."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected one with a model's tokenizer")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: no tokenizer there ({str(error).splitlines()[0]})") from None
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])

# SPDX-License-Identifier: Apache-2.0
"""Measures the project's speed and memory beside the plain ways: `python recipes/bench.py train --preset smol135`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pefomed_recipes.errors import ConfigError, one_line_errors


def bench(
    what: Annotated[
        Literal["train", "generate", "memory", "pipeline", "all"],
        typer.Argument(help="all: the whole table on a CPU, some 20 minutes."),
    ],
    preset: Annotated[
        str | None, typer.Option(help="smol135, micro, tiny, or on a GPU paper, where train measures everything.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="File for the result, beside the one in the results folder.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="More rounds, and each trick alone at every size.")] = False,
) -> None:
    """Compare with the released code's way and with TRL on a stock model: ratios, on stdout and as JSON."""
    with one_line_errors():
        if what == "all" and (preset or json):
            raise ConfigError("all has its own presets and writes one result file each: leave --preset and --json out")
        from pefomed_recipes.benchmarks.commands import run
        from pefomed_recipes.benchmarks.speed_table import describe

        for result in run(what, preset, json, full):
            typer.echo(describe(result))


if __name__ == "__main__":
    typer.run(bench)

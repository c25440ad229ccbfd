# SPDX-License-Identifier: Apache-2.0
"""Merges an adapter into its base model: `python recipes/merge.py ADAPTER --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pefomed_recipes.errors import one_line_errors


def merge(
    adapter: Annotated[str, typer.Argument(help="Adapter: a folder or Hub id.")],
    out: Annotated[Path, typer.Option(help="Where the merged model and its processor go; a new folder.")],
    dtype: Annotated[
        Literal["base", "float32", "bfloat16", "float16"],
        typer.Option(help="Number format of the result; base: that of the base model."),
    ] = "base",
) -> None:
    """Merge an adapter into its base: one model folder that loads without PEFT."""
    with one_line_errors():
        import torch

        from pefomed_recipes.inference.merging import merge_adapter

        merge_adapter(adapter, out, None if dtype == "base" else getattr(torch, dtype))
        typer.echo(f"wrote {out}", err=True)


if __name__ == "__main__":
    typer.run(merge)

# SPDX-License-Identifier: Apache-2.0
"""Computes the vision tower's features of a data set's images once, for training and prediction to read.

python recipes/features.py BASE --dataset jsonl --data-root DIR --out FEATURES; with `accelerate launch` on all GPUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pefomed_recipes.errors import one_line_errors


def features(
    model: Annotated[str, typer.Argument(help="Base model or adapter: a folder or Hub id.")],
    data_root: Annotated[Path, typer.Option(help="The data set's folder.")],
    out: Annotated[Path, typer.Option(help="The cache's folder; one that is there already is added to.")],
    dataset: Annotated[str, typer.Option(help="jsonl, csv, imagefolder, prepared, phantoms, or a slug.")] = "jsonl",
    split: Annotated[
        list[str] | None, typer.Option(help="train, validation or test; several times for several. All by default.")
    ] = None,
    on_missing: Annotated[
        Literal["fail", "skip"], typer.Option(help="When image files are missing: stop, or leave samples out.")
    ] = "fail",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the size and stop.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every bit that is there, and compute again what is damaged.")
    ] = False,
) -> None:
    """Compute image features once; a run that was interrupted goes on where it stopped.

    The size is printed before anything is written. Features serve every adapter of the base, and are refused by
    models with another vision tower or preprocessing.
    """
    with one_line_errors():
        from pefomed_recipes.models.feature_building import build_features, samples_of

        samples = samples_of(dataset, data_root, split or [], on_missing=on_missing)
        build_features(model, samples, out, dry_run=dry_run, verify=verify)


if __name__ == "__main__":
    typer.run(features)

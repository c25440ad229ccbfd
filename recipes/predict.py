# SPDX-License-Identifier: Apache-2.0
"""Answers a data set with an adapter: `python recipes/predict.py ADAPTER --dataset jsonl --data-root DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pefomed_recipes.errors import one_line_errors


def predict(
    model: Annotated[str, typer.Argument(help="Adapter or base model: a folder or Hub id.")],
    data_root: Annotated[Path, typer.Option(help="The data set's folder.")],
    dataset: Annotated[str, typer.Option(help="jsonl, csv, imagefolder, prepared, phantoms, or a slug.")] = "jsonl",
    language: Annotated[str | None, typer.Option(help="Only samples in this language.")] = None,
    on_missing: Annotated[
        Literal["fail", "skip"], typer.Option(help="When image files are missing: stop, or leave samples out.")
    ] = "fail",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    task: Annotated[str, typer.Option(help="caption, vqa, report or refer.")] = "vqa",
    out: Annotated[Path, typer.Option(help="Where the predictions go.")] = Path("predictions.jsonl"),
    control: Annotated[str, typer.Option(help="Images changed on purpose: blank, shuffle or mirror.")] = "",
    instruction: Annotated[
        Literal["plain", "short_answer"], typer.Option(help="plain or short_answer wording of questions.")
    ] = "short_answer",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first samples.")] = None,
    rows_per_batch: Annotated[int, typer.Option(help="Answers decoded together.")] = 64,
    feature_cache: Annotated[Path | None, typer.Option(help="A folder written by `pefomed features`.")] = None,
    probabilities: Annotated[bool, typer.Option(help="Also p(yes), and what of reports the image supports.")] = False,
    merge: Annotated[bool, typer.Option(help="Add the adapter to the base's weights first.")] = False,
    compile_step: Annotated[bool, typer.Option("--compile", help="Compile the decoding step, on a GPU.")] = False,
) -> None:
    """Answer every sample of a split; an interrupted run goes on where it stopped. With --api URL: see predict-api."""
    with one_line_errors():
        from pefomed_recipes.data.datasets_index import load_samples
        from pefomed_recipes.inference.predicting import predict as run

        samples = load_samples(dataset, data_root, split, task, language=language, on_missing=on_missing)[:limit]
        run(
            model,
            samples,
            out,
            control=control,
            instruction=instruction,
            rows_per_batch=rows_per_batch,
            feature_cache=feature_cache,
            probabilities=probabilities,
            merge=merge,
            compile_step=compile_step,
        )
        typer.echo(f"wrote {out}", err=True)


if __name__ == "__main__":
    typer.run(predict)

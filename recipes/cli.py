# SPDX-License-Identifier: Apache-2.0
"""The `pefomed` command: one place that joins all rooms. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from . import quickstart as quickstart_launcher
from . import score as score_launcher
from . import stage1 as stage1_launcher
from . import stage2 as stage2_launcher
from .agree import agree
from .bench import bench
from .calibrate import calibrate
from .compare import compare
from .compose import compose
from .convert import convert
from .data_commands import data_app
from .doctor import doctor
from .errors import one_line_errors
from .features import features
from .judge import judge
from .merge import merge
from .plan import plan
from .predict import predict
from .predict_api import predict_api
from .rate import rate_app
from .report import report

app = typer.Typer(
    help="Adapt a multimodal LLM to medical images: two-stage fine-tuning, predictions, evaluation one can believe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback must not show patient text
)
# The stages' options are those of their configuration classes, which only training imports.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app.command()(quickstart_launcher.quickstart)


@app.command(context_settings=PASS_ON)
def stage1(context: typer.Context) -> None:
    """Fine-tune on captions. `--config NAME`, `--key value ...`, `--help` for all keys."""
    stage1_launcher.main(context.args)


@app.command(context_settings=PASS_ON)
def stage2(context: typer.Context) -> None:
    """Fine-tune on questions, reports or boxes. `--config NAME`, `--key value ...`, `--help` for all keys."""
    stage2_launcher.main(context.args)


app.command()(features)
app.command()(predict)
app.command()(predict_api)
app.command("score")(score_launcher.command)
app.command()(compare)
app.command()(calibrate)
app.add_typer(rate_app, name="rate")
app.command()(agree)
app.command()(report)
app.command()(judge)
app.add_typer(data_app, name="data")
app.command()(merge)
app.command()(convert)
app.command()(compose)
app.command()(doctor)
app.command()(plan)
app.command()(bench)
# The hub stands above this room, which may not import it: its commands come in by the module's name.
app.add_typer(import_module("pefomed_hub.cli").app)


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="An image file: PNG, JPEG, DICOM, NIfTI, ...")],
    question: Annotated[str, typer.Argument(help="A question, or the request for another task.")],
    model: Annotated[str, typer.Option(help="Adapter or base model: a folder or Hub id.")] = "runs/quickstart/stage2",
    task: Annotated[str, typer.Option(help="caption, vqa, report or refer.")] = "vqa",
    compare_base: Annotated[
        bool, typer.Option("--compare-base", help="Also what the base answers without the adapter.")
    ] = False,
    quantization: Annotated[str, typer.Option(help="none, or nf4: the base in 4 bits.")] = "none",
    window: Annotated[
        str | None, typer.Option(help="Of a DICOM or NIfTI file: brain, lung, bone, soft, full or CENTER/WIDTH.")
    ] = None,
    frame: Annotated[int | None, typer.Option(help="Of a DICOM file, from 0; the middle one by default.")] = None,
    plane: Annotated[str | None, typer.Option(help="Of a NIfTI volume: axial, coronal or sagittal.")] = None,
    slice_index: Annotated[
        int | None, typer.Option("--slice", help="Of a NIfTI volume, from 0; the middle one by default.")
    ] = None,
) -> None:
    """Ask one question about one image. Of a NIfTI volume, the patient's right is shown on the left."""
    with one_line_errors():
        from .data.images import load_image
        from .inference.generate import Request, generate_answers, load_adapters, load_model
        from .inference.switching import BASE
        from .records import TASKS

        if task not in TASKS:
            raise typer.BadParameter(f"{task}; expected one of {', '.join(TASKS)}", param_hint="--task")
        shown = load_image(image, frame=frame, plane=plane, slice_index=slice_index, window=window)
        if not compare_base:
            request = Request("", task, question, (shown,))
            [(_, answer)] = generate_answers(*load_model(model, quantization=quantization), [request])
            typer.echo(answer)
            return
        requests = [Request(name, task, question, (shown,), name) for name in ("adapter", BASE)]
        loaded = load_adapters({"adapter": model}, quantization=quantization)
        answers = dict(generate_answers(*loaded, requests))
        typer.echo(f"adapter: {answers['adapter']}\nbase: {answers[BASE]}")


@app.command()
def phantoms(
    out: Annotated[Path | None, typer.Option(help="Folder for a data set (train, validation, test).")] = None,
    preview: Annotated[Path | None, typer.Option(help="PNG for a contact sheet.")] = None,
    cases: Annotated[int, typer.Option(help="Images of the contact sheet, or of the training split.")] = 20,
    difficulty: Annotated[str, typer.Option(help="easy, medium or hard.")] = "easy",
    size_px: Annotated[int, typer.Option(help="Width and height of the images.")] = 224,
    seed: Annotated[int, typer.Option(help="Another seed gives other cases.")] = 0,
) -> None:
    """Draw images whose truth is known exactly: a data set with --out, a picture of it with --preview."""
    with one_line_errors():
        from .data.phantoms import contact_sheet, write_phantoms
        from .records import TASKS

        if (out is None) == (preview is None):
            raise typer.BadParameter("give either --out FOLDER or --preview FILE.png")
        if preview is not None:
            contact_sheet(preview, cases=cases, difficulty=difficulty, size_px=size_px, seed=seed)
        if out is not None:
            held_out = max(1, cases // 10)
            split = {"train": cases, "validation": held_out, "test": held_out}
            write_phantoms(out, tasks=TASKS, cases_per_split=split, seed=seed, difficulty=difficulty, size_px=size_px)
        typer.echo(f"wrote {preview or out}", err=True)


def main() -> None:
    """Entry point of `pefomed`. `--debug` anywhere shows tracebacks instead of one line."""
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ["PEFOMED_DEBUG"] = "1"
    # One word for both ways to get predictions, though a model behind an endpoint has options of its own.
    if sys.argv[1:2] == ["predict"] and any(word.partition("=")[0] == "--api" for word in sys.argv):
        sys.argv[1] = "predict-api"
    app()


if __name__ == "__main__":
    main()

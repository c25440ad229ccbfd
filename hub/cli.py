# SPDX-License-Identifier: Apache-2.0
"""The commands of this room: `pefomed export`, `publish`, `verify`, `bundle` and `space`. Nothing heavy is imported
before one runs.

`recipes/cli.py` puts them among its own by this module's name, because recipes may not import this room.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pefomed_recipes.errors import one_line_errors

app = typer.Typer()


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="An adapter, folder or Hub id; with --kind base, a base's folder.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    repo: Annotated[str, typer.Option(help="The Hub id that it is meant for: user/name.")],
    kind: Annotated[
        Literal["adapter", "merged", "base"], typer.Option(help="adapter, or whole models: merged or base.")
    ] = "adapter",
    base_id: Annotated[
        str | None, typer.Option(help="The base's Hub id, where the adapter was trained on a folder.")
    ] = None,
    base_revision: Annotated[str | None, typer.Option(help="The base's commit on the Hub.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights; float32 for an adapter, the base's for a merged model."),
    ] = None,
    licence: Annotated[str, typer.Option(help="As the Hub abbreviates it, such as apache-2.0.")] = "",
    evidence: Annotated[
        list[Path] | None,
        typer.Option(help="Result files or folders; by default the adapter's folder and the one around it."),
    ] = None,
) -> None:
    """Stage a model for the Hub: weights, processor, code, card and manifest, loaded without PeFoMed and compared."""
    with one_line_errors():
        from .export import export as run

        run(
            source,
            out,
            repo=repo,
            kind=kind,
            base_id=base_id,
            base_revision=base_revision,
            dtype=dtype,
            licence=licence,
            evidence=evidence,
        )
        typer.echo(f"wrote {out}", err=True)


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="What is to be published, as `pefomed export` or `space` wrote it.")],
    repo: Annotated[str, typer.Option(help="Where on the Hub: user/name.")],
    kind: Annotated[
        Literal["model", "dataset", "space"], typer.Option("--type", help="What it is; of a dataset, the card only.")
    ] = "model",
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only show what would be done.")] = False,
    tag: Annotated[str | None, typer.Option(help="A name for this version, such as v1.0.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Visible to all, once it is up and checked.")] = False,
    gated: Annotated[
        Literal["auto", "manual"] | None,
        typer.Option(help="Who wants it must ask; with manual you grant it."),
    ] = None,
    forbidden: Annotated[
        Path | None, typer.Option(help="A text file with one name or number a line that must occur nowhere.")
    ] = None,
    credentialed: Annotated[
        bool, typer.Option("--allow-credentialed", help="Even if trained on credentialed data; stays private.")
    ] = False,
    secret: Annotated[
        list[str] | None, typer.Option(help="Of a Space: NAME=VARIABLE, the environment variable that holds it.")
    ] = None,
) -> None:
    """Publish a folder on the Hub: show the plan, or with --yes make one private, checked and tagged commit."""
    with one_line_errors():
        from .plan import Wish
        from .push import publish_folder

        wish = Wish(
            repo=repo,
            type=kind,
            tag=tag,
            public=public,
            gated=gated,
            forbidden=forbidden,
            allow_credentialed=credentialed,
            secrets=dict(_pair(word) for word in secret or []),
        )
        publish_folder(folder, wish, write=yes)


@app.command()
def verify(
    source: Annotated[str, typer.Argument(help="A folder, or a Hub id.")],
    revision: Annotated[str | None, typer.Option(help="Of a Hub id: commit, tag or branch; main by default.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Load this base, folder or Hub id, and compare its weights as well.")
    ] = None,
) -> None:
    """Check a published model: hashes of its files, its base model's commit, and that each tensor has its place."""
    with one_line_errors():
        from .verify import verify as run

        for line in run(source, revision=revision, base=base):
            typer.echo(line)


@app.command()
def bundle(
    source: Annotated[str, typer.Argument(help="An exported adapter or model: a folder, or a Hub id.")],
    out: Annotated[Path, typer.Option(help="The archive, ending in .tar.")],
    revision: Annotated[str | None, typer.Option(help="Of a Hub id: commit, tag or branch; main by default.")] = None,
    base: Annotated[Path | None, typer.Option(help="The base as a folder; by default it comes from the Hub.")] = None,
    wheels: Annotated[
        Path | None, typer.Option(help="A folder of wheels; by default pip fetches them for this kind of machine.")
    ] = None,
) -> None:
    """Write one archive with which a house without network installs PeFoMed and uses an adapter."""
    with one_line_errors():
        from .bundle import write_bundle

        write_bundle(source, out, revision=revision, base=base, wheels=wheels)
        typer.echo(f"wrote {out}", err=True)


@app.command()
def space(
    out: Annotated[Path, typer.Argument(help="A new folder for the Space's files.")],
    adapter: Annotated[str, typer.Option(help="The Hub id of the adapter that the page shows.")],
    revision: Annotated[str, typer.Option(help="The adapter's commit, which the page keeps to.")],
    title: Annotated[str, typer.Option(help="The page's title.")] = "PeFoMed",
) -> None:
    """Write the files of a Space for an adapter; `pefomed publish --type space` uploads them."""
    with one_line_errors():
        from .space import write_space

        write_space(out, adapter, revision, title)
        typer.echo(f"wrote {out}", err=True)


def _pair(word: str) -> tuple[str, str]:
    name, found, variable = word.partition("=")
    if not (name and found and variable):
        raise typer.BadParameter(f"{word}; expected NAME=VARIABLE", param_hint="--secret")
    return name, variable

# SPDX-License-Identifier: Apache-2.0
"""Makes a base model of two pretrained parts: `python recipes/compose.py --vision-tower X --llm Y --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pefomed_recipes.errors import one_line_errors


def compose(
    vision_tower: Annotated[str, typer.Option(help="ViT, CLIP, SigLIP, DINOv2 or BLIP-2: Hub id or folder.")],
    llm: Annotated[str, typer.Option(help="Decoder language model with its tokenizer: Hub id or folder.")],
    out: Annotated[Path, typer.Option(help="The new base model's folder.")],
    patch_group_size: Annotated[int, typer.Option(help="Consecutive patch tokens in one image token.")] = 4,
    image_size: Annotated[int | None, typer.Option(help="Pixels; by default what the tower was made for.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the language model's), float32, bfloat16 or float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the projector's start.")] = 42,
) -> None:
    """Join a vision tower and a language model by a fresh projector, for stage 1 to train."""
    with one_line_errors():
        from pefomed_recipes.training.composing import compose as run

        run(vision_tower, llm, out, patch_group_size=patch_group_size, image_size=image_size, dtype=dtype, seed=seed)
        typer.echo(f"wrote {out}", err=True)


if __name__ == "__main__":
    typer.run(compose)

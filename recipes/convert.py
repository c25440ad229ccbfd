# SPDX-License-Identifier: Apache-2.0
"""Converts released weights to a base model and an adapter, and back: `python recipes/convert.py --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pefomed_recipes.errors import PeFoMedError, one_line_errors

Dtype = Literal["stored", "float16", "bfloat16", "float32"]
Vision = Annotated[str | None, typer.Option("--vision", "--vision-from", help="eva_vit_g.pth, or a BLIP-2 model.")]


def convert(
    llm: Annotated[str | None, typer.Option(help="Llama: a folder or Hub id.")] = None,
    vision: Vision = None,
    checkpoint: Annotated[list[Path] | None, typer.Option(help="MiniGPT-v2 or PeFoMed .pth; the last wins.")] = None,
    out: Annotated[Path | None, typer.Option(help="The new base model.")] = None,
    adapter_out: Annotated[Path | None, typer.Option(help="The new adapter: LoRA and projector.")] = None,
    base: Annotated[str | None, typer.Option(help="A converted base model, instead of --llm and --out.")] = None,
    to_reference: Annotated[Path | None, typer.Option(help="The way back, from --base: a new folder.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="An adapter for the way back.")] = None,
    num_attention_heads: Annotated[int, typer.Option(help="Of the tower.")] = 16,
    image_size: Annotated[int, typer.Option(help="In pixels.")] = 448,
    lora_alpha: Annotated[int, typer.Option(help="Of the checkpoint's LoRA.")] = 16,
    dtype: Annotated[Dtype, typer.Option(help="Of the frozen weights.")] = "stored",
) -> None:
    """Convert EVA, LLaMA, MiniGPT-v2 and PeFoMed files; what is not used is listed on stdout."""
    with one_line_errors():
        import torch

        from modeling_pefomed import convert_hf_weights_to_pefomed, convert_pefomed_weights_to_hf
        from modeling_pefomed.weight_files_pefomed import ConversionError
        from modeling_pefomed.weight_names_pefomed import report_lines

        sources: dict[str, Any] = {"llm": llm, "vision": vision, "checkpoints": checkpoint or ()}
        sources |= {"out": out, "adapter_out": adapter_out}
        facts: dict[str, Any] = {"num_attention_heads": num_attention_heads, "image_size": image_size}
        facts |= {"lora_alpha": lora_alpha, "dtype": None if dtype == "stored" else getattr(torch, dtype)}
        try:
            if to_reference is None:
                manifests = convert_pefomed_weights_to_hf.convert(base=base, **sources, **facts)
                typer.echo("\n".join(report_lines(next(iter(manifests.values())))))
            elif base is None or any(sources.values()):
                raise ConversionError("--to-reference needs --base, may have --adapter, and takes nothing else.")
            else:
                convert_hf_weights_to_pefomed.to_reference(base, to_reference, adapter=adapter)
        except ConversionError as error:
            raise PeFoMedError(str(error)) from None
        for folder in filter(None, (out, adapter_out, to_reference)):
            typer.echo(f"wrote {folder}; it reads back as it was meant", err=True)


if __name__ == "__main__":
    typer.run(convert)

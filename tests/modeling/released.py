# SPDX-License-Identifier: Apache-2.0
"""Files as people download them, of a tiny reference: EVA's, two checkpoints, and a Llama folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from modeling_pefomed import PeFoMedProcessor
from modeling_pefomed.convert_pefomed_weights_to_hf import convert

from .reference import Reference, Sizes
from .tiny import build_llama_tokenizer, build_processor, text_config

LLAMA = "llama_model.base_model.model."
SETTINGS: dict[str, Any] = {"num_attention_heads": 4, "image_size": 32, "lora_alpha": 6, "vision_layers": 3}


@dataclass
class Released:
    """A reference and its files: `eva`, `minigpt` (stage 1), `stage2` and the folder `llm`."""

    folder: Path
    processor: PeFoMedProcessor
    sizes: Sizes
    reference: Reference
    eva: Path = field(init=False)
    minigpt: Path = field(init=False)
    stage2: Path = field(init=False)
    llm: Path = field(init=False)

    def __post_init__(self) -> None:
        self.eva, self.minigpt, self.stage2, self.llm = (
            self.folder / name for name in ("eva_vit_g.pth", "minigptv2.pth", "stage2.pth", "llama")
        )

    def convert(self, folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
        """Convert all files into `folder/base` and `folder/adapter`; a change to `None` leaves a setting out."""
        wanted = {
            "llm": self.llm,
            "vision": self.eva,
            "checkpoints": [self.minigpt, self.stage2],
            "out": folder / "base",
            "adapter_out": folder / "adapter",
            **SETTINGS,
        } | changes
        return convert(**{name: value for name, value in wanted.items() if value is not None})


def tower_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tower's tensors under the bare names of EVA's own file."""
    return {k.removeprefix("visual_encoder."): v for k, v in state.items() if k.startswith("visual_encoder.")}


def trained_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint holds: LoRA and the projector."""
    return {name: tensor for name, tensor in state.items() if ".lora_" in name or name.startswith("llama_proj.")}


def language_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The language model's own tensors under transformers' names."""
    return {k.removeprefix(LLAMA): v for k, v in state.items() if k.startswith(LLAMA) and ".lora_" not in k}


def as_released(state: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    """A checkpoint with all that stands beside the weights."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5}]}
    config = {"run": {"seed": 42, "amp": True}, "model": {"arch": "pefomed", "lora_r": 3}}
    return {"model": state, "optimizer": optimizer, "config": config, "scaler": None, "epoch": 4, **more}


def release(folder: Path, *, eva_image_size: int = 32, dtype: torch.dtype = torch.float32, seed: int = 0) -> Released:
    """Write the files of a random reference, as they are released: frozen parts in `dtype`, trained ones in float32.

    `eva_image_size` is that of EVA's position embeddings; where it is not the model's 32 px, they are interpolated.
    The reference's own are then left at random: whoever compares them sets them first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processor = build_processor(build_llama_tokenizer())
    sizes = Sizes(vocabulary=processor.image_token_id)
    reference = Reference(sizes, seed).eval()
    reference.ln_vision.reset_parameters()  # frozen as it was made, and in no released file
    for parameter in reference.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype).float()
    released = Released(folder, processor, sizes, reference)
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    generator = torch.Generator().manual_seed(seed + 1)

    eva = {name: tensor.to(dtype) for name, tensor in tower_state(state).items()}
    patches = (eva_image_size // sizes.patch) ** 2
    if patches + 1 != eva["pos_embed"].shape[1]:
        eva["pos_embed"] = torch.randn(1, 1 + patches, sizes.width, generator=generator).to(dtype)
    unused = {k.replace(".2.", ".3.", 1): v + 1 for k, v in eva.items() if k.startswith("blocks.2.")}
    head = {"norm.weight": torch.ones(sizes.width), "head.weight": torch.ones(5, sizes.width)}
    torch.save(eva | unused | head, released.eva)

    stage2 = trained_state(state)
    earlier = {name: tensor + 1 for name, tensor in stage2.items()}
    buffers = {f"{LLAMA}model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(6) for n in range(sizes.layers)}
    torch.save(as_released(earlier), released.minigpt)
    torch.save(as_released(stage2 | buffers), released.stage2)

    language_model = LlamaForCausalLM(text_config(processor)).to(dtype)
    language_model.load_state_dict(language_state(state))
    language_model.save_pretrained(released.llm)
    build_llama_tokenizer().save_pretrained(released.llm)
    return released


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whatever its files are named."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Names, dtypes and values are equal."""
    assert one.keys() == other.keys()
    differing = [n for n in one if one[n].dtype != other[n].dtype or not torch.equal(one[n], other[n])]
    assert differing == []


def manifest_of(folder: Path) -> dict[str, Any]:
    """The content of a folder's `manifest.json`."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def change(path: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]], **save: Any) -> None:
    """Rewrite the tensors of a `.pth` file."""
    content = torch.load(path, weights_only=True)
    state = content.get("model", content)
    torch.save(as_released(edit(state)) if "model" in content else edit(state), path, **save)

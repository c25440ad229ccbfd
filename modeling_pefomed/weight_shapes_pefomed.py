# SPDX-License-Identifier: Apache-2.0
"""What a conversion aims at: configuration and processor, and the names and shapes of all tensors that they ask for.

Not part of the Hub's remote code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, GenerationConfig

from .configuration_pefomed import PeFoMedConfig
from .image_processing_pefomed import PeFoMedImageProcessor
from .modeling_pefomed import PeFoMedForConditionalGeneration
from .processing_pefomed import IMAGE_TOKEN, TASK_IDENTIFIERS, PeFoMedProcessor
from .tokenization_pefomed import load_tokenizer
from .weight_files_pefomed import ConversionError, Loader, first_line
from .weight_names_pefomed import (
    ADAPTER,
    LANGUAGE_MODEL,
    LAYER,
    POSITIONS,
    PROJECTOR,
    TOWER,
    Collection,
    grouped_names,
    reference_name,
)


def build_skeleton(config: PeFoMedConfig, dtype: torch.dtype) -> PeFoMedForConditionalGeneration:
    """Return the model without memory for its weights: what a configuration says about names and shapes."""
    with torch.device("meta"):
        return PeFoMedForConditionalGeneration._from_config(config, dtype=dtype)


def shapes_of(skeleton: PeFoMedForConditionalGeneration) -> dict[str, torch.Size]:
    """Return the shape of each tensor that a base model's files hold; a tied head is not among them."""
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    if skeleton.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def adapter_shapes(names: Iterable[str], r: int, skeleton: PeFoMedForConditionalGeneration) -> dict[str, torch.Size]:
    """Return the shapes of a whole adapter: LoRA of rank r on q, v (and other adapted) layers, and the projector."""
    modules = {"q_proj", "v_proj"} | {name.rsplit(".", 3)[1] for name in names if ".lora_" in name}
    expected = {}
    for name, shape in shapes_of(skeleton).items():
        if name.startswith(PROJECTOR):
            expected[ADAPTER + name] = shape
        elif name.startswith(LANGUAGE_MODEL) and name.rsplit(".", 2)[-2:] in [[m, "weight"] for m in modules]:
            stem = ADAPTER + name.removesuffix(".weight")
            expected |= {f"{stem}.lora_A.weight": torch.Size([r, shape[1]])}
            expected |= {f"{stem}.lora_B.weight": torch.Size([shape[0], r])}
    return expected


def open_base(base: str | Path) -> tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]:
    """Return the skeleton and the processor of a base model, a folder or a Hub id.

    Raises:
        ConversionError: there is no PeFoMed base model.
    """
    try:
        config, processor = AutoConfig.from_pretrained(base), AutoProcessor.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{base}: found no PeFoMed base model there ({first_line(error)})") from None
    if not isinstance(config, PeFoMedConfig):
        raise ConversionError(f"{base}: found a {config.model_type} model, expected a PeFoMed base model.")
    return build_skeleton(config, torch.float32), processor


def require_shapes(
    loaders: Mapping[str, Loader], expected: Mapping[str, torch.Size], origin: Mapping[str, str]
) -> None:
    """Compare tensors with what a model needs.

    Args:
        origin: which file each tensor is from, for the message.

    Raises:
        ConversionError: tensors are missing or have other shapes; every one is named.
    """
    missing = expected.keys() - loaders.keys()
    if missing:
        names = ", ".join(grouped_names(shown(name) for name in expected if name in missing))
        raise ConversionError(
            f"{len(missing)} of {len(expected)} tensors are missing: {names}. Expected them in one of the files: "
            f"{', '.join(sorted(set(origin.values()))) or 'none given'}. Add the file that holds them."
        )
    shapes = {name: loaders[name]().shape for name in expected}
    wrong = [
        f"{shown(name)} of {origin.get(name, 'this model')} is {tuple(shapes[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if shapes[name] != shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise ConversionError(
            f"{len(wrong)} tensors do not fit: {'; '.join(wrong[:5])}{more}. Are tower, language model and checkpoint "
            "of the same sizes, and image size and group size right?"
        )


def shown(name: str) -> str:
    """Return the name that a user finds in their file, where the reference has one."""
    try:
        return reference_name(name)
    except KeyError:
        return name


def tower_config(collected: Collection, num_attention_heads: int, image_size: int) -> dict[str, Any]:
    """Return the tower's configuration, with the sizes that its tensors have."""
    patches, inner = TOWER + "embeddings.patch_embedding.weight", f"{LAYER}0.mlp.fc1.weight"
    lacking = [name for name in (patches, inner, POSITIONS) if name not in collected.loaders]
    if lacking:
        raise ConversionError(
            f"Found no vision tower in {', '.join(collected.reports)}: {', '.join(map(shown, lacking))} missing. "
            "Expected eva_vit_g.pth or a BLIP-2 model as the tower's source."
        )
    width, _, _, patch_size = collected.loaders[patches]().shape
    numbers = [int(name.removeprefix(LAYER).partition(".")[0]) for name in collected.loaders if name.startswith(LAYER)]
    if width % num_attention_heads or image_size % patch_size:
        raise ConversionError(
            f"The tower is {width} wide with patches of {patch_size} px; {num_attention_heads} heads must divide the "
            f"one and the image size {image_size} px must be a multiple of the other."
        )
    return {
        "model_type": "blip_2_vision_model",
        "hidden_size": width,
        "intermediate_size": collected.loaders[inner]().shape[0],
        "num_hidden_layers": max(numbers) + 1,
        "num_attention_heads": num_attention_heads,
        "image_size": image_size,
        "patch_size": patch_size,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "initializer_range": 0.02,
    }


def config_and_processor(
    llm: str | Path, tower: dict[str, Any], patch_group_size: int
) -> tuple[PeFoMedConfig, PeFoMedProcessor]:
    """Return the base model's configuration and processor.

    Raises:
        ConversionError: there is no configuration or tokenizer, or the tokenizer lacks what prompts need.
    """
    try:
        text_config = AutoConfig.from_pretrained(llm)
        tokenizer = load_tokenizer(llm)
    except Exception as error:  # a damaged tokenizer raises plain Exception
        raise ConversionError(
            f"{llm}: found no configuration and tokenizer that transformers can open, expected those of a Llama "
            f"({first_line(error)})"
        ) from None
    problems = [f"it has no {kind} token" for kind in ("bos", "eos") if getattr(tokenizer, f"{kind}_token_id") is None]
    tasks = " ".join(f"[{task}]" for task in TASK_IDENTIFIERS)
    prompt = f"[INST] <Img></Img> {tasks} {{<12><34><56><78>}} [/INST]"
    # Tokenizers of LLaMA's kind drop characters that they lack without a sign of it.
    decoded = tokenizer.decode(tokenizer.encode(prompt, add_special_tokens=False))
    if decoded.split() != prompt.split():
        problems.append(f"it turns the prompt {prompt} into {decoded.strip()!r}")
    highest = max(id_ for token, id_ in tokenizer.get_vocab().items() if token != IMAGE_TOKEN)
    if highest >= text_config.vocab_size:
        problems.append(f"its ids go up to {highest}, but the model has {text_config.vocab_size} embeddings")
    if problems:
        raise ConversionError(
            f"{llm}: this tokenizer cannot be used: {'; '.join(problems)}. Expected the tokenizer that the language "
            "model was trained with."
        )
    size, patches = tower["image_size"], (tower["image_size"] // tower["patch_size"]) ** 2
    processor = PeFoMedProcessor(
        image_processor=PeFoMedImageProcessor(size={"height": size, "width": size}),
        tokenizer=tokenizer,
        image_seq_length=patches // patch_group_size,
    )
    try:
        config = PeFoMedConfig(
            vision_config=tower,
            text_config=text_config.to_dict(),
            patch_group_size=patch_group_size,
            image_token_id=processor.image_token_id,
        )
    except ValueError as error:
        raise ConversionError(first_line(error)) from None
    return config, processor


def greedy_generation(llm: str | Path, processor: PeFoMedProcessor) -> GenerationConfig:
    """Return greedy decoding, as the paper, with the language model's own end tokens."""
    tokenizer = processor.tokenizer
    try:
        eos = GenerationConfig.from_pretrained(llm).eos_token_id or tokenizer.eos_token_id
    except OSError:
        eos = tokenizer.eos_token_id
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=pad, do_sample=False)

# SPDX-License-Identifier: Apache-2.0
"""Tiny models, tokenizers and images: every part is real, only the sizes are small and the weights random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Blip2VisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    set_seed,
)

from modeling_pefomed import PeFoMedConfig, PeFoMedForConditionalGeneration, PeFoMedImageProcessor, PeFoMedProcessor

IMAGE_SIZE = 32
PATCH_SIZE = 8
IMAGE_TOKENS = 4  # 4 x 4 patches in strips of 4
# transformers' default for this tower is 1e-10: all features would be zero, and tests of images could not fail.
INITIALIZER_RANGE = 0.2

CORPUS = [
    "[INST] <Img></Img> [vqa] Is there a mass in the left lung? [/INST] yes",
    "[INST] <Img></Img> [vqa] Which organ is shown in the image? [/INST] liver",
    "[INST] <Img></Img> [caption] describe the image [/INST] an axial slice of the right kidney",
    "[INST] <Img></Img> [report] write the report [/INST] the heart is normal, no effusion",
]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (GPT-2's kind) of about 330 tokens, with its own begin, end and padding tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def build_llama_tokenizer() -> LlamaTokenizer:
    """A tokenizer of LLaMA's kind: SentencePiece-like spaces, byte fallback, a begin token that it adds by itself."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = sorted({character for line in CORPUS for character in line.replace(" ", "▁")})
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return LlamaTokenizer(vocab=tokenizer.get_vocab(), merges=merges, add_bos_token=True)


def build_processor(tokenizer: PreTrainedTokenizerFast | None = None) -> PeFoMedProcessor:
    """The processor of the tiny model: 32 px images, 4 image tokens each."""
    return PeFoMedProcessor(
        image_processor=PeFoMedImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tokenizer or build_tokenizer(),
        image_seq_length=IMAGE_TOKENS,
    )


def vision_config(**changes: Any) -> Blip2VisionConfig:
    """The paper's kind of tower: width 32, 2 blocks, 16 patches of 8 px and a CLS token."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "initializer_range": INITIALIZER_RANGE,
    }
    return Blip2VisionConfig(**sizes | changes)


def text_config(processor: PeFoMedProcessor, **changes: Any) -> LlamaConfig:
    """The paper's kind of language model: width 48, 2 layers, 4 query and 2 key-value heads.

    Its vocabulary is the tokenizer's without the image token, whose id therefore lies outside the embedding matrix.
    """
    tokenizer = processor.tokenizer
    sizes = {
        "vocab_size": processor.image_token_id,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return LlamaConfig(**sizes | changes)


def build_config(
    processor: PeFoMedProcessor,
    vision: PreTrainedConfig | None = None,
    text: PreTrainedConfig | None = None,
    **changes: Any,
) -> PeFoMedConfig:
    """The configuration of the tiny model."""
    return PeFoMedConfig(
        vision_config=(vision or vision_config()).to_dict(),
        text_config=(text or text_config(processor)).to_dict(),
        **{"image_token_id": processor.image_token_id} | changes,
    )


def build_model(
    processor: PeFoMedProcessor, config: PeFoMedConfig | None = None, seed: int = 0, **kwargs: Any
) -> PeFoMedForConditionalGeneration:
    """The tiny model in float32 and evaluation mode."""
    set_seed(seed)
    model = PeFoMedForConditionalGeneration._from_config(config or build_config(processor), **kwargs).eval()
    # LayerNorms start as identities, and a CLS token or positions of zero would hide mistakes.
    for name, parameter in model.named_parameters():
        if name.endswith(("class_embedding", "position_embedding", ".bias")):
            torch.nn.init.normal_(parameter, std=INITIALIZER_RANGE)
    return model


def draw_image(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A random RGB image without any symmetry."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


def ask(text: str, *images: Image.Image, answer: str | None = None) -> list[dict[str, Any]]:
    """A conversation: images, then text; with `answer`, also the assistant's turn."""
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": text}]
    turns = [{"role": "user", "content": content}]
    return turns + ([{"role": "assistant", "content": answer}] if answer is not None else [])


def encode(processor: PeFoMedProcessor, *conversations: list[dict[str, Any]], task: str = "vqa") -> dict[str, Any]:
    """The model's inputs for one or more conversations; prompts are padded on the left."""
    return processor.apply_chat_template(
        list(conversations),
        task=task,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": len(conversations) > 1},
    )


def save_tiny_base(folder: Path) -> Path:
    """Save the tiny model and its processor as a base model folder and return the folder."""
    processor = build_processor()
    build_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

# SPDX-License-Identifier: Apache-2.0
"""What is measured on: models of four sizes with random weights, questions about images, and a tokenizer for them.

Everything is made on the spot, so that a benchmark needs no download and no data set: only sizes and lengths matter.
"""

from __future__ import annotations

import contextlib
import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Blip2VisionConfig, LlamaConfig, PreTrainedTokenizerFast, set_seed

from modeling_pefomed import PeFoMedConfig, PeFoMedForConditionalGeneration, PeFoMedImageProcessor, PeFoMedProcessor

from ..data.instructions import vqa_instruction
from ..errors import ConfigError, did_you_mean
from ..models.feature_building import build_features
from ..models.feature_cache import FeatureCache
from ..records import Sample
from ..training.adapters import add_adapter

INITIALIZER_RANGE = 0.02  # transformers' own for this tower, 1e-10, would make all features zero
ANSWER_PERIOD = 7  # generated answers have 1 to 7 tokens, evenly: see `end_answers`
# Chosen so that a question and its answer have some 40 tokens, as VQA-RAD's in LLaMA's tokens.
TOKENS = 420

# Questions of each image. Source: K per image as drawn from VQA-RAD's training split (mean 9.76, median 10, 3 to 14 in
# its middle 80 %) and test split (mean 2.22), SLAKE's English training split (10.93) and PathVQA (7.56).
VQA_RAD = (7, 14, 3, 10, 15)
SLAKE = (8, 12, 18, 6, 11)
PATH_VQA = (7, 7, 8, 8)
VQA_RAD_TEST = (2, 3, 1, 2, 2, 4, 2, 2, 1, 3) * 3

FINDINGS = "nodule effusion fracture mass calcification haemorrhage cyst lesion opacity oedema".split()
PLACES = "left lung,right lung,liver,left kidney,right kidney,spleen,brain stem,upper abdomen,heart,pelvis".split(",")
QUESTIONS = (
    "Is there a {finding} in the {place}?",
    "Does the image show any {finding} near the {place}?",
    "What is seen beside the {finding} of the {place}?",
    "Which side of the {place} has the {finding}?",
    "Was contrast given before the {finding} in the {place} was imaged?",
)
ANSWERS = ("yes", "no", "left", "right", "not seen", "upper lobe", "pleural effusion", "both sides", "yes", "no")


@dataclass(frozen=True)
class Preset:
    """One size of model, and the questions that it is asked.

    `text` are LLaMA's sizes, `tower` those of our vision tower; `stock_tower` those of the CLIP tower that the stock
    model has in its place: it gives as many image tokens, and its forward takes about as many FLOPs. `training` and
    `test` name lists of questions an image. `whole` presets have one command for everything that a GPU is asked:
    `train` then also measures executed FLOPs, generation and the memory of each card's settings.
    """

    name: str
    text: dict[str, Any]
    tower: dict[str, Any]
    stock_tower: dict[str, Any]
    lora_r: int
    training: dict[str, tuple[int, ...]]
    test: dict[str, tuple[int, ...]]
    rows_per_step: int = 1
    image_px: int = 512  # of the JPEG files
    on_gpu: bool = False
    whole: bool = False
    text_defaults: dict[str, Any] = field(
        default_factory=lambda: {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "initializer_range": 0.02}
    )


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(  # for tests
            "tiny",
            {"vocab_size": 512, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1},
            {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "image_size": 32, "patch_size": 4},
            {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "image_size": 32, "patch_size": 8},
            lora_r=4,
            training={"vqa_rad": (3, 2)},
            test={"vqa_rad": (2, 1)},
            rows_per_step=2,
            image_px=48,
            whole=True,
        ),
        Preset(
            "micro",
            {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
             "num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.05},
            {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
             "image_size": 448, "patch_size": 14},
            {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 6,
             "image_size": 224, "patch_size": 14},
            lora_r=8,
            training={"vqa_rad": VQA_RAD, "slake": SLAKE, "path_vqa": PATH_VQA},
            test={"vqa_rad": VQA_RAD_TEST},
        ),
        Preset(  # SmolLM2-135M
            "smol135",
            {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
             "initializer_range": 0.03},
            {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6,
             "image_size": 448, "patch_size": 14},
            {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 18, "num_attention_heads": 12,
             "image_size": 224, "patch_size": 14},
            lora_r=16,
            training={"k8": (8,)},
            test={"k8": (8, 8)},
        ),
        Preset(  # the paper's: EVA ViT-g and LLaMA-2-7B
            "paper",
            {"vocab_size": 32000},
            {},
            {"hidden_size": 2688, "intermediate_size": 10752, "num_hidden_layers": 48, "num_attention_heads": 21,
             "image_size": 224, "patch_size": 14},
            lora_r=64,
            training={"vqa_rad": VQA_RAD},
            test={"vqa_rad": VQA_RAD_TEST},
            rows_per_step=5,
            on_gpu=True,
            whole=True,
        ),
    )
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        ConfigError: there is no such preset, or it needs a GPU that is not here.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}; expected {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if preset.on_gpu and not torch.cuda.is_available():
        raise ConfigError(f"preset {name} needs a GPU, and none was found; take smol135, micro or tiny")
    return preset


def device() -> torch.device:
    """Return where everything is measured: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def base_dtype() -> torch.dtype:
    """Return the number format of frozen weights: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device().type == "cuda" else torch.float32


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that has learned the benchmark's own questions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = [sample.instruction for sample in draw_samples((400,), [Path()])]
    tokenizer.train_from_iterator([*texts, *ANSWERS, *["[INST] <Img></Img> [vqa] [/INST]"] * 400], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def build_processor(preset: Preset) -> PeFoMedProcessor:
    """Return our processor at a preset's sizes."""
    vision = Blip2VisionConfig(**{"image_size": 448, "patch_size": 14} | preset.tower)
    size = {"height": vision.image_size, "width": vision.image_size}
    return PeFoMedProcessor(
        image_processor=PeFoMedImageProcessor(size=size),
        tokenizer=build_tokenizer(),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2 // 4,
    )


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the ids that a language model's configuration names."""
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def build_model(preset: Preset, processor: PeFoMedProcessor) -> PeftModel:
    """Return our model with random weights and a LoRA adapter that is not zero, ready for training; no dropout."""
    vision = {"image_size": 448, "initializer_range": INITIALIZER_RANGE} | preset.tower
    text = LlamaConfig(**preset.text_defaults | preset.text | special_ids(processor.tokenizer))
    config = PeFoMedConfig(
        vision_config=Blip2VisionConfig(**vision).to_dict(),
        text_config=text.to_dict(),
        image_token_id=processor.image_token_id,
    )
    set_seed(0)
    with device():
        base = PeFoMedForConditionalGeneration._from_config(config, dtype=base_dtype())
    return with_random_lora(add_adapter(base, r=preset.lora_r, alpha=16, dropout=0.0))


def with_random_lora(model: PeftModel) -> PeftModel:
    """Fill LoRA's second matrices with small numbers: as long as they are zero, the first have no gradient."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=INITIALIZER_RANGE)
    return model


def write_images(folder: Path, count: int, size_px: int) -> list[Path]:
    """Write grey JPEG files with soft shapes and noise, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8))
        soft = np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (soft + rng.integers(-9, 10, soft.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return paths


def open_features(model: Any, processor: PeFoMedProcessor, samples: list[Sample], folder: Path) -> FeatureCache:
    """Write a feature cache of the samples' images for a model that is only in memory, and open it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    # A cache asks for its tower alone, in a folder: the language model beside it may be the smallest there is.
    text = PRESETS["tiny"].text | special_ids(processor.tokenizer)
    config = PeFoMedConfig(
        vision_config=base.config.vision_config.to_dict(),
        text_config=LlamaConfig(**text).to_dict(),
        image_token_id=processor.image_token_id,
    )
    small = PeFoMedForConditionalGeneration._from_config(config, dtype=base_dtype())
    small.model.vision_tower = base.model.vision_tower
    with contextlib.redirect_stderr(io.StringIO()):  # of no interest here: bars and sizes
        small.save_pretrained(folder / "base")
        processor.save_pretrained(folder / "base")
        build_features(folder / "base", samples, folder / "features", dtype=base_dtype())
    return FeatureCache.open(folder / "features", base, processor.image_processor)


def draw_samples(questions_per_image: tuple[int, ...], images: list[Path]) -> list[Sample]:
    """Return as many different questions about each image as asked for, in the paper's longer wording."""
    rng = random.Random(0)
    samples = []
    for number, (count, image) in enumerate(zip(questions_per_image, images, strict=True)):
        asked: set[str] = set()
        while len(asked) < count:
            question = rng.choice(QUESTIONS).format(finding=rng.choice(FINDINGS), place=rng.choice(PLACES))
            if question in asked:
                continue
            asked.add(question)
            text = vqa_instruction(question, "short_answer")
            samples.append(Sample(f"{number}-{len(asked)}", "vqa", [str(image)], text, [rng.choice(ANSWERS)]))
    return samples


def end_answers(model: torch.nn.Module, eos_token_id: int, known: int) -> None:
    """Make a model with random weights answer as briefly as a trained one: an answer ends where its position is a
    multiple of `ANSWER_PERIOD`, and nowhere else. That depends neither on the way of decoding nor on the batch.

    Args:
        known: ids from this one on, the image token's, are never generated: the tokenizer has no text for them.
    """

    def hook(_module: torch.nn.Module, _arguments: Any, given: dict[str, Any], output: Any) -> None:
        positions, logits = given.get("position_ids"), output.logits
        if positions is None:
            return
        ends = positions[:, -logits.shape[1] :] % ANSWER_PERIOD == 0
        logits[..., known:] = float("-inf")
        logits[..., eos_token_id] = torch.where(ends, float("inf"), float("-inf")).to(logits.dtype)

    model.register_forward_hook(hook, with_kwargs=True)

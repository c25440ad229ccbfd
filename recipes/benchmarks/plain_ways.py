# SPDX-License-Identifier: Apache-2.0
"""The plain ways that ours is compared with, on the same questions.

Reference style, as the released code computes, on our model's own weights: one question a row, the tower run for each
row, logits of every position. And the stock way: TRL's `SFTTrainer` on a stock `LlavaForConditionalGeneration`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from datasets import Sequence as ListOf
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PrinterCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from modeling_pefomed import PeFoMedProcessor

from ..data.images import load_image
from ..inference.requests import Request
from ..models.feature_cache import FeatureCache
from ..records import Sample
from .presets import Preset, base_dtype, build_tokenizer, device, end_answers, special_ids, with_random_lora

REFERENCE_BATCH = 8  # of training; the released code's own is 1, which is measured too
REFERENCE_GENERATION_BATCH = 10  # the released code's
STOCK_IMAGE_TOKEN = "<image>"


def encode_rows(samples: Sequence[Sample], processor: PeFoMedProcessor) -> list[tuple[list[int], list[int]]]:
    """Return prompt and answer of each sample as token ids, the same as in packed rows."""
    return [
        (processor.encode_prompt(sample.instruction, "vqa"), processor.encode_answer(sample.answers[0]))
        for sample in samples
    ]


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with all its tensors where everything is measured."""
    return {name: on_device(value) if isinstance(value, dict) else value.to(device()) for name, value in batch.items()}


def plain_batches(
    samples: Sequence[Sample], processor: PeFoMedProcessor, batch_size: int, features: FeatureCache | None = None
) -> list[dict[str, Any]]:
    """Return batches of one question a row, padded on the right, with the image of each row, or its features."""
    pixels = {
        path: processor.image_processor([load_image(path)], return_tensors="pt")["pixel_values"]
        for path in {sample.image_paths[0] for sample in samples}
    }
    batches = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        rows = encode_rows(part, processor)
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        pad = processor.tokenizer.pad_token_id
        ids, labels = torch.full((len(rows), length), pad), torch.full((len(rows), length), -100)
        for number, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            ids[number, :end] = torch.tensor(prompt + answer)
            labels[number, len(prompt) : end] = torch.tensor(answer)
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": labels}
        if features is None:
            batch["pixel_values"] = torch.cat([pixels[sample.image_paths[0]] for sample in part])
        else:
            found = features.features([sample.image_paths[0] for sample in part])
            batch["mm_encoder_outputs"] = {"image": {"last_hidden_state": found}}
        batches.append(on_device(batch))
    return batches


def full_logits_loss(model: torch.nn.Module, batch: dict[str, Any], items: int | None = None) -> torch.Tensor:
    """Return the loss as the released code computes it: logits of every position, and their cross entropy.

    Args:
        items: what the sum of the losses is divided by; the batch's labelled tokens by default.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    targets = batch["labels"][:, 1:]
    summed = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    return summed / (items or (targets != -100).sum())


@torch.inference_mode()
def reference_answers(
    model: Any, processor: PeFoMedProcessor, requests: Sequence[Request], max_new_tokens: int
) -> Iterator[tuple[str, str]]:
    """Yield `(id, answer)`, as the released code generates: for each question the image again, in batches of 10, with
    logits for the whole prompt."""
    pad = processor.tokenizer.pad_token_id
    for start in range(0, len(requests), REFERENCE_GENERATION_BATCH):
        part = requests[start : start + REFERENCE_GENERATION_BATCH]
        prompts = [processor.encode_prompt(request.instruction, "vqa") for request in part]
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        images = [request.images[0] for request in part]
        output = model.generate(
            input_ids=ids.to(device()),
            attention_mask=(ids != pad).long().to(device()),
            pixel_values=processor.image_processor(images, return_tensors="pt")["pixel_values"].to(device()),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            logits_to_keep=0,
        )
        for request, tokens in zip(part, output[:, longest:], strict=True):
            yield request.id, processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def build_stock(preset: Preset) -> tuple[PeftModel, LlavaProcessor]:
    """Return a stock LLaVA of a preset's sizes with random weights and its processor, with LoRA and the projector
    trained as in ours."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [STOCK_IMAGE_TOKEN]})
    vision = CLIPVisionConfig(**preset.stock_tower)
    size = {"height": vision.image_size, "width": vision.image_size}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": vision.image_size}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        image_token=STOCK_IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
    text = LlamaConfig(**preset.text_defaults | preset.text | special_ids(tokenizer))
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=processor.image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    set_seed(0)
    with device():
        model = LlavaForConditionalGeneration._from_config(config, dtype=base_dtype())
    lora = LoraConfig(
        r=preset.lora_r,
        lora_alpha=16,
        task_type="CAUSAL_LM",
        target_modules=r".*language_model.*\.(q_proj|v_proj)",
        modules_to_save=["multi_modal_projector"],
    )
    return with_random_lora(get_peft_model(model, lora)), processor


def stock_text(instruction: str) -> str:
    """Return a prompt of the stock model: as ours, with its own image token."""
    return f"<s>[INST] <Img>{STOCK_IMAGE_TOKEN}</Img> [vqa] {instruction} [/INST]"


def stock_dataset(samples: Sequence[Sample]) -> Dataset:
    """Return the samples as TRL takes them: prompt, completion and images, which it decodes for each question."""
    rows = Dataset.from_dict(
        {
            "prompt": [stock_text(sample.instruction) for sample in samples],
            "completion": [f" {sample.answers[0]}</s>" for sample in samples],
            "images": [sample.image_paths for sample in samples],
        }
    )
    return rows.cast_column("images", ListOf(Image()))


def stock_trainer(
    model: PeftModel, processor: LlavaProcessor, samples: Sequence[Sample], folder: Path, **settings: Any
) -> SFTTrainer:
    """Return TRL's trainer on its default path. Its batch is 8; gradient checkpointing, TRL's default, is off, because
    ours does without it, and so is bfloat16 on a CPU, where it is slower."""
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=REFERENCE_BATCH,
        gradient_checkpointing=False,
        bf16=device().type == "cuda",
        use_cpu=device().type == "cpu",
        max_length=None,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=stock_dataset(samples), processing_class=processor)
    trainer.remove_callback(PrinterCallback)
    return trainer


@torch.inference_mode()
def stock_answers(
    model: Any, processor: LlavaProcessor, requests: Sequence[Request], max_new_tokens: int
) -> Iterator[tuple[str, str]]:
    """Yield `(id, answer)` of the stock model: its own `generate`, in the same batches as the reference's."""
    for start in range(0, len(requests), REFERENCE_GENERATION_BATCH):
        part = requests[start : start + REFERENCE_GENERATION_BATCH]
        inputs = processor(
            images=[[request.images[0]] for request in part],
            text=[stock_text(request.instruction) for request in part],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(device())
        inputs["pixel_values"] = inputs["pixel_values"].to(base_dtype())
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        for request, tokens in zip(part, output[:, inputs["input_ids"].shape[1] :], strict=True):
            yield request.id, processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def ready_to_answer(model: PeftModel, processor: Any) -> Any:
    """Return the model inside a trained one, in evaluation mode, with answers as short as a trained model's."""
    inner = model.get_base_model().eval()
    end_answers(inner, processor.tokenizer.eos_token_id, processor.image_token_id)
    return inner

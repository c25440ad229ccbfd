# SPDX-License-Identifier: Apache-2.0
"""Examines a base or an adapter, and data for it, before time is spent: what is trained on, and what is wrong.

What people's data say is shown for one sample only, and only because its data set was named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from modeling_pefomed import PeFoMedProcessor

from ..data.instructions import VQA_PREFIXES, render_instruction
from ..errors import PeFoMedError
from ..records import Sample
from .data_findings import check_data, read_splits
from .estimates import GIB, Mode, ModelSizes, estimate_memory, model_sizes
from .examined import Finding, Subject, adapter_shapes, base_dtypes, open_subject
from .findings import check_adapter, check_base, check_environment, check_processor
from .packing import IGNORED, Segment, pack_row

GREEN, NORMAL = "\033[32m", "\033[0m"
EXAMPLES = {
    "vqa": ("Is there a pleural effusion?", "yes"),
    "caption": ("", "Frontal chest radiograph with a left pleural effusion."),
    "report": ("", "There is a small left pleural effusion. The heart is of normal size."),
    "refer": ("left pleural effusion", "{<55><60><92><95>}"),
}
# What LoRA adapts by default, and where attention's projections are fused.
TARGETS = (("q_proj", "v_proj"), ("qkv_proj",))
MODES = {
    "plain": Mode("none", False),
    "gradient checkpointing": Mode("none", True),
    "nf4": Mode("nf4", False),
    "both": Mode("nf4", True),
}
QUESTIONS_PER_ROW = 16  # of a full row, for the memory of its logits
INDENT = 12


def examine(
    name: str,
    *,
    data_root: str | None = None,
    dataset: str = "jsonl",
    task: str = "vqa",
    language: str | None = None,
    rows: int = 1,
    max_length: int = 1024,
    answer_limits: Mapping[str, int],
    colour: bool = False,
) -> tuple[str, list[Finding]]:
    """Return a description of a model, and what is wrong with it and with the data, if a data set is named.

    Args:
        name: folder or Hub id of a base model or an adapter.
        data_root: folder of a data set; the first training sample's prompt is then shown, else a built-in example's.
        rows: of the micro-batch whose memory is estimated.
        max_length: tokens of its rows.
        answer_limits: tokens of the longest answers that are generated, by task.
        colour: show what is trained on in green; else in double brackets.

    Raises:
        PeFoMedError: nothing of this project's is there.
        ConfigError: an unknown data set, task or language.
    """
    subject = open_subject(name)
    sizes, no_targets = sizes_of(subject)
    findings = [
        *subject.problems,
        *no_targets,
        *check_environment(),
        *check_processor(subject),
        *check_base(subject),
        *check_adapter(subject),
    ]
    shown, where = Sample("", task, ["image"], EXAMPLES[task][0], [EXAMPLES[task][1]]), "a built-in example"
    if data_root is not None:
        splits, unread = read_splits(dataset, data_root, task, language)
        findings += [*unread, *check_data(splits, subject, max_length, answer_limits.get(task))]
        if splits.get("train"):
            shown = splits["train"][0]
            where = f"{printable(shown.id)} of {data_root}"
    row = training_row(shown, subject.processor)
    facts = {
        "model": f"{name}, " + (f"an adapter of {subject.base or 'an unnamed base'}" if subject.adapter else "a base"),
        "template": getattr(subject.processor, "template", "paper"),
        "sample": f"{where}; trained on what " + ("is green" if colour else "stands in [[ ]]"),
        "": show_row(row, subject.processor, colour),
        "tokens": f"{len(row['input_ids'])}, {_labelled(row)} of them trained on",
    }
    if shown.task == "vqa":
        facts["instruction"] = "\n".join(f"{name}: {prefix}<question>" for name, prefix in VQA_PREFIXES.items())
    if subject.config is not None:
        vision: Any = subject.config.vision_config
        facts["image"] = (
            f"{subject.config.image_seq_length} tokens: {vision.image_size} px in patches of {vision.patch_size} px, "
            f"{subject.config.patch_group_size} patches a token"
        )
    if sizes is not None:
        facts |= describe_sizes(subject, sizes, rows, max_length, QUESTIONS_PER_ROW * _labelled(row))
    return "\n".join(_paragraph(title, text) for title, text in facts.items()), findings


def training_row(sample: Sample, processor: PeFoMedProcessor) -> dict[str, Any]:
    """Return the packed row of one sample, as the collator makes it for training."""
    instruction = render_instruction(sample, training=True)
    prompt = processor.encode_prompt(instruction, sample.task, num_images=len(sample.image_paths), training=True)
    return pack_row([Segment(sample.id, prompt, processor.encode_answer(sample.answers[0], training=True))])


def show_row(row: dict[str, Any], processor: PeFoMedProcessor, colour: bool) -> str:
    """Return a row as text: what is trained on is marked, and image tokens are counted instead of printed."""
    before, after = (GREEN, NORMAL) if colour else ("[[", "]]")
    runs: list[tuple[str, list[int]]] = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        kind = "image" if token == processor.image_token_id else "prompt" if label == IGNORED else "answer"
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(token)
    texts = []
    for kind, tokens in runs:
        text = printable(processor.tokenizer.decode(tokens))
        texts.append({"image": f"<image x {len(tokens)}>", "prompt": text, "answer": before + text + after}[kind])
    return "".join(texts)


def sizes_of(subject: Subject) -> tuple[ModelSizes | None, list[Finding]]:
    """Return the model's sizes, and a finding where LoRA's default layers are not there."""
    problems: list[Finding] = []
    if subject.config is None:
        return None, problems
    for targets in TARGETS:
        try:
            return model_sizes(subject.config, targets), problems
        except PeFoMedError as error:
            advice = "name layers that are there: --target_modules qkv_proj, or --target_modules NAME,NAME"
            problems = [Finding("warning", str(error), "layers q_proj and v_proj for LoRA", advice)]
    return None, problems


def describe_sizes(subject: Subject, sizes: ModelSizes, rows: int, max_length: int, labelled: int) -> dict[str, str]:
    """Return what there is to say on parameters, number formats and memory."""
    lora_r = subject.adapter_config.get("r") or 64
    trained, what = sizes.trained(lora_r), f"with LoRA of rank {lora_r} and the projector"
    formats = base_dtypes(subject)
    if subject.adapter is not None:
        shapes = adapter_shapes(subject.adapter)
        trained = sum(torch.Size(shape).numel() for shape, _ in shapes.values())
        what = f"{subject.adapter_config.get('peft_type', 'adapter')} and projector"
        formats = formats | {"adapter": {kind for _, kind in shapes.values()}}
    estimates = []
    for words, mode in MODES.items():
        parts = estimate_memory(
            sizes, mode, lora_r=lora_r, rows=rows, row_tokens=max_length, images_per_row=1, labelled=labelled
        )
        estimates.append(f"{sum(parts.values()) / GIB:.1f} GB {words}")
    share = trained / (sizes.frozen + trained)
    return {
        "parameters": f"{trained:,} trained ({what}), {sizes.frozen:,} frozen: {share:.2%}",
        "dtypes": "; ".join(f"{part} {', '.join(sorted(kinds))}" for part, kinds in formats.items()),
        "memory": f"to train on {rows} x {max_length} tokens, estimated: {', '.join(estimates)}",
    }


def printable(text: str) -> str:
    """Return text that can do nothing to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _labelled(row: dict[str, Any]) -> int:
    return sum(label != IGNORED for label in row["labels"])


def _paragraph(title: str, text: str) -> str:
    return title.ljust(INDENT) + text.replace("\n", "\n" + " " * INDENT)

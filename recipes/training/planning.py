# SPDX-License-Identifier: Apache-2.0
"""From a GPU, hours and data to a configuration: memory and time are estimated before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml
from transformers import AutoConfig, AutoProcessor

from modeling_pefomed import PeFoMedConfig, PeFoMedProcessor

from ..data.datasets_index import load_samples
from ..data.instructions import render_instruction
from ..errors import ConfigError, PeFoMedError
from ..records import Sample
from .estimates import (
    CARDS,
    CUDA_CONTEXT_BYTES,
    FRAGMENTATION_SHARE,
    GIB,
    UTILISATION,
    Gpu,
    Mode,
    ModelSizes,
    estimate_memory,
    estimate_seconds,
    find_gpu,
    model_sizes,
)
from .packing import pack_samples

# The plan's own aims; not given in the paper, whose batch is 1.
QUESTIONS_PER_STEP = 32
FULL_GPU_TOKENS = 2000  # tokens of a micro-batch from which arithmetic outweighs its launches
MAX_PASSES = 20
VALIDATIONS, VALIDATION_SHARE, LOADING_SHARE = 10, 0.2, 0.05
LORA_RANKS = (64, 16)  # the paper's; the smaller one only where nothing else fits
LORA_SCALE = 0.25  # alpha / rank, the paper's
CARD_SIZES_GB = (12, 24, 48, 80, 141)
CHECKPOINTING_RULE = (
    "Gradient checkpointing goes on only where a micro-batch that fills the card's arithmetic would not fit without "
    "it, and 4 bits only where it would not fit with it either."
)

# Words to tokens, where no tokenizer is there: together 40 tokens for VQA-RAD's average question in its long wording
# and its answer, as counted.
TOKENS_PER_WORD, TOKENS_AROUND = 1.5, 9
PREFIX_TOKENS = 7  # `<s>[INST] <Img>` and what follows the image up to the question


@dataclass(frozen=True)
class DataSizes:
    """What a data set asks of a run: its rows, each an image (or image set) with some of its questions.

    `tokens` and `longest_tokens` are of a row, `longest_labelled` its supervised tokens; `measured` says whether a
    tokenizer counted them.
    """

    samples: int
    rows: int
    validation_rows: int
    images_per_row: int
    questions_per_row: float
    tokens: float
    longest_tokens: int
    longest_labelled: int
    measured: bool


MODES = [Mode(quantization, checkpointing) for quantization in ("none", "nf4") for checkpointing in (False, True)]


@dataclass(frozen=True)
class Plan:
    """A configuration, and what it was estimated to need."""

    config: dict[str, Any]
    memory: dict[str, float]
    step_seconds: float
    validation_seconds: float
    steps_in_time: int
    passes: float


def plan_run(
    gpu: str,
    hours: float,
    data_root: str,
    *,
    dataset: str = "jsonl",
    task: str = "vqa",
    language: str | None = None,
    base: str | None = None,
    target_modules: str = "q_proj,v_proj",
    max_length: int = 1024,
    max_questions_per_image: int = 16,
) -> tuple[str, str]:
    """Return a configuration for stage 1 or 2 as YAML, and the table of its arithmetic.

    Args:
        gpu: a card's name, or its memory as `24GB`.
        hours: for the whole run.
        language: of a data set that mixes languages.
        base: folder or Hub id of a base model; without it the paper's sizes are taken, and words stand for tokens.
        target_modules: layers of the language model that LoRA adapts.

    Raises:
        ConfigError: an unknown card, data set or task, or no time.
        PeFoMedError: the data or the base cannot be used, or nothing fits.
    """
    card = find_gpu(gpu)
    if not hours > 0:
        raise ConfigError(f"--hours: found {hours:g}, expected more than 0")
    train, validation = (
        load_samples(dataset, data_root, split, task, language=language) for split in ("train", "validation")
    )
    config, processor = (PeFoMedConfig(), None) if base is None else load_sizes(base)
    sizes = model_sizes(config, target_modules.split(","))
    data = data_sizes(
        train,
        validation,
        partial(render_instruction, training=False),  # the longer wording of questions
        image_tokens=sizes.image_tokens,
        max_length=max_length,
        max_questions_per_image=max_questions_per_image,
        processor=processor,
    )
    plan = make_plan(sizes, card, hours, data, max_length=max_length)
    where = {"task": task, "dataset": dataset, "data_root": data_root, "base": base or "BASE"}
    asked = {"max_questions_per_image": max_questions_per_image, "target_modules": target_modules}
    head = (
        f"# Estimated, not measured: {sum(plan.memory.values()) / GIB:.1f} GB and {total_hours(plan):.1f} h on "
        f"{card.name}.\n# What is not here, such as the learning rate, stays at the paper's value.\n"
    )
    if base is None:
        head += "# The paper's sizes were assumed; write your base model's folder or Hub id for BASE.\n"
    text = head + yaml.safe_dump({**where, **plan.config, **asked}, sort_keys=False)
    return text, explain(plan, sizes, card, hours, data)


def load_sizes(base: str) -> tuple[PeFoMedConfig, PeFoMedProcessor]:
    """Return the configuration and the processor of a base model, without its weights.

    Raises:
        PeFoMedError: there is no PeFoMed model at that place.
    """
    try:
        config, processor = AutoConfig.from_pretrained(base), AutoProcessor.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise PeFoMedError(f"{base}: cannot load a PeFoMed base model ({str(error).splitlines()[0]})") from None
    if config.model_type != "pefomed":
        raise PeFoMedError(f"{base}: found a {config.model_type} model, expected a PeFoMed base model")
    return config, processor


def data_sizes(
    train: Sequence[Sample],
    validation: Sequence[Sample],
    instruction: Callable[[Sample], str],
    *,
    image_tokens: int,
    max_length: int,
    max_questions_per_image: int,
    processor: PeFoMedProcessor | None = None,
) -> DataSizes:
    """Return what a data set asks of a run: counted by the tokenizer where a processor is there, else by words.

    Raises:
        PeFoMedError: there are no samples, or one is longer than `max_length` tokens.
    """
    rows: list[tuple[int, int, int, int]] = []  # tokens, labelled tokens, questions, images
    if processor is not None:
        packed = pack_samples(
            train,
            processor,
            instruction,
            max_length=max_length,
            max_questions_per_image=max_questions_per_image,
            seed=0,
            training=True,
        )
        for row in packed:
            labelled = sum(label != -100 for label in row["labels"])
            rows.append((len(row["input_ids"]), labelled, len(row["sample_ids"]), len(row["image_paths"])))
    else:
        rows = _rows_by_words(train, instruction, image_tokens, max_length, max_questions_per_image)
    if not rows:
        raise PeFoMedError("The data set is empty: found 0 samples, expected at least one.")
    return DataSizes(
        samples=len(train),
        rows=len(rows),
        validation_rows=len({tuple(sample.image_paths) for sample in validation}),
        images_per_row=max(images for *_, images in rows),
        questions_per_row=len(train) / len(rows),
        tokens=sum(tokens for tokens, *_ in rows) / len(rows),
        longest_tokens=max(tokens for tokens, *_ in rows),
        longest_labelled=max(labelled for _, labelled, *_ in rows),
        measured=processor is not None,
    )


def _rows_by_words(
    samples: Sequence[Sample],
    instruction: Callable[[Sample], str],
    image_tokens: int,
    max_length: int,
    max_questions: int,
) -> list[tuple[int, int, int, int]]:
    """Return tokens, labelled tokens, questions and images of each row, as the collator would fill them."""
    groups: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for sample in samples:
        answer = math.ceil(TOKENS_PER_WORD * len(sample.answers[0].split())) + 1
        asked = math.ceil(TOKENS_PER_WORD * len(instruction(sample).split())) + TOKENS_AROUND - 1
        groups.setdefault((*sample.image_paths, sample.task), []).append((asked + answer, answer))
    rows = []
    for key, questions in groups.items():
        images = len(key) - 1
        prefix = PREFIX_TOKENS + images * image_tokens
        longest = prefix + max(tokens for tokens, _ in questions)
        if longest > max_length:
            raise PeFoMedError(
                f"the longest sample has some {longest} tokens, image tokens included, more than --max-length "
                f"{max_length}; raise it"
            )
        row: tuple[int, int, int, int] = (prefix, 0, 0, images)
        for tokens, answer in questions:
            if row[2] == max_questions or row[0] + tokens > max_length:
                rows.append(row)
                row = (prefix, 0, 0, images)
            row = (row[0] + tokens, row[1] + answer, row[2] + 1, images)
        rows.append(row)
    return rows


def make_plan(sizes: ModelSizes, gpu: Gpu, hours: float, data: DataSizes, *, max_length: int) -> Plan:
    """Return the configuration that fits with the largest micro-batch that is of use.

    The micro-batch comes first, so that more memory never means a smaller one; then weights that are not quantized;
    then speed. So `CHECKPOINTING_RULE` holds. LoRA's rank is lowered only where nothing else fits.

    Raises:
        PeFoMedError: nothing fits, or the hours are not enough for one step; it says what would do.
    """
    row_tokens = min(-(-data.longest_tokens // 64) * 64, max(max_length, data.longest_tokens))
    shape = {
        "row_tokens": row_tokens,
        "images_per_row": data.images_per_row,
        "labelled": data.longest_labelled,
    }
    rows_per_step = min(data.rows, math.ceil(QUESTIONS_PER_STEP / data.questions_per_row))
    target = min(rows_per_step, max(1, math.ceil(FULL_GPU_TOKENS / data.tokens)))

    average: dict[str, Any] = {"row_tokens": data.tokens, "images_per_row": data.images_per_row}

    def seconds(mode: Mode, lora_r: int, rows: int) -> float:
        return estimate_seconds(sizes, mode, gpu, lora_r=lora_r, rows=rows, **average)

    chosen = None
    tried = [(LORA_RANKS[0], rows) for rows in range(target, 0, -1)] + [(rank, 1) for rank in LORA_RANKS[1:]]
    for lora_r, rows in tried:
        fitting = [
            mode
            for mode in MODES
            if sum(estimate_memory(sizes, mode, lora_r=lora_r, rows=rows, **shape).values()) <= gpu.usable
        ]
        if fitting:
            # Unchanged weights before speed.
            best = min(fitting, key=lambda mode: (mode.quantization != "none", seconds(mode, lora_r, rows)))
            chosen = best, lora_r, rows
            break
    if chosen is None:
        raise PeFoMedError(_what_would_fit(sizes, gpu, shape))
    mode, lora_r, rows = chosen
    accumulation = math.ceil(rows_per_step / rows)
    step = accumulation * seconds(mode, lora_r, rows)
    forward = estimate_seconds(sizes, mode, gpu, lora_r=lora_r, rows=rows, training=False, **average)
    validation = forward / rows * data.validation_rows
    available = hours * 3600
    validations = int(VALIDATION_SHARE * available / validation) - 1 if validation else VALIDATIONS
    validations = min(max(validations, 1), VALIDATIONS)
    for_training = available * (1 - LOADING_SHARE) - (validations + 1) * validation
    steps_in_time = int(for_training / step)
    if steps_in_time < 1:
        needed = (step + 2 * validation) / (1 - LOADING_SHARE) / 3600
        raise PeFoMedError(
            f"{hours:g} hours on {gpu.name} are not enough for one step of {step:.0f} s and two validations of "
            f"{validation:.0f} s; one step needs {needed:.2g} hours, a pass over the data "
            f"{needed + data.rows / (rows * accumulation) * step / 3600:.2g}"
        )
    pass_steps = data.rows / (rows * accumulation)
    max_steps = min(steps_in_time, math.ceil(MAX_PASSES * pass_steps))
    every = max(1, max_steps // validations)
    max_steps -= max_steps % every  # the last step is validated, too
    config = {
        "quantization": mode.quantization,
        "gradient_checkpointing": mode.gradient_checkpointing,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "max_steps": max_steps,
        "warmup_steps": min(100, max_steps // 10),
        "eval_steps": every,
        "save_steps": every,
        "max_length": max_length,
        "pad_to_multiple_of": 64,
        "lora_r": lora_r,
        "lora_alpha": max(1, round(LORA_SCALE * lora_r)),
    }
    memory = estimate_memory(sizes, mode, lora_r=lora_r, rows=rows, **shape)
    return Plan(config, memory, step, validation, steps_in_time, max_steps / pass_steps)


def card_presets(sizes: ModelSizes, data: DataSizes, *, max_length: int = 1024) -> dict[int, Plan]:
    """Return the plans for cards of `CARD_SIZES_GB`, the same as `pefomed plan --gpu 24GB` and so on make."""
    return {gib: make_plan(sizes, find_gpu(f"{gib}GB"), 24, data, max_length=max_length) for gib in CARD_SIZES_GB}


def _what_would_fit(sizes: ModelSizes, gpu: Gpu, shape: Mapping[str, int]) -> str:
    """Return why nothing fits and what would: a card, or shorter rows."""
    smallest, rank = Mode("nf4", True), LORA_RANKS[-1]
    need = sum(estimate_memory(sizes, smallest, lora_r=rank, rows=1, **shape).values())
    one_question = {**shape, "row_tokens": min(shape["row_tokens"], sizes.image_tokens * shape["images_per_row"] + 64)}
    shorter = sum(estimate_memory(sizes, smallest, lora_r=rank, rows=1, **one_question).values())
    cards = [name for name, (gib, _) in CARDS.items() if Gpu(name, gib * GIB, 1).usable >= need]
    total = (need + CUDA_CONTEXT_BYTES) / (1 - FRAGMENTATION_SHARE) / GIB
    advice = [f"a card of {math.ceil(total)} GB or more" + (f" (such as {cards[0]})" if cards else "")]
    if shorter <= gpu.usable:
        advice.append(f"rows of {one_question['row_tokens']} tokens, with --max-questions-per-image 1")
    advice.append("a base with a smaller language model (--base)")
    return (
        f"{gpu.name} is too small: one row in 4 bits with gradient checkpointing and LoRA of rank {rank} needs some "
        f"{total:.1f} GB, found {gpu.memory / GIB:g} GB. What would do: {'; '.join(advice)}"
    )


def explain(plan: Plan, sizes: ModelSizes, gpu: Gpu, hours: float, data: DataSizes) -> str:
    """Return the table of a plan's arithmetic, for a person; all numbers are estimates."""
    config, peak = plan.config, sum(plan.memory.values())
    counted = "counted by the base's tokenizer" if data.measured else "estimated from words"
    lines = [
        f"card                  {gpu.name}: {gpu.memory / GIB:.0f} GB, {gpu.usable / GIB:.1f} usable, "
        f"{gpu.flops / 1e12:.0f} TFLOP/s (datasheet), of which {UTILISATION:.0%} are assumed",
        f"model                 {sizes.frozen / 1e9:.2f} B frozen, {sizes.trained(config['lora_r']):,} trained "
        f"({sizes.trained(config['lora_r']) / (sizes.frozen + sizes.trained(config['lora_r'])):.2%})",
        f"data                  {data.samples:,} samples in {data.rows:,} rows of {data.questions_per_row:.1f} "
        f"questions and {data.tokens:.0f} tokens, {data.longest_tokens} at most ({counted})",
        "memory (GB)",
        *(f"  {size / GIB:8.2f}            {part}" for part, size in plan.memory.items() if size),
        f"  {peak / GIB:8.2f}            in all, of {gpu.usable / GIB:.2f} usable ({peak / gpu.usable:.0%})",
        "time",
        f"  {plan.step_seconds:8.2f} s          a step of {config['gradient_accumulation_steps']} x "
        f"{config['per_device_train_batch_size']} rows, about "
        f"{config['gradient_accumulation_steps'] * config['per_device_train_batch_size'] * data.questions_per_row:.0f}"
        " questions",
        f"  {plan.validation_seconds:8.1f} s          a validation, {config['max_steps'] // config['eval_steps']} of "
        "them and one before training",
        f"  {config['max_steps']:8d}            steps, {plan.passes:.1f} passes over the data"
        + (f" (the {hours:g} hours allow {plan.steps_in_time})" if plan.steps_in_time > config["max_steps"] else ""),
        f"  {total_hours(plan):8.2f} h          in all, of {hours:g}",
        CHECKPOINTING_RULE,
        "All of this is estimated, nothing of it measured.",
    ]
    if plan.passes < 1:
        lines.append("The hours are not enough for one pass over the data.")
    return "\n".join(lines)


def total_hours(plan: Plan) -> float:
    """Return the estimated hours of the whole run, loading included."""
    config = plan.config
    validations = config["max_steps"] // config["eval_steps"] + 1
    busy = config["max_steps"] * plan.step_seconds + validations * plan.validation_seconds
    return busy / (1 - LOADING_SHARE) / 3600

# SPDX-License-Identifier: Apache-2.0
"""One training run, from settings to a saved adapter: the same for stage 1 (captions) and stage 2 (answers)."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoProcessor,
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor

from ..data.augmentation import augment
from ..data.images import load_image
from ..devices import default_dtype
from ..errors import ConfigError, PeFoMedError
from ..models.adapter_folders import load_adapter
from ..models.bases import check_base, load_base_model, quantization_of
from .adapters import add_adapter
from .arguments import RecipeArguments, StageConfig, parse_arguments, resolved
from .callbacks import (
    AdaLoraCallback,
    CompleteCheckpointCallback,
    FrozenWeightsCallback,
    LossCurveCallback,
    first_validation_loss,
)
from .collator import PackedRowCollator
from .embedded import quickstart_base, quickstart_phantoms
from .packing import PackedRows
from .provenance import code_commit, data_fingerprint, environment, utc_now, write_json
from .run_data import (
    check_images,
    mixture_counts,
    open_features,
    pack_sets,
    read_split,
    refuse_what_the_model_cannot_read,
)
from .run_folder import (
    RUN_RECORD,
    SETTINGS,
    find_checkpoint,
    finished_record,
    prepare_folder,
    read_json,
    refuse_other_settings,
    remove_checkpoints,
)
from .trainer import SEEN, PackedSFTTrainer

logger = logging.getLogger(__name__)

# Without --config, a stage is the quickstart's.
STAGE1_DEFAULTS: dict[str, Any] = {"task": "caption", "output_dir": "runs/stage1", "config": "stage1/phantoms"}
STAGE2_DEFAULTS: dict[str, Any] = {"task": "vqa", "output_dir": "runs/stage2", "config": "stage2/phantoms_vqa"}


def main(arguments: Sequence[str], defaults: dict[str, Any], description: str) -> dict[str, Any]:
    """Parse the settings of one stage, fill in the quickstart's base and data where none are given, and train.

    Returns the run's record; an empty one for a dry run, which is described on stderr.

    Raises:
        PeFoMedError, ConfigError: with one sentence that says what to do.
    """
    if not any(word == "--config" or word.startswith("--config=") for word in arguments):
        arguments = [f"--config={defaults['config']}", *arguments]
    recipe, config = parse_arguments(arguments, defaults, description)
    if recipe.dry_run:
        from .dry_run import dry_run  # which needs what stands here

        print(dry_run(recipe, config), file=sys.stderr)
        return {}
    if recipe.base is None:
        recipe.base = str(quickstart_base())
    if recipe.data_root is None:
        if recipe.dataset != "phantoms":
            raise ConfigError(f"dataset {recipe.dataset} needs --data_root, the folder of your data")
        recipe.data_root = str(quickstart_phantoms())
    return run_stage(recipe, config)


def load_base(
    base: str, quantization: str = "none", *, without_tower: bool = False
) -> tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]:
    """Return a base model in the device's best dtype and its processor.

    Args:
        quantization: `nf4` puts the language model's linear layers into 4 bits; the tower, the projector and the head
            keep the dtype.
        without_tower: for a run that finds all images in a feature cache.

    Raises:
        PeFoMedError: there is no PeFoMed model at that place, or bitsandbytes is not installed.
    """
    gc.collect()  # models and trainers refer to themselves: earlier ones would stay in memory beside this one
    if Path(base).is_dir():
        base = str(Path(base).resolve())  # the adapter names its base, and is to load from any working directory
    try:
        model = load_base_model(base, default_dtype(), quantization, without_tower=without_tower)
        processor = AutoProcessor.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise PeFoMedError(f"{base}: cannot load a PeFoMed base model ({str(error).splitlines()[0]})") from None
    if not isinstance(model, PeFoMedForConditionalGeneration):
        raise PeFoMedError(f"{base}: found a {type(model).__name__}, expected a PeFoMed base model")
    return model, processor


def choose_template(processor: PeFoMedProcessor, recipe: RecipeArguments) -> None:
    """Give the processor the prompt's form of the run: the one asked for, else the continued adapter's, else its own.

    Raises:
        ConfigError: the language model has no such form.
    """
    template = recipe.template
    if template is None and recipe.adapter is not None:
        beside = Path(recipe.adapter) / "processor_config.json"
        template = read_json(beside).get("template") if beside.is_file() else None
    try:
        processor.set_template(template or processor.template)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def run_stage(recipe: RecipeArguments, config: StageConfig) -> dict[str, Any]:
    """Train one adapter and return its run record, which is also written to `output_dir/run.json`, last.

    The folder then holds the adapter (LoRA + projector), the processor, `loss.jsonl`, `loss.png` and the record.

    Raises:
        PeFoMedError: the data, the base or the adapter cannot be used; nothing is written before they are checked.
    """
    started, clock = utc_now(), time.monotonic()
    if recipe.base is None or recipe.data_root is None:
        raise ConfigError("a run needs a base model and a data folder: --base and --data_root")
    output = Path(config.output_dir)
    finished = finished_record(output, resolved(recipe, config))
    if finished is not None:
        logger.warning("%s is complete and is reused", output)
        if config.process_index == 0:
            remove_checkpoints(output)
        return finished
    train_sets, validation_sets = read_split(recipe, "train"), read_split(recipe, "validation")
    train_samples, validation_samples = ([*chain(*sets.values())] for sets in (train_sets, validation_sets))
    model, processor = load_base(recipe.base, recipe.quantization, without_tower=recipe.feature_cache is not None)
    choose_template(processor, recipe)
    train_rows = pack_sets(train_sets, processor, recipe, config, training=True)
    validation_rows = pack_sets(validation_sets, processor, recipe, config, training=False)
    set_seed(config.seed)  # LoRA's start
    peft_model = adapted(model, recipe)
    refuse_combinations(peft_model, recipe, config)
    for rows in (train_rows, validation_rows):
        refuse_what_the_model_cannot_read(rows, peft_model)
    checkpoint = find_checkpoint(recipe.resume, output)
    if checkpoint is not None:
        check_base(checkpoint, peft_model.base_fingerprint, recipe.base)
    if checkpoint is not None and (output / SETTINGS).is_file():
        refuse_other_settings(output, read_json(output / SETTINGS), resolved(recipe, config))
    samples = [*train_samples, *validation_samples]
    features = open_features(recipe, model, processor, (path for sample in samples for path in sample.image_paths))
    if features is None:
        check_images(samples)

    output.mkdir(parents=True, exist_ok=True)
    if checkpoint is not None:
        logger.info("continuing from %s", checkpoint)
    if config.process_index == 0:  # one process writes, or they would take each other's files away
        prepare_folder(output, checkpoint, resolved(recipe, config))
    callbacks: list[TrainerCallback] = [FrozenWeightsCallback(), CompleteCheckpointCallback(), LossCurveCallback()]
    if peft_model.peft_type == "ADALORA":
        callbacks.append(AdaLoraCallback())
    if recipe.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer = PackedSFTTrainer(
        model=peft_model,
        args=config,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        processing_class=processor,
        data_collator=PackedRowCollator(
            processor,
            load_image,
            config.pad_to_multiple_of or 1,
            row_tokens=recipe.row_tokens,
            normalize=False,
            features=features,
            augment=partial(augment, keep_places=recipe.task == "refer") if recipe.augmentation == "safe" else None,
        ),
        callbacks=callbacks,
        loss_reduction=recipe.loss_reduction,
    )
    choose_attention(model, recipe)
    if recipe.compile_layers:
        compile_layers(model)
    warn_of_steps_with_one_image(train_rows, config)
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for data
    before = first_validation_loss(output / "loss.jsonl") if checkpoint else None
    if before is None:
        before = trainer.evaluate()["eval_loss"]
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    after = final_validation_loss(trainer, config)
    trainer.save_model()
    record = {
        "started": started,
        "finished": utc_now(),
        "seconds": round(time.monotonic() - clock, 1),
        "steps": trainer.state.global_step,
        "resumed": checkpoint is not None,
        "peft_type": str(peft_model.peft_type.value),
        "quantization": quantization_of(model),
        "trainable_parameters": sum(p.numel() for p in peft_model.parameters() if p.requires_grad),
        "frozen_weights_bit_identical": True,  # FrozenWeightsCallback has raised otherwise
        "train_loss": None if checkpoint else result.training_loss,  # Trainer's is of the continued part only
        "validation_loss_before": before,
        "validation_loss_after": after,
        "settings": resolved(recipe, config),
        "data": {"train": data_fingerprint(train_samples), "validation": data_fingerprint(validation_samples)},
        "rows": {"train": len(train_rows), "validation": len(validation_rows)},
        "seen": dict(zip(SEEN, trainer.seen.counts.tolist(), strict=True)),
        "sets": mixture_counts(train_sets, train_rows) if recipe.mixture else None,
        "template": processor.template,
        "code_commit": code_commit(),
        "environment": environment(),
    }
    if trainer.is_world_process_zero():
        (output / "README.md").unlink(missing_ok=True)  # PEFT's generic card names folders of this machine
        (output / "training_args.bin").unlink(missing_ok=True)  # a pickle; the record has the settings
        write_json(output / RUN_RECORD, record)
        remove_checkpoints(output)  # after the record: a kill in between loses nothing
        (output / SETTINGS).unlink(missing_ok=True)  # the record has them
    return record


def final_validation_loss(trainer: PackedSFTTrainer, config: StageConfig) -> float:
    """Return the validation loss of the adapter that is kept, measured now only where it has not been measured yet."""
    if config.load_best_model_at_end and trainer.state.best_metric is not None:
        return trainer.state.best_metric
    validated = [row for row in trainer.state.log_history if "eval_loss" in row]
    if validated and validated[-1]["step"] == trainer.state.global_step:
        return validated[-1]["eval_loss"]
    return trainer.evaluate()["eval_loss"]


def adapted(model: PeFoMedForConditionalGeneration, recipe: RecipeArguments) -> PeftModel:
    """Return the base with a fresh adapter, or with the one that `recipe.adapter` names, ready for training."""
    if recipe.adapter is not None:
        return load_adapter(model, Path(recipe.adapter), trainable=True)
    return add_adapter(
        model,
        r=recipe.lora_r,
        alpha=recipe.lora_alpha,
        dropout=recipe.lora_dropout,
        method=recipe.peft_method,
        target_modules=[name.strip() for name in recipe.target_modules.split(",")],
        virtual_tokens=recipe.virtual_tokens,
    )


def refuse_combinations(model: PeftModel, recipe: RecipeArguments, config: StageConfig) -> None:
    """Refuse settings that an adapter's method, which may come from `recipe.adapter`, cannot train with.

    Raises:
        ConfigError: such a setting; it is named.
    """
    if model.peft_type == "PREFIX_TUNING" and config.gradient_checkpointing:
        raise ConfigError("prefix_tuning keeps its tokens in the cache: set gradient_checkpointing to false")
    if model.peft_type == "ADALORA" and recipe.loss_reduction == "example":
        raise ConfigError("adalora adds a penalty of its own to the token mean: set loss_reduction to token")
    if model.active_peft_config.is_prompt_learning and recipe.row_tokens is not None:
        raise ConfigError(f"{recipe.peft_method} puts its tokens before a row: leave row_tokens out")
    if config.train_sampling_strategy not in ("random", "group_by_length"):
        raise ConfigError(
            f"train_sampling_strategy is {config.train_sampling_strategy}; expected random or group_by_length"
        )


def compile_layers(model: PeFoMedForConditionalGeneration, backend: str = "inductor") -> None:
    """Compile the layers of the language model in place: they are alike, so that one compilation serves for all."""
    for layer in model.model.language_model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(backend=backend)


def choose_attention(model: PeFoMedForConditionalGeneration, recipe: RecipeArguments) -> None:
    """Use flex attention in the language model for rows of several images on a GPU: it skips what the mask hides.
    On a CPU it has no gradients."""
    if recipe.row_tokens is not None and torch.cuda.is_available():
        model.set_attn_implementation({"text_config": "flex_attention"})


def warn_of_steps_with_one_image(rows: PackedRows, config: StageConfig) -> None:
    """Say so where every step trains on the questions of a single image."""
    size = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    if size == 1 and len(set(rows.images.tolist())) > 1:
        logger.warning(
            "each step trains on one image with all its questions; raise per_device_train_batch_size or "
            "gradient_accumulation_steps for steps that mix images"
        )

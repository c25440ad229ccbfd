# SPDX-License-Identifier: Apache-2.0
"""One training run, from settings to a saved adapter: the same for stage 1 (captions) and stage 2 (answers)."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from tqdm import tqdm
from transformers import (
    AutoProcessor,
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from modeling_pefomed.processing_pefomed import clean_as_released

from ..data.datasets_index import load_samples
from ..data.images import load_image
from ..data.instructions import render_instruction
from ..data.mixture import load_mixture, mix_rows
from ..devices import default_dtype
from ..errors import ConfigError, PeFoMedError
from ..models.adapter_folders import load_adapter
from ..models.bases import check_base, load_base_model, quantization_of
from ..records import Sample
from .adapters import add_adapter
from .arguments import RecipeArguments, StageConfig, parse_arguments, resolved
from .callbacks import (
    AdaLoraCallback,
    CompleteCheckpointCallback,
    FrozenWeightsCallback,
    LossCurveCallback,
    first_validation_loss,
    is_complete,
    keep_curve_until,
    last_complete_checkpoint,
)
from .collator import PackedRowCollator, pack_samples
from .embedded import quickstart_base, quickstart_phantoms
from .provenance import code_commit, data_fingerprint, environment, utc_now, write_json
from .trainer import PackedSFTTrainer

logger = logging.getLogger(__name__)

RUN_RECORD, SETTINGS = "run.json", "settings.json"
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


def load_base(base: str, quantization: str = "none") -> tuple[PeFoMedForConditionalGeneration, PeFoMedProcessor]:
    """Return a base model in the device's best dtype and its processor.

    Args:
        quantization: `nf4` puts the language model's linear layers into 4 bits; the tower, the projector and the head
            keep the dtype.

    Raises:
        PeFoMedError: there is no PeFoMed model at that place, or bitsandbytes is not installed.
    """
    gc.collect()  # models and trainers refer to themselves: earlier ones would stay in memory beside this one
    if Path(base).is_dir():
        base = str(Path(base).resolve())  # the adapter names its base, and is to load from any working directory
    try:
        model = load_base_model(base, default_dtype(), quantization)
        processor = AutoProcessor.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise PeFoMedError(f"{base}: cannot load a PeFoMed base model ({str(error).splitlines()[0]})") from None
    if not isinstance(model, PeFoMedForConditionalGeneration):
        raise PeFoMedError(f"{base}: found a {type(model).__name__}, expected a PeFoMed base model")
    return model, processor


def pack_split(
    samples: list[Sample], processor: PeFoMedProcessor, recipe: RecipeArguments, config: StageConfig, *, training: bool
) -> Dataset:
    """Return the packed rows of one split, with the instructions of training or of validation."""
    instruction = partial(
        render_instruction,
        training=training,
        instruction=recipe.instruction if training else recipe.test_instruction,
        seed=config.seed,
        released=processor.template == "released",
    )
    if training and recipe.text == "blip50":
        samples = [replace(sample, answers=[clean_as_released(sample.answers[0])]) for sample in samples]
    return pack_samples(
        samples,
        processor,
        instruction,
        max_length=config.max_length or 10**9,
        max_questions_per_image=recipe.max_questions_per_image,
        seed=config.seed,
        training=training,
    )


def read_split(recipe: RecipeArguments, split: str) -> dict[str, list[Sample]]:
    """Return the samples of one split by the name of their data set, which without a mixture is ""."""
    if recipe.data_root is None:
        raise ConfigError("a run needs a data folder: --data_root")
    reading: Any = {"language": recipe.language, "on_missing": recipe.on_missing}
    if isinstance(recipe.mixture, dict):
        limit = recipe.max_train_samples
        return load_mixture(recipe.mixture, recipe.dataset, recipe.data_root, split, recipe.task, limit, **reading)
    samples = load_samples(recipe.dataset, recipe.data_root, split, recipe.task, **reading)
    return {"": samples[: recipe.max_train_samples]}


def pack_sets(
    sets: dict[str, list[Sample]],
    processor: PeFoMedProcessor,
    recipe: RecipeArguments,
    config: StageConfig,
    *,
    training: bool,
) -> Dataset:
    """Return the packed rows of one split of all data sets, mixed by their weights in training."""
    rows = {name: pack_split(samples, processor, recipe, config, training=training) for name, samples in sets.items()}
    if isinstance(recipe.mixture, dict):
        return mix_rows(rows, recipe.mixture, training=training, seed=config.seed)
    return rows[""]


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
        remove_checkpoints(output)
        return finished
    train_sets, validation_sets = read_split(recipe, "train"), read_split(recipe, "validation")
    train_samples, validation_samples = ([*chain(*sets.values())] for sets in (train_sets, validation_sets))
    model, processor = load_base(recipe.base, recipe.quantization)
    choose_template(processor, recipe)
    train_rows = pack_sets(train_sets, processor, recipe, config, training=True)
    validation_rows = pack_sets(validation_sets, processor, recipe, config, training=False)
    set_seed(config.seed)  # LoRA's start
    peft_model = adapted(model, recipe)
    refuse_combinations(peft_model, recipe, config)
    checkpoint = find_checkpoint(recipe.resume, output)
    if checkpoint is not None:
        check_base(checkpoint, peft_model.base_fingerprint, recipe.base)
    if checkpoint is not None and (output / SETTINGS).is_file():
        refuse_other_settings(output, read_json(output / SETTINGS), resolved(recipe, config))
    check_images([*train_samples, *validation_samples])

    output.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        (output / "loss.jsonl").unlink(missing_ok=True)
        remove_checkpoints(output)  # of another run, never to be continued from
        write_json(output / SETTINGS, resolved(recipe, config))
    else:
        logger.info("continuing from %s", checkpoint)
        keep_curve_until(output / "loss.jsonl", int(checkpoint.name.rpartition("-")[2]))
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
        data_collator=PackedRowCollator(processor, load_image, config.pad_to_multiple_of or 1),
        callbacks=callbacks,
        loss_reduction=recipe.loss_reduction,
    )
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
        "sets": {name: len(samples) for name, samples in train_sets.items()} if recipe.mixture else None,
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


def remove_checkpoints(output: Path) -> None:
    """Remove the Trainer's checkpoints from a run's folder."""
    for folder in output.glob("checkpoint-*"):
        shutil.rmtree(folder)


def finished_record(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of a finished run of the same settings in this folder, or `None` when there is no run.

    Raises:
        ConfigError: the folder holds a finished run of other settings; the differences are named.
    """
    if not (output / RUN_RECORD).is_file():
        return None
    record = read_json(output / RUN_RECORD)
    refuse_other_settings(output, record["settings"], settings)
    return record


def refuse_other_settings(output: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Compare the settings of the run in a folder with those asked for.

    Raises:
        ConfigError: they differ in more than how the run is shown or resumed; the differences are named.
    """
    wanted = json.loads(json.dumps(settings, default=str))
    differences = [
        f"{key} {found.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted(set(wanted) | set(found))
        if wanted.get(key) != found.get(key) and key not in ("resume", "logging_dir", "disable_tqdm", "dry_run")
    ]
    if differences:
        raise ConfigError(
            f"{output} holds a run of other settings: {'; '.join(differences)}. "
            "Name another --output_dir or delete the folder."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


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


def check_images(samples: list[Sample]) -> None:
    """Open every image once, so that a broken one is named before hours of training and not after.

    Raises:
        PeFoMedError: images that cannot be opened; the first ones are named, one a line.
    """
    paths = sorted({path for sample in samples for path in sample.image_paths})

    def problem(path: str) -> str:
        try:
            load_image(path)
        except PeFoMedError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        checked = pool.map(problem, paths)
        bar = tqdm(checked, total=len(paths), desc="images checked", disable=not sys.stderr.isatty())
        problems = [found for found in bar if found]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise PeFoMedError(f"{len(problems)} of {len(paths)} images cannot be used: {'; '.join(problems[:5])}{more}")


def find_checkpoint(resume: str, output: Path) -> Path | None:
    """Return the checkpoint to continue from: `auto` the newest complete one, `never` none, else the one named.

    Raises:
        PeFoMedError: the named checkpoint is not there or not complete.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return last_complete_checkpoint(output)
    named = Path(resume)
    if not is_complete(named):
        raise PeFoMedError(f"{named}: no complete checkpoint there; use --resume auto to find the newest complete one")
    return named

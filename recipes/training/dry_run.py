# SPDX-License-Identifier: Apache-2.0
"""What a run would do, found out by the run's own parts as far as data and base are given; nothing is written."""

from __future__ import annotations

import math

from .arguments import RecipeArguments, StageConfig
from .run_data import pack_sets, read_split, refuse_what_the_model_cannot_read
from .schedule import rates
from .stages import adapted, choose_template, load_base, refuse_combinations


def dry_run(recipe: RecipeArguments, config: StageConfig) -> str:
    """Return some lines that say what would run: samples, rows, steps, trained parameters and learning rates.

    Raises:
        PeFoMedError: what is given cannot be used, with the same sentence as when it is trained.
    """
    lines = [f"dry run of {recipe.task} on {recipe.dataset} into {config.output_dir}: nothing is trained or written"]
    sets = {}
    if recipe.data_root is None:
        lines.append("data: no folder is given; name it with --data_root")
    else:
        sets = {split: read_split(recipe, split) for split in ("train", "validation")}
        for split, named in sets.items():
            total = sum(map(len, named.values()))
            parts = [f"{name} {len(samples):,}" for name, samples in named.items() if name]
            lines.append(f"{split}: {total:,} samples{' (' + ', '.join(parts) + ')' if parts else ''}")
    train_rows = 0
    if recipe.base is None:
        lines.append("rows and trained parameters: no base model is given; name it with --base")
    else:
        model, processor = load_base(recipe.base, recipe.quantization)
        choose_template(processor, recipe)
        packed = {
            split: pack_sets(named, processor, recipe, config, training=split == "train")
            for split, named in sets.items()
        }
        for split, rows in packed.items():
            train_rows = len(rows) if split == "train" else train_rows
            lines.append(f"{split}: {len(rows):,} rows, template {processor.template}")
        peft_model = adapted(model, recipe)
        refuse_combinations(peft_model, recipe, config)
        for rows in packed.values():
            refuse_what_the_model_cannot_read(rows, peft_model)
        trained = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
        lines.append(f"trained parameters: {trained:,}")
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    steps = config.max_steps if config.max_steps > 0 else math.ceil(train_rows / batch * config.num_train_epochs)
    if steps == 0:
        lines.append("steps and learning rates: without max_steps, they need data and a base")
    else:
        found = rates(config, steps)
        lines.append(f"steps: {steps:,}, each of {batch:,} rows on every process")
        lines.append(f"learning rate: {found[0]:.3g} at first, {max(found):.3g} at most, {found[-1]:.3g} at last")
    return "\n".join(lines)

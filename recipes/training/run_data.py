# SPDX-License-Identifier: Apache-2.0
"""The data of a run: its samples, its packed rows and its images, each checked before anything is trained."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from datasets import Dataset
from peft import PeftModel
from tqdm import tqdm

from modeling_pefomed import PeFoMedProcessor
from modeling_pefomed.processing_pefomed import clean_as_released

from ..data.datasets_index import load_samples
from ..data.images import load_image
from ..data.instructions import render_instruction
from ..data.mixture import load_mixture, mix_rows
from ..errors import ConfigError, PeFoMedError
from ..models.feature_cache import FeatureCache
from ..records import Sample
from .arguments import RecipeArguments, StageConfig
from .packing import PackedRows, pack_samples


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


def pack_split(
    samples: list[Sample], processor: PeFoMedProcessor, recipe: RecipeArguments, config: StageConfig, *, training: bool
) -> PackedRows:
    """Return the packed rows of one split, with the instructions of training or of validation.

    A wording that is drawn is drawn once for each sample, and stays the same in all epochs.
    """
    instruction = partial(
        render_instruction,
        training=training,
        instruction=recipe.instruction if training else recipe.test_instruction,
        seed=config.seed,
        released=processor.template == "released",
    )
    if training and recipe.text == "blip50":
        samples = [replace(sample, answers=[clean_as_released(sample.answers[0])]) for sample in samples]
    rows = pack_samples(
        samples,
        processor,
        instruction,
        max_length=config.max_length or 10**9,
        max_questions_per_image=recipe.max_questions_per_image,
        seed=config.seed,
        training=training,
    )
    return rows if training else rows.longest_first()


def pack_sets(
    sets: dict[str, list[Sample]],
    processor: PeFoMedProcessor,
    recipe: RecipeArguments,
    config: StageConfig,
    *,
    training: bool,
) -> PackedRows:
    """Return the packed rows of one split of all data sets, mixed by their weights in training."""
    rows = pack_split([*chain(*sets.values())], processor, recipe, config, training=training)
    if not training or not isinstance(recipe.mixture, dict):
        return rows
    sources = rows.sources
    numbers = {
        name: Dataset.from_dict({"row": [row for row, source in enumerate(sources) if source == name]})
        for name in sets
    }
    return rows.select(mix_rows(numbers, recipe.mixture, training=True, seed=config.seed)["row"])


def mixture_counts(sets: dict[str, list[Sample]], rows: PackedRows) -> dict[str, dict[str, int]]:
    """Return for each data set of a mixture its samples, and how many rows of it an epoch draws."""
    drawn = Counter(rows.sources)
    return {name: {"samples": len(samples), "rows_an_epoch": drawn[name]} for name, samples in sets.items()}


def refuse_what_the_model_cannot_read(rows: PackedRows, model: PeftModel) -> None:
    """Compare the longest sample with the positions that the language model knows. A packed row may be longer: in it,
    each question's positions start behind the image.

    Raises:
        PeFoMedError: a sample has more tokens than the model has positions.
    """
    limit = getattr(model.get_base_model().config.text_config, "max_position_embeddings", None)
    ahead = getattr(model.active_peft_config, "num_virtual_tokens", None) or 0
    tokens, sample = rows.longest
    if limit is not None and tokens + ahead > limit:
        learnt = f" and {ahead} virtual tokens" if ahead else ""
        raise PeFoMedError(
            f"the longest sample, {sample}, has {tokens} tokens, image tokens included{learnt}; the language model "
            f"reads at most {limit} (max_position_embeddings). Lower max_length to {limit - ahead} to see all that "
            "are too long, and shorten them."
        )


def open_features(recipe: RecipeArguments, model: Any, processor: PeFoMedProcessor, paths: Iterable[str]) -> Any:
    """Return the run's feature cache, or `None` for a run without one.

    Args:
        paths: the images of the run.

    Raises:
        PeFoMedError: there is no such cache, it is of another tower or preprocessing, or it lacks images of the run.
    """
    if recipe.feature_cache is None:
        return None
    cache = FeatureCache.open(recipe.feature_cache, model, processor.image_processor)
    paths = sorted(set(paths))
    missing = cache.missing(paths)
    if missing:
        raise PeFoMedError(
            f"{recipe.feature_cache}: {len(missing)} of the run's {len(paths)} images are not in this feature cache, "
            f"such as {missing[0]}; add them with `pefomed features` and the same --out"
        )
    return cache


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

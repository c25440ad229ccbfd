# SPDX-License-Identifier: Apache-2.0
"""The settings of one training run: ours in [`RecipeArguments`], TRL's and transformers' in [`StageConfig`].

One YAML file is one run; each key is a field of one of the two classes and can be overridden on the command line.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from transformers import HfArgumentParser
from trl import SFTConfig

from ..devices import default_dtype
from ..errors import ConfigError, did_you_mean

# What the released code's schedule takes, see training/schedule.py.
RELEASED_SCHEDULE = {"min_lr", "warmup_start_lr", "steps_per_epoch"}
PeftMethod = Literal[
    "lora",
    "rslora",
    "dora",
    "pissa",
    "olora",
    "adalora",
    "ia3",
    "vera",
    "loha",
    "lokr",
    "oft",
    "llama_adapter",
    "prompt_tuning",
    "prefix_tuning",
    "p_tuning",
]
PUBLISH = "use `pefomed export` and `pefomed publish`"


@dataclass
class RecipeArguments:
    """What is trained on what. The LoRA values are the paper's."""

    task: Literal["caption", "vqa", "report", "refer"] = field(
        default="vqa", metadata={"help": "What the answers are: caption (stage 1), vqa, report or refer (stage 2)."}
    )
    dataset: str = field(
        default="phantoms",
        metadata={
            "help": "phantoms; jsonl, csv or imagefolder for your own data; prepared; a data set of the paper by its "
            "slug, such as vqa_rad; or by_name: each folder of the mixture is the data set of its name."
        },
    )
    language: str | None = field(
        default=None, metadata={"help": "Use the samples in this language only; a must where a data set mixes them."}
    )
    on_missing: Literal["fail", "skip"] = field(
        default="fail", metadata={"help": "When image files are missing: list them and stop, or leave samples out."}
    )
    data_root: str | None = field(
        default=None, metadata={"help": "The dataset's folder (train.jsonl, validation.jsonl, images)."}
    )
    mixture: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Folders in data_root and their sampling weights in training, as {name: weight}."},
    )
    base: str | None = field(
        default=None, metadata={"help": "Base model: folder or Hub id. Without it, the quickstart's base is used."}
    )
    adapter: str | None = field(
        default=None,
        metadata={"help": "Adapter to continue from (stage 2: the one of stage 1). Its method and sizes stand."},
    )
    quantization: Literal["none", "nf4"] = field(
        default="none", metadata={"help": "nf4: the language model in 4 bits (QLoRA); needs the extra quantization."}
    )
    peft_method: PeftMethod = field(
        default="lora", metadata={"help": "How the language model is adapted; the projector is always trained."}
    )
    target_modules: str = field(
        default="q_proj,v_proj",
        metadata={"help": "Linear layers of the language model to adapt, by name, with commas between them."},
    )
    lora_r: int = field(default=64, metadata={"help": "Rank (oft: number of blocks; ia3 and virtual tokens: unused)."})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA scale is alpha / rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on LoRA's input."})
    virtual_tokens: int = field(
        default=20, metadata={"help": "Tokens that llama_adapter, prompt_tuning, prefix_tuning and p_tuning learn."}
    )
    loss_reduction: Literal["token", "example"] = field(
        default="token",
        metadata={
            "help": "token: mean over all answer tokens of a batch; example: mean over its questions of each one's "
            "mean, as the released code with its batch size of 1."
        },
    )
    template: Literal["paper", "released", "chat"] | None = field(
        default=None,
        metadata={
            "help": "The prompt's form: paper, released (as the released code runs) or chat (the language model's "
            "own). By default that of the adapter that is continued, or else of the base, which is the paper's "
            "unless it was built with another."
        },
    )
    instruction: Literal["plain", "short_answer", "mixed"] = field(
        default="mixed", metadata={"help": "VQA instruction in training: the paper draws one of two for each sample."}
    )
    test_instruction: Literal["plain", "short_answer"] = field(
        default="short_answer",
        metadata={"help": "VQA instruction in validation and test; the paper's is the long one."},
    )
    text: Literal["raw", "blip50"] = field(
        default="raw",
        metadata={
            "help": "How training targets are written: raw, or blip50, as the released code: lower case, most "
            "punctuation blanked, 50 words. Validation and references stay raw."
        },
    )
    max_questions_per_image: int = field(
        default=16,
        metadata={
            "help": "Questions packed behind one image in one row; each epoch spreads those of an image anew over its "
            "rows."
        },
    )
    augmentation: Literal["none", "safe"] = field(
        default="none",
        metadata={
            "help": "safe: training images are cut, turned and toned a little; left stays left. Boxes keep their "
            "places: with the task refer, only tones change."
        },
    )
    row_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Put several images of a batch into one row of up to so many tokens, on a GPU with flex "
            "attention. By default each image has a row of its own, on a CPU the faster way."
        },
    )
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Folder that `pefomed features` wrote for the run's images: the vision tower then rests."},
    )
    compile_layers: bool = field(
        default=False,
        metadata={"help": "Compile the language model's layers, one for all of them: for GPUs; not measured yet."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first samples of each split."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many validations without a lower loss."}
    )
    resume: str = field(
        default="auto",
        metadata={"help": "auto: continue from the newest complete checkpoint; never; or a checkpoint."},
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Only say what would run: nothing is trained, nothing written."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.mixture, str):
            try:
                self.mixture = json.loads(self.mixture)
            except ValueError:
                self.mixture = {}
        weights = self.mixture.values() if isinstance(self.mixture, dict) else []
        numbers = [w for w in weights if isinstance(w, int | float) and not isinstance(w, bool) and 0 < w < math.inf]
        if self.mixture is not None and (not numbers or len(numbers) < len(weights)):
            raise ValueError("mixture must name folders and their weights, numbers above 0, as {name: weight, ...}")


@dataclass
class StageConfig(SFTConfig):
    """TRL's settings with this project's defaults; optimisation values are the paper's stage 2 for VQA."""

    output_dir: str = field(default="runs/stage2", metadata={"help": "Where the adapter and the run record go."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Linear warm-up, then cosine."})
    lr_scheduler_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"min_lr": 1e-6},
        metadata={
            "help": "min_lr: lowest learning rate. With warmup_start_lr and steps_per_epoch, the released code's "
            "schedule: see training/schedule.py."
        },
    )
    warmup_steps: float = field(default=100, metadata={"help": "Steps of linear warm-up."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's weight decay."})
    max_length: int | None = field(default=1024, metadata={"help": "Tokens of a row; longer samples are refused."})
    pad_to_multiple_of: int | None = field(default=64, metadata={"help": "Row lengths are rounded up to this."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "group_by_length: each step's rows have like lengths, out of 64 drawn at random; random: rows of "
            "all lengths."
        },
    )
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={
            "help": "Processes that load images beside training; by default up to 4 on a GPU, none on a CPU, whose "
            "cores train."
        },
    )
    bf16: bool | None = field(default=None, metadata={"help": "Mixed precision; by default where the device has it."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory, a third more time."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to validate."})
    save_strategy: str = field(default="steps", metadata={"help": "When to write a checkpoint."})
    eval_steps: float | None = field(default=100, metadata={"help": "Steps between validations."})
    save_steps: float = field(default=100, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept: the best and the newest."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the adapter of the best validation."})
    metric_for_best_model: str | None = field(default="eval_loss", metadata={"help": "What best means."})
    report_to: str = field(default="none", metadata={"help": "Nothing is reported anywhere unless asked for."})

    def __post_init__(self) -> None:
        # Without use_cpu, two processes on a CPU would silently train two separate models.
        self.use_cpu: bool = self.use_cpu or not torch.cuda.is_available()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and default_dtype() == torch.bfloat16
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = 0 if self.use_cpu else min(4, max(1, (os.cpu_count() or 1) // 2))
        self.accelerator_config: Any
        if self.accelerator_config is None and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}  # pinned batches travel while the last one is computed
        self.disable_tqdm: bool | None = self.disable_tqdm or not sys.stderr.isatty()
        # Rows come packed and labelled; TRL must neither prepare nor drop their columns.
        self.remove_unused_columns = False
        self.dataset_kwargs = {"skip_prepare_dataset": True}
        self.ddp_find_unused_parameters = False
        with warnings.catch_warnings():  # TRL still sets gradient_checkpointing, which transformers is renaming
            warnings.simplefilter("ignore", FutureWarning)
            super().__post_init__()


def configs_folder() -> Path:
    """Return the folder of packaged configurations."""
    return Path(str(resources.files(__package__.split(".")[0]))) / "configs"


def find_config(name: str) -> Path:
    """Return the YAML file of a path or a packaged short name such as `stage2/phantoms_vqa`.

    Raises:
        ConfigError: there is no such file; the packaged names are listed.
    """
    for candidate in (Path(name), configs_folder() / f"{name}.yaml", configs_folder() / name):
        if candidate.is_file():
            return candidate
    packaged = sorted(str(p.relative_to(configs_folder()).with_suffix("")) for p in configs_folder().rglob("*.yaml"))
    raise ConfigError(
        f"{name}: no such config file{did_you_mean(name, packaged)}. Packaged ones: {', '.join(packaged)}"
    )


def read_config(path: Path) -> dict[str, Any]:
    """Return the keys and values of one YAML file, after checking every key.

    Raises:
        ConfigError: not a mapping, a key twice, or unknown keys (all are listed, each with the nearest known one).
    """
    try:
        text = path.read_text(encoding="utf-8")
        values, written = yaml.safe_load(text) or {}, yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected `key: value` lines")
    keys = [key.value for key, _ in written.value] if isinstance(written, yaml.MappingNode) else []
    if len(keys) > len(set(keys)):  # YAML would let the last one win
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ConfigError(f"{path}: given more than once: {', '.join(twice)}; leave one line of each")
    known = {f.name for cls in (RecipeArguments, StageConfig) for f in fields(cls) if f.init}
    unknown = [f"{key}{did_you_mean(str(key), known)}" for key in values if key not in known]
    if unknown:
        raise ConfigError(f"{path}: unknown {'key' if len(unknown) == 1 else 'keys'} {', '.join(unknown)}")
    return values


class _Parser(HfArgumentParser):
    """transformers' parser whose mistakes are [`ConfigError`]s."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _as_options(values: dict[str, Any]) -> list[str]:
    """Return a config's values as command-line options, so that both are checked alike; `None` keeps the default."""
    options = []
    for key, value in values.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            options.append(f"--{key}={text}")
    return options


def parse_arguments(
    arguments: Sequence[str], defaults: dict[str, Any], description: str
) -> tuple[RecipeArguments, StageConfig]:
    """Return the settings of one run: `defaults`, overridden by `--config`, overridden by the command line.

    Raises:
        ConfigError: unknown keys or options, values of a wrong type, a missing config file.
    """
    parser = _Parser([RecipeArguments, StageConfig], description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="YAML", help="A run's settings: a file, or a packaged name.")
    first = _Parser([], add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    chosen, rest = first.parse_known_args(list(arguments))
    values = {key: value for key, value in defaults.items() if key != "config"}
    if chosen.config:
        values |= read_config(find_config(chosen.config))
    try:
        parsed = parser.parse_args_into_dataclasses([*_as_options(values), *rest], return_remaining_strings=True)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    recipe, config, unknown = parsed[0], parsed[1], parsed[-1]
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        named = [word + did_you_mean(word.split("=")[0], known) for word in unknown if word.startswith("-")] or unknown
        raise ConfigError(f"unknown {'option' if len(named) == 1 else 'options'} {', '.join(named)}")
    if config.load_best_model_at_end and config.save_steps != config.eval_steps:
        raise ConfigError(
            f"save_steps is {config.save_steps:g} and eval_steps {config.eval_steps:g}: to keep the best adapter, "
            "each validated one must be saved. Make them equal, or set load_best_model_at_end to false"
        )
    schedule = config.lr_scheduler_kwargs or {}
    if "warmup_start_lr" in schedule and set(schedule) != RELEASED_SCHEDULE:
        raise ConfigError(
            f"lr_scheduler_kwargs has {', '.join(schedule)}; with warmup_start_lr, it must have exactly "
            f"{', '.join(sorted(RELEASED_SCHEDULE))}"
        )
    if recipe.augmentation != "none" and recipe.feature_cache is not None:
        raise ConfigError(
            "augmentation changes images, and a feature cache holds unchanged ones: leave one of them out"
        )
    if recipe.early_stopping_patience is not None and str(config.eval_strategy) in ("no", "IntervalStrategy.NO"):
        raise ConfigError("early_stopping_patience needs validation during training: set eval_strategy to steps")
    if config.push_to_hub:
        raise ConfigError(f"push_to_hub uploads a pickle and another card; leave it out, then {PUBLISH}")
    return recipe, config


def resolved(recipe: RecipeArguments, config: StageConfig) -> dict[str, Any]:
    """Return every setting of a run that is not at transformers' own default, for its record."""
    stock = {f.name: f.default for f in fields(SFTConfig)}
    changed = {key: value for key, value in config.to_dict().items() if key not in stock or stock[key] != value}
    return {**asdict(recipe), **changed}

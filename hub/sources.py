# SPDX-License-Identifier: Apache-2.0
"""Where what is to be published comes from: its folder, its base, the runs that trained it, the base's parts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import metadata_load
from peft import PeftConfig
from transformers import AutoConfig, TrainingArguments
from transformers.utils import cached_file

from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.models.adapter_folders import adapter_folder
from pefomed_recipes.models.adapter_models import WEIGHTS, own_class
from pefomed_recipes.training.composing import COMPOSE_RECORD

from .manifest import Part, Run, list_files, run_of

ADAPTER_CONFIG, RUN_RECORD, CARD = "adapter_config.json", "run.json", "README.md"


@dataclass
class Source:
    """What is exported: an adapter's folder with the base that it names, or a base model's own folder."""

    folder: Path
    base: str
    adapter: str | None = None  # SHA-256 of the weights


def check_hub_id(option: str, value: str) -> None:
    """Check that a Hub id has the form `user/name`.

    Raises:
        ConfigError: it has not.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value, re.ASCII):
        raise ConfigError(f"{option}: found {value!r}, expected a Hub id such as user/name")


def find_source(source: str | Path, kind: str) -> Source:
    """Return where the source lies and which base it has.

    Raises:
        PeFoMedError: nothing loadable is there, or a base where an adapter is expected, or the other way round, or an
            adapter of a method that only this package can load.
    """
    try:
        folder = adapter_folder(source)
    except OSError as error:
        raise PeFoMedError(
            f"{source}: cannot find an adapter or a base model ({str(error).splitlines()[0]})"
        ) from None
    if kind == "base":
        if folder is not None or not Path(source).is_dir():
            raise PeFoMedError(f"{source}: found {'an adapter' if folder else 'no folder'}, expected a base's folder")
        return Source(Path(source), str(source))
    if folder is None:
        raise PeFoMedError(f"{source}: no adapter there ({ADAPTER_CONFIG} is missing); for a base, say --kind base")
    try:
        config = PeftConfig.from_pretrained(folder)
        weights = list_files(folder)[WEIGHTS]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise PeFoMedError(f"{folder}: no whole adapter there ({error}); train or fetch it again") from None
    if own_class(config) is not None:
        raise PeFoMedError(
            f"{folder}: adapters of the method {config.peft_type.value.lower()} load only with this package; publish "
            "one that adapts layers, such as lora"
        )
    return Source(folder, config.base_model_name_or_path or "", weights.sha256)


def hub_id_of_base(named: str, base_id: str | None) -> str:
    """Return the Hub id under which others find an adapter's base.

    Raises:
        ConfigError: the adapter names a folder, and no id is given; or it names another id.
    """
    is_folder = Path(named).is_absolute() or Path(named).is_dir()
    if base_id is None and is_folder:
        raise ConfigError(
            "this adapter's base is a folder of this machine; say where others find it: --base-id user/base (publish "
            "it first, with --kind base)"
        )
    if base_id is not None and not is_folder and base_id != named:
        raise ConfigError(f"--base-id: found {base_id!r}, but the adapter was trained on {named!r}; leave it out")
    if base_id is None:
        check_hub_id("base_model_name_or_path", named)
    return base_id or named


def training_history(folder: Path) -> tuple[list[Run], bool]:
    """Return the runs that led to an adapter, the first one first, and whether an earlier one's record is missing."""
    runs: list[Run] = []
    seen: set[Path] = set()
    current: Path | None = folder
    while current is not None and current.resolve() not in seen:
        seen.add(current.resolve())
        stored = json.loads((current / RUN_RECORD).read_bytes()) if (current / RUN_RECORD).is_file() else None
        if stored is None:
            return runs[::-1], True
        runs.append(run_of(current.name, stored, TrainingArguments.seed))
        before = stored["settings"].get("adapter")
        places = [Path(before), current.parent / Path(before).name] if before else []
        current = next((place for place in places if place.is_dir()), places[0] if places else None)
    return runs[::-1], False


def base_parts(base: str) -> list[Part]:
    """Return the pretrained models in a base, with the licences that their cards name."""
    record, card = (_file_of(base, name) for name in (COMPOSE_RECORD, CARD))
    if record is not None:
        stored = json.loads(record.read_text(encoding="utf-8"))
        roles = {"vision_tower": "vision tower", "language_model": "language model"}
        return [Part(title, stored[role]["id"], stored[role]["licence"]) for role, title in roles.items()]
    if card is not None:
        name = Path(base).name if Path(base).is_dir() else base
        return [Part("base model", name, str((metadata_load(card) or {}).get("license") or "not stated"))]
    config = AutoConfig.from_pretrained(base)
    sizes = {"vision tower": config.vision_config, "language model": config.text_config}
    return [
        Part(role, f"{one.model_type} of width {one.hidden_size}, origin not recorded", "not stated")
        for role, one in sizes.items()
    ]


def _file_of(base: str, name: str) -> Path | None:
    if Path(base).is_dir():
        return path if (path := Path(base) / name).is_file() else None
    flags = ("missing_entries", "gated_repo", "connection_errors")
    found = cached_file(base, name, **{f"_raise_exceptions_for_{flag}": False for flag in flags})
    return None if found is None else Path(found)

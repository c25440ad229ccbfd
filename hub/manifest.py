# SPDX-License-Identifier: Apache-2.0
"""`pefomed_manifest.json`: what a published folder holds, what it was made of, and how it was checked.

It lists the SHA-256 of every other file of the folder. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.evaluation.page.typed import from_stored

MANIFEST = "pefomed_manifest.json"
SCHEMA = "pefomed-manifest/1"
KINDS = ("adapter", "merged", "base")
# Of a run's settings, what makes its result; the rest names folders or concerns the machine.
SETTINGS = (
    *("task", "dataset", "language", "peft_method", "target_modules", "lora_r", "lora_alpha", "lora_dropout"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_steps", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "loss_reduction", "max_length", "row_tokens"),
    *("max_questions_per_image", "max_train_samples", "instruction", "test_instruction", "bf16", "seed", "data_seed"),
)


@dataclass
class FileEntry:
    """A file's size and the SHA-256 of its bytes."""

    bytes: int
    sha256: str


@dataclass
class Part:
    """A pretrained model that went into the base, and the licence that its own card names."""

    role: str
    id: str
    licence: str


@dataclass
class Base:
    """The base model under an adapter, or in a merged model.

    `revision` is the commit on the Hub, null where none was given. `fingerprint` identifies its weights, part by part,
    as `base_fingerprint.json` does.
    """

    id: str
    revision: str | None
    fingerprint: dict[str, str]
    parts: list[Part] = field(default_factory=list)


@dataclass
class Run:
    """One training run, as its `run.json` says, without any path. `data` is by split; `seconds` are of wall time."""

    name: str
    seconds: float
    steps: int
    trainable_parameters: int
    seed: int
    template: str
    settings: dict[str, Any]
    data: dict[str, dict[str, Any]]
    peft_type: str
    quantization: str
    validation_loss_before: float | None
    validation_loss_after: float | None
    environment: dict[str, Any]
    finished: str
    code_commit: str | None


@dataclass
class Check:
    """How the folder was loaded in a process without this package, and its logits compared with the original's.

    `largest_difference` and `rounding_difference` are shares of the largest logit. The first is between the folder and
    what it should be, and at most `tolerance`; the second between the folder and the adapter as it was trained, before
    its numbers were rounded to `dtype` or to the base's format, 0 where they were not.
    """

    prompts: int
    largest_difference: float
    tolerance: float
    rounding_difference: float


@dataclass
class Manifest:
    """What `pefomed_manifest.json` holds.

    Args:
        repo: the Hub id that the folder is meant for; the card's examples name it.
        kind: `adapter` (LoRA and projector), `merged` (a whole model with an adapter in it) or `base`.
        dtype: of the weights that `kind` is about: the adapter's, else the frozen weights'.
        adapter: SHA-256 of the adapter's weights as they were trained and evaluated; null for a base.
        credentialed: whether the data forbid that anything made of them is published; null where a run does not say.
        parts: of what a base was composed; of an adapter's base, `base.parts` says it.
        runs: the training, in the order in which it went on; the last run made the adapter.
        seconds: of all runs together, wall time.
        incomplete_history: whether the first of `runs` continued an adapter whose record was not there.
        files: every other file of the folder, by its path there.
    """

    repo: str
    kind: str
    base: Base | None
    dtype: str
    template: str
    licence: str
    credentialed: bool | None
    runs: list[Run]
    seconds: float
    incomplete_history: bool
    code_commit: str | None
    packages: dict[str, str]
    adapter: str | None = None
    peft_type: str | None = None
    check: Check | None = None
    parts: list[Part] = field(default_factory=list)
    files: dict[str, FileEntry] = field(default_factory=dict)
    schema: str = SCHEMA


def list_files(folder: str | os.PathLike[str]) -> dict[str, FileEntry]:
    """Return every file of a folder but the manifest, by its path there, in the order of the paths."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): _entry(path) for path in files}


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write `pefomed_manifest.json`."""
    stored = {"schema": manifest.schema} | asdict(manifest)  # the schema first, for readers
    text = json.dumps(stored, indent=2, ensure_ascii=False, allow_nan=False)
    (Path(folder) / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        PeFoMedError: there is none, or it is malformed or of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        found = stored.get("schema") if isinstance(stored, dict) else None
        if found != SCHEMA:
            raise PeFoMedError(f"{path}: schema {found!r}, expected {SCHEMA!r}; export it with this version")
        return from_stored(Manifest, stored)
    except FileNotFoundError:
        raise PeFoMedError(f"{folder}: no {MANIFEST} there; make such a folder with pefomed export") from None
    except ValueError as error:
        raise PeFoMedError(f"{path}: {error}; export it again") from None


def changed_files(folder: str | os.PathLike[str], manifest: Manifest) -> dict[str, str]:
    """Return what differs between a folder and its manifest: the path, and `missing`, `changed` or `not listed`."""
    found = list_files(folder)
    problems = {name: "missing" for name in manifest.files if name not in found}
    problems |= {name: "changed" for name, entry in manifest.files.items() if found.get(name, entry) != entry}
    return problems | {name: "not listed" for name in found if name not in manifest.files}


def run_of(name: str, stored: Mapping[str, Any], default_seed: int) -> Run:
    """Return what a `run.json` says.

    Args:
        default_seed: what the trainer uses where the settings name no seed.

    Raises:
        PeFoMedError: it is no record of a run.
    """
    try:
        settings = stored["settings"]
        return Run(
            name=name,
            seconds=stored["seconds"],
            steps=stored["steps"],
            trainable_parameters=stored["trainable_parameters"],
            seed=settings.get("seed", default_seed),
            template=stored.get("template") or "paper",
            settings={key: settings[key] for key in SETTINGS if _is_plain(settings.get(key))},
            data=dict(stored["data"]),
            peft_type=stored.get("peft_type") or "LORA",
            quantization=stored.get("quantization") or "none",
            validation_loss_before=stored.get("validation_loss_before"),
            validation_loss_after=stored.get("validation_loss_after"),
            environment=stored["environment"],
            finished=stored["finished"],
            code_commit=stored.get("code_commit"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise PeFoMedError(
            f"{name}/run.json: no record of a finished run ({error}); train the adapter again"
        ) from None


def is_credentialed(runs: list[Run]) -> bool | None:
    """Return whether any data of the runs is credentialed; null where a record does not say and none is."""
    said = [data.get("credentialed") for run in runs for data in run.data.values()]
    return True if True in said else None if None in said or not said else False


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)

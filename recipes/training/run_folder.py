# SPDX-License-Identifier: Apache-2.0
"""A run's folder: whether it holds a finished run, one to be continued, or one of other settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PeFoMedError
from .callbacks import is_complete, keep_curve_until, last_complete_checkpoint
from .provenance import write_json

RUN_RECORD, SETTINGS = "run.json", "settings.json"
# What changes neither rows nor weights: how a run is shown, continued and fed.
FREE_SETTINGS = ("resume", "logging_dir", "disable_tqdm", "dry_run", "dataloader_num_workers", "feature_cache")


def remove_checkpoints(output: Path) -> None:
    """Remove the Trainer's checkpoints from a run's folder."""
    for folder in output.glob("checkpoint-*"):
        shutil.rmtree(folder)


def prepare_folder(output: Path, checkpoint: Path | None, settings: dict[str, Any]) -> None:
    """Make a run's folder ready for a run from the start, or for one that goes on from a checkpoint."""
    if checkpoint is not None:
        keep_curve_until(output / "loss.jsonl", int(checkpoint.name.rpartition("-")[2]))
        return
    (output / "loss.jsonl").unlink(missing_ok=True)
    remove_checkpoints(output)  # of another run, never to be continued from
    write_json(output / SETTINGS, settings)


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
        ConfigError: they differ in more than `FREE_SETTINGS`; the differences are named.
    """
    wanted = json.loads(json.dumps(settings, default=str))
    differences = [
        f"{key} {found.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted(set(wanted) | set(found))
        if wanted.get(key) != found.get(key) and key not in FREE_SETTINGS
    ]
    if differences:
        raise ConfigError(
            f"{output} holds a run of other settings: {'; '.join(differences)}. "
            "Name another --output_dir or delete the folder."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


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

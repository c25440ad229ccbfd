# SPDX-License-Identifier: Apache-2.0
"""Checks a published model: its files against its manifest, its base, and that each tensor has its place there."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from pefomed_recipes.errors import PeFoMedError

from .client import explained, hub_api, is_passing, say
from .manifest import Manifest, changed_files, read_manifest
from .plan import HUB_FILES

ADAPTER_CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Tokenizers look for it. An adapter has none, which a cache must know before it can do without the Hub.
CONFIG = "config.json"
SHOWN = 3


def verify(source: str, *, revision: str | None = None, base: str | None = None) -> list[str]:
    """Return what was checked, one line each.

    Args:
        source: a folder, or a Hub id.
        revision: of a Hub id.
        base: a base model, folder or Hub id, whose weights are compared with those that the adapter was trained on.

    Raises:
        PeFoMedError: a file is not what the manifest says, the base is missing or another one, or tensors are unused
            or missing.
    """
    folder, told = fetch(source, revision)
    manifest = check_files(source, folder)
    told.append(f"files: {len(manifest.files)} have the sha256 of the manifest")
    if manifest.kind == "adapter":
        told.append(check_named_base(folder, manifest))
        if base is not None:
            told.append(check_weights_of_base(folder, base))
        told.append(check_adapter_tensors(folder, manifest, base))
    elif base is not None:
        raise PeFoMedError(f"{source}: a {manifest.kind} model stands alone; leave out --base")
    else:
        told.append(check_model_tensors(folder))
    return told


def fetch(source: str, revision: str | None) -> tuple[Path, list[str]]:
    """Return the folder of a model, from the Hub where it is no folder, and what is known of its arrival.

    What came damaged is fetched a second time.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise PeFoMedError(f"{source} is a folder, which has no revisions; leave out --revision")
        return Path(source), []
    api = hub_api()
    with explained(f"fetch {source}"):
        if constants.is_offline_mode():
            return from_cache(source, revision, "HF_HUB_OFFLINE is set"), ["from the cache; the Hub was not asked"]
        try:
            api.repo_info(source, revision=revision)  # a download alone would take the cache's without a word
        except Exception as error:
            if not is_passing(error):
                raise
            why = f"the Hub does not answer ({type(error).__name__})"
            if not constants.REGEX_COMMIT_OID.fullmatch(revision or ""):
                raise PeFoMedError(f"cannot fetch {source}: {why}; HF_HUB_OFFLINE=1 takes it from the cache") from None
            return from_cache(source, revision, why), [f"commit {revision}, from the cache: {why}"]
        folder = Path(snapshot_download(source, revision=revision))
        sha = folder.name
        damaged = [row["path"] for row in api.verify_repo_checksums(source, revision=sha).mismatches]
        for name in damaged:
            say(f"{name} came damaged; fetching it again")
            hf_hub_download(source, name, revision=sha, force_download=True)
        if damaged and (still := api.verify_repo_checksums(source, revision=sha).mismatches):
            raise PeFoMedError(
                f"{source}: {still[0]['path']} comes with another hash than the Hub says; try again later"
            )
        if not (folder / CONFIG).exists():
            with suppress(EntryNotFoundError):
                hf_hub_download(source, CONFIG, revision=revision)
    return folder, [f"commit {sha}"]


def from_cache(source: str, revision: str | None, why: str) -> Path:
    """Return the folder of a model that was fetched before.

    Raises:
        PeFoMedError: it was not.
    """
    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise PeFoMedError(f"{source} at {revision or 'main'} is not in the cache, and {why}") from None


def check_files(source: str, folder: Path) -> Manifest:
    """Return the manifest after comparing every file with it.

    Raises:
        PeFoMedError: there is no manifest, or a file is missing, changed or not listed.
    """
    manifest = read_manifest(folder)
    problems = {name: how for name, how in changed_files(folder, manifest).items() if name not in HUB_FILES}
    if problems:
        listed = "; ".join(f"{name} ({how})" for name, how in problems.items())
        raise PeFoMedError(f"{source}: not what its manifest says: {listed}. Do not use it; fetch or export it again")
    return manifest


def check_named_base(folder: Path, manifest: Manifest) -> str:
    """Compare the base that the adapter's settings name with the manifest's.

    Raises:
        PeFoMedError: they differ, or a folder is named.
    """
    settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    named, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if manifest.base is None or (named, revision) != (manifest.base.id, manifest.base.revision):
        raise PeFoMedError(
            f"{folder}/{ADAPTER_CONFIG}: it names the base {named!r} at {revision}, the manifest "
            f"{manifest.base and manifest.base.id!r} at {manifest.base and manifest.base.revision}; export it again"
        )
    return f"base: {named} at {revision}" if revision else f"base: {named}, at no particular commit"


def check_weights_of_base(folder: Path, base: str) -> str:
    """Load a base and compare its weights with those that the adapter was trained on.

    Raises:
        PeFoMedError: they are others; the parts are named.
    """
    import torch

    from pefomed_recipes.models.bases import base_fingerprint, check_base, load_base_model

    settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    with explained(f"load the base {base}"):
        found = base_fingerprint(load_base_model(base, torch.bfloat16))
    check_base(folder, found, settings.get("base_model_name_or_path"))
    return f"base's weights: those of {base} are what it was trained on, in {len(found)} parts"


def check_adapter_tensors(folder: Path, manifest: Manifest, base: str | None) -> str:
    """Compare names and shapes of the adapter's tensors with what its base takes. The base is built without weights.

    Raises:
        PeFoMedError: tensors are missing, unused or of other shapes; or the base's configuration cannot be had.
    """
    import torch
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from safetensors import safe_open
    from transformers import AutoConfig

    from modeling_pefomed import PeFoMedForConditionalGeneration

    assert manifest.base is not None
    place, revision = (base, None) if base else (manifest.base.id, manifest.base.revision)
    with explained(f"read the base model's configuration from {place}"):
        config = AutoConfig.from_pretrained(place, revision=revision)
        settings = PeftConfig.from_pretrained(folder)
    if hasattr(settings, "init_lora_weights"):
        settings.init_lora_weights = True  # other starts read the base's weights
    with torch.device("meta"):
        model = PeftModel(PeFoMedForConditionalGeneration(config), settings)
    expected = {name: list(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    other = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return _told(folder, expected.keys() - found.keys(), found.keys() - expected.keys(), other, len(found))


def check_model_tensors(folder: Path) -> str:
    """Load a whole model and see that it takes every tensor and has every tensor.

    Raises:
        PeFoMedError: tensors are missing, unused or of other shapes.
    """
    from transformers import AutoModelForImageTextToText

    import modeling_pefomed  # noqa: F401  (registers the classes)

    with explained(f"load {folder}"):
        model, report = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    other = [row[0] for row in report["mismatched_keys"]]
    return _told(folder, report["missing_keys"], report["unexpected_keys"], other, sum(1 for _ in model.parameters()))


def _told(folder: Path, missing: Any, unused: Any, other: Any, count: int) -> str:
    kinds = {"missing": sorted(missing), "unused": sorted(unused), "of another shape": sorted(other)}
    wrong = [f"{len(names)} {kind}, such as {', '.join(names[:SHOWN])}" for kind, names in kinds.items() if names]
    if wrong:
        raise PeFoMedError(f"{folder}: its tensors do not fit the base model: {'; '.join(wrong)}")
    return f"tensors: {count}, none missing, none unused"

# SPDX-License-Identifier: Apache-2.0
"""Stages what is to be published: a new folder made from an allow-list, loaded by a stranger's Python and compared.

What is not written here does not travel: no optimizer state, no pickle, no run record with its folders, no data.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import modeling_pefomed
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.evaluation.calibration import adapter_digest
from pefomed_recipes.inference.loading import load_processor
from pefomed_recipes.inference.merging import merge_adapter
from pefomed_recipes.models.adapter_folders import load_adapter
from pefomed_recipes.models.adapter_models import WEIGHTS
from pefomed_recipes.models.bases import base_fingerprint, write_fingerprint
from pefomed_recipes.staging import whole_folder
from pefomed_recipes.training.composing import COMPOSE_RECORD, DTYPES
from pefomed_recipes.training.provenance import code_commit, environment

from .evidence import Evidence, find_evidence
from .manifest import (
    KINDS,
    Base,
    Check,
    Manifest,
    Part,
    is_credentialed,
    list_files,
    write_manifest,
)
from .model_card import render_card
from .reloading import compare, logits_apart, logits_here
from .sources import (
    ADAPTER_CONFIG,
    CARD,
    Source,
    base_parts,
    check_hub_id,
    find_source,
    hub_id_of_base,
    training_history,
)

# The model's code as it travels; transformers writes two of the four beside a processor.
REMOTE_CODE = tuple(f"{kind}_pefomed.py" for kind in ("configuration", "image_processing", "modeling", "processing"))
# Of a whole model's folder; its processor and its code are written anew.
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
# What a tokenizer remembers of how it was loaded, which says nothing about it.
LOADING_TRACES = ("is_local", "local_files_only", "name_or_path")


def export(
    source: str | Path,
    out: Path,
    *,
    repo: str,
    kind: str = "adapter",
    base_id: str | None = None,
    base_revision: str | None = None,
    dtype: str | None = None,
    licence: str = "",
    evidence: Sequence[str | Path] | None = None,
) -> Manifest:
    """Write a folder that can be published and return its manifest; it appears when it is whole and was compared.

    Args:
        source: an adapter (folder or Hub id), or for `base` a base model's folder.
        out: the new folder.
        repo: the Hub id that the folder is meant for.
        kind: `adapter`, `merged` (base and adapter as one model) or `base`.
        base_id: the base's Hub id; needed where the adapter names a folder.
        base_revision: the commit there that the adapter belongs to.
        dtype: of an adapter's weights, float32 by default; of a merged model, by default the base's.
        licence: the licence under which it is published, as the Hub abbreviates it.
        evidence: result files, or folders with them; by default the adapter's folder and the one around it.

    Raises:
        ConfigError: `out` is not empty, an id is malformed, or an option does not go with `kind`.
        PeFoMedError: the source cannot be loaded, the evidence is about another adapter, or the staged folder gives
            other logits than the source; nothing is written then.
    """
    check_options(out, repo, kind, base_id, base_revision, dtype)
    found = find_source(source, kind)
    runs, incomplete = training_history(found.folder) if found.adapter else ([], False)
    places = evidence if evidence is not None else [found.folder, found.folder.parent]
    measured = find_evidence(places, adapter_digest(found.folder)) if found.adapter else Evidence()
    named = None if kind == "base" else hub_id_of_base(found.base, base_id)
    processor = load_processor(found.folder)
    with whole_folder(out) as staged:
        say(f"staging the {kind}")
        if kind == "base":
            stage_model(found.folder, staged)
        elif kind == "merged":
            merge_adapter(found.folder, staged / "merged", DTYPES[dtype] if dtype else None)
            stage_model(staged / "merged", staged)
            shutil.rmtree(staged / "merged")
        else:
            assert named is not None
            stage_weights(found.folder, staged, DTYPES[dtype or "float32"])
            stage_adapter_config(found.folder, staged, named, base_revision)
        processor.save_pretrained(staged)
        clean_tokenizer(staged)
        for file in REMOTE_CODE:
            shutil.copyfile(Path(modeling_pefomed.__file__).with_name(file), staged / file)
        measured.write(staged)
        say("loading it without this package, and comparing its logits")
        checked, fingerprint = check_staged(staged, found, kind, named or "", base_revision)
        if kind == "adapter":
            write_fingerprint(staged, fingerprint)
        parts = base_parts(found.base)
        now = environment()
        manifest = Manifest(
            repo=repo,
            kind=kind,
            base=None if named is None else Base(named, base_revision, fingerprint, parts),
            dtype=dtype_of(staged),
            template=processor.template,
            licence=licence,
            credentialed=is_credentialed(runs) if found.adapter else False,
            runs=runs,
            seconds=round(sum(run.seconds for run in runs), 1),
            incomplete_history=incomplete,
            code_commit=code_commit(),
            packages={name: version for name, version in now["packages"].items() if version},
            adapter=found.adapter,
            peft_type=PeftConfig.from_pretrained(found.folder).peft_type.value if found.adapter else None,
            check=checked,
            parts=parts if kind == "base" else [],
        )
        (staged / CARD).write_text(render_card(manifest, measured), encoding="utf-8")
        manifest.files = list_files(staged)
        write_manifest(staged, manifest)
    if kind != "adapter":
        say(terms(parts))
    return manifest


def check_options(
    out: Path, repo: str, kind: str, base_id: str | None, base_revision: str | None, dtype: str | None
) -> None:
    """Check what can be checked before anything is read.

    Raises:
        ConfigError: an option is not usable.
    """
    if kind not in KINDS:
        raise ConfigError(f"--kind: found {kind!r}, expected one of {', '.join(KINDS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists already and is not an empty folder; name another --out or delete it")
    for option, value in (("--repo", repo), ("--base-id", base_id)):
        if value is not None:
            check_hub_id(option, value)
    if dtype is not None and (kind == "base" or dtype not in DTYPES):
        expected = "none for a base, which is published as it is" if kind == "base" else f"one of {', '.join(DTYPES)}"
        raise ConfigError(f"--dtype: found {dtype!r}, expected {expected}")
    if kind == "base" and (base_id or base_revision):
        raise ConfigError("--base-id and --base-revision belong to an adapter; a base has none")


def stage_weights(folder: Path, staged: Path, dtype: torch.dtype) -> None:
    """Write an adapter's weights: byte for byte where they have this number format already."""
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise PeFoMedError(f"{folder}: cannot read the adapter's weights ({error})") from None
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise PeFoMedError(f"{folder}: {broken[0]} holds numbers that are not finite; train the adapter again")
    if all(tensor.dtype == dtype for tensor in tensors.values()):
        shutil.copyfile(folder / WEIGHTS, staged / WEIGHTS)
    else:
        save_file({name: t.to(dtype) for name, t in tensors.items()}, staged / WEIGHTS, metadata={"format": "pt"})


def stage_adapter_config(folder: Path, staged: Path, base_id: str, revision: str | None) -> None:
    """Write `adapter_config.json` with the base as others find it."""
    settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": base_id, "revision": revision, "inference_mode": True}
    (staged / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def stage_model(folder: Path, staged: Path) -> None:
    """Copy a whole model's weights and configuration, and the record of its parts."""
    for pattern in (*MODEL_FILES, COMPOSE_RECORD):
        for file in folder.glob(pattern):
            shutil.copyfile(file, staged / file.name)


def clean_tokenizer(staged: Path) -> None:
    """Take out of a tokenizer's settings how it was loaded here."""
    path = staged / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name not in LOADING_TRACES}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def check_staged(
    staged: Path, found: Source, kind: str, base_id: str, base_revision: str | None
) -> tuple[Check, dict[str, str]]:
    """Compare the staged folder, loaded by a process without this package, with its source, loaded by this one.

    Returns the comparison, and the fingerprint of the base.
    """
    processor = load_processor(found.folder)
    model = load_whole(found.base)
    fingerprint, base_dtype = base_fingerprint(model), model.config.dtype
    if found.adapter:
        model = load_adapter(model, found.folder, trainable=False)
    original = expected = logits_here(model, processor)
    is_rounded = dtype_of(staged) != "float32" or base_dtype not in (None, torch.float32)
    if found.adapter and is_rounded:
        del model
        gc.collect()
        model = load_whole(staged if kind == "merged" else found.base)
        if kind == "adapter":
            model.load_adapter(str(staged))  # as AutoModel does: in the base's number format, where PEFT keeps float32
        expected = logits_here(model, processor)
    del model
    is_local = kind == "adapter" and Path(found.base).is_dir()
    apart = logits_apart(
        staged,
        base_id=base_id,
        base_folder=Path(found.base) if is_local else None,
        revision=base_revision if kind == "adapter" else None,
    )
    return compare(apart, expected, original), fingerprint


def load_whole(name: str | Path) -> Any:
    """Return a base or merged model in the number format that it is saved in.

    Raises:
        PeFoMedError: there is none.
    """
    try:
        return AutoModelForImageTextToText.from_pretrained(name, dtype="auto").eval()
    except (OSError, ValueError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise PeFoMedError(f"{name}: cannot load the base model ({first})") from None


def dtype_of(staged: Path) -> str:
    """Return the number format of the weights: an adapter's own, a whole model's frozen ones."""
    if (staged / WEIGHTS).is_file():
        with safe_open(staged / WEIGHTS, framework="pt") as weights:
            return str(weights.get_tensor(next(iter(weights.keys()))).dtype).removeprefix("torch.")
    return str(json.loads((staged / "config.json").read_text(encoding="utf-8")).get("dtype") or "float32")


def terms(parts: Sequence[Part]) -> str:
    """Return what somebody must know who publishes weights of others."""
    named = "; ".join(f"{part.role} {part.id}: licence {part.licence}" for part in parts)
    return f"this folder holds weights of others ({named}). Publish it only if their licences allow it."


def say(text: str) -> None:
    """Tell the user, beside the data on stdout."""
    print(text, file=sys.stderr)

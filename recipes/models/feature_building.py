# SPDX-License-Identifier: Apache-2.0
"""Writes a feature cache: on any number of processes, and going on where an interrupted run stopped."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftConfig
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoProcessor

from modeling_pefomed import group_patch_tokens

from ..data.datasets_index import present, stream_samples
from ..data.images import load_image
from ..data.reading import SPLIT_SPELLINGS, MissingSplitError, canonical_split
from ..devices import default_dtype
from ..errors import PeFoMedError
from ..records import Sample
from ..staging import whole_file
from .adapter_folders import adapter_folder
from .feature_cache import FILES, MANIFEST, cache_id, check_manifest, describe
from .feature_shards import find_shards, images_per_shard, write_shard
from .image_keys import ImageKeys
from .towers import TowerAlone, load_tower

LOCK = ".lock"
IMAGES_PER_BATCH = 8  # through the tower
KeyedImage = tuple[str, str]  # key and path


def build_features(
    model: str | Path,
    samples: Iterable[Sample],
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    verify: bool = False,
    dry_run: bool = False,
) -> dict[str, int]:
    """Compute the features of every distinct image of some samples that `out` does not hold yet, and write them.

    Each process of `accelerate launch` (on CPUs: of `torchrun`) computes its share. What a killed run has written is
    kept. The size is printed to stderr before anything is written.

    Args:
        model: a base model or an adapter, whose base counts: a folder or Hub id.
        out: the cache's folder: a new one, or one with features of the same tower.
        dtype: the tower's number format; the device's best by default, as in training and prediction.
        verify: read every bit that is there already, and compute again what is damaged.
        dry_run: print the size and stop.

    Returns:
        `images`, the distinct ones; `new`, those of them that were not there; `bytes` that these take.

    Raises:
        PeFoMedError: there is no such model, an image cannot be read, `out` holds other features or something else,
            somebody else writes to it, it cannot be written to, or the disk is too small.
    """
    out, state = Path(out), PartialState(cpu=not torch.cuda.is_available())
    tower, image_processor = _load(model, dtype or default_dtype())
    described = describe(tower, image_processor, state.device.type)
    _check_folder(out, described)

    image_keys = ImageKeys()
    image_keys.load(out / FILES)
    paths = list(dict.fromkeys(path for sample in samples for path in sample.image_paths))
    if not paths:
        raise PeFoMedError("There is nothing to compute: found 0 images.")
    distinct = _distinct(paths, image_keys, state)

    new, damaged = list[KeyedImage](), list[Path]()
    if state.is_main_process:
        whole, damaged = find_shards(out, cache_id(described))
        if verify:
            checked = tqdm(whole, desc="shards verified", disable=not sys.stderr.isatty())
            damaged += [shard.file for shard in checked if not shard.is_intact()]
        held = {key for shard in whole if shard.file not in damaged for key in shard.keys}
        new = [(key, path) for key, path in distinct.items() if key not in held]
    [new] = broadcast_object_list([new])
    size = bytes_per_image(tower)
    plan = {"images": len(distinct), "new": len(new), "bytes": len(new) * size}
    _check_space(plan, len(damaged), out, state)
    if dry_run:
        return plan

    with _writing_to(out, state):
        if state.is_main_process:
            for file in (*damaged, *out.glob(".*.partial")):
                file.unlink()
            with whole_file(out / MANIFEST) as staged:
                staged.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            image_keys.save(out / FILES)
        state.wait_for_everyone()
        mine = new[state.process_index :: state.num_processes]
        shards = _computed(tower.to(state.device), image_processor, mine, image_keys, images_per_shard(size))
        with tqdm(total=len(mine), desc="features", disable=not _is_watched(state)) as progress:
            for keys, features in shards:
                write_shard(out, cache_id(described), keys, features)
                progress.update(len(keys))
        state.wait_for_everyone()
    if state.is_main_process:
        print(f"wrote {out}", file=sys.stderr)
    return plan


def samples_of(
    dataset: str,
    data_root: str | Path,
    splits: Sequence[str] = (),
    on_missing: Literal["fail", "skip"] = "fail",
) -> Iterator[Sample]:
    """Yield the samples of some splits of a data set, or of all that it has, in all languages.

    Raises:
        ConfigError, DatasetError: as [`load_samples`](../data/datasets_index.py).
    """
    absent = []
    wanted = [canonical_split(split) for split in splits] or list(SPLIT_SPELLINGS)
    for split in wanted:
        try:
            yield from present(stream_samples(dataset, data_root, split, language="all"), data_root, on_missing)
        except MissingSplitError as error:
            absent.append(str(error))
            if splits or len(absent) == len(wanted):
                raise


def bytes_per_image(tower: TowerAlone) -> int:
    """Return what the features of one image take."""
    config: Any = tower.config
    return config.num_patches * config.vision_config.hidden_size * next(tower.parameters()).element_size()


def _load(model: str | Path, dtype: torch.dtype) -> tuple[TowerAlone, Any]:
    """Return the tower of a base, or of an adapter's base, and the image processor that lies beside it."""
    try:
        adapter = adapter_folder(model)
        base = model if adapter is None else PeftConfig.from_pretrained(adapter).base_model_name_or_path
        return load_tower(base, dtype), AutoProcessor.from_pretrained(model).image_processor
    except (OSError, ValueError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise PeFoMedError(f"{model}: cannot load a PeFoMed model ({first})") from None


def _check_folder(out: Path, described: dict[str, Any]) -> None:
    """Check that features of this tower may be written there.

    Raises:
        PeFoMedError: other features or something else is there.
    """
    if (out / MANIFEST).exists():
        check_manifest(out, described)
    elif out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise PeFoMedError(f"{out}: found something else than a feature cache; name a new or empty folder")


def _distinct(paths: Sequence[str], image_keys: ImageKeys, state: PartialState) -> dict[str, str]:
    """Return one path for each distinct image, by key; the processes share the reading."""
    mine = paths[state.process_index :: state.num_processes]
    with ThreadPoolExecutor() as pool:
        read = pool.map(image_keys.key, mine)
        keys = tqdm(read, total=len(mine), desc="images read", disable=not _is_watched(state))
        found = list(zip(keys, mine, strict=True))
    image_keys.merge(gather_object([image_keys.known]))
    return dict(reversed(gather_object(found)))


def _is_watched(state: PartialState) -> bool:
    return state.is_main_process and sys.stderr.isatty()


def _check_space(plan: dict[str, int], damaged: int, out: Path, state: PartialState) -> None:
    """Print what will be written.

    Raises:
        PeFoMedError: there is too little room for it.
    """
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    told = f"{_gigabytes(plan['bytes'])} to write for {plan['new']:,} of {plan['images']:,} images"
    if damaged:
        told += f" ({damaged} damaged shards are thrown away)"
    if state.is_main_process:
        print(f"{told}; {_gigabytes(free)} free in {nearest}", file=sys.stderr)
    if plan["bytes"] > free:
        raise PeFoMedError(f"{out}: {told}, but only {_gigabytes(free)} are free; name a folder on a larger disk")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"


@contextmanager
def _writing_to(out: Path, state: PartialState) -> Iterator[None]:
    """While it lasts, no other run writes to the folder.

    Raises:
        PeFoMedError: another run does already, or the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / LOCK).open("a") as lock:
            if state.is_main_process:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise PeFoMedError(f"{out}: another run writes features there; wait for its end") from None
                except OSError:
                    pass  # a disk without locks: shards have names of their own, and would only be computed twice
            yield
    except OSError as error:
        raise PeFoMedError(
            f"{out}: features cannot be written there ({error.strerror or error}); make room or name another folder. "
            "What is whole there is kept."
        ) from None


def _computed(
    tower: TowerAlone, image_processor: Any, images: list[KeyedImage], image_keys: ImageKeys, rows: int
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Yield keys and features of at least `rows` images at a time, and of what is left."""
    keys, features = list[str](), list[torch.Tensor]()
    for batch, pixel_values in _decoded(images, image_processor):
        changed = [path for key, path in batch if image_keys.key(path) != key]
        if changed:
            raise PeFoMedError(f"{changed[0]}: this image changed while its features were computed; start again")
        with torch.inference_mode():
            hidden = tower.model.get_tower_output(pixel_values.to(tower.device))
            features.append(group_patch_tokens(hidden, tower.config.num_patches, 1).cpu())
        keys += [key for key, _ in batch]
        if len(keys) >= rows:
            yield keys, torch.cat(features)
            keys, features = [], []
    if keys:
        yield keys, torch.cat(features)


def _decoded(images: list[KeyedImage], image_processor: Any) -> Iterator[tuple[list[KeyedImage], torch.Tensor]]:
    """Yield batches of images and their `pixel_values`; threads decode the next ones meanwhile."""

    def decode(batch: list[KeyedImage]) -> tuple[list[KeyedImage], torch.Tensor]:
        pictures = [load_image(path) for _, path in batch]
        return batch, image_processor(pictures, return_tensors="pt")["pixel_values"]

    threads = os.cpu_count() or 1
    ahead: deque[Future[tuple[list[KeyedImage], torch.Tensor]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(images), IMAGES_PER_BATCH):
            ahead.append(pool.submit(decode, images[start : start + IMAGES_PER_BATCH]))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

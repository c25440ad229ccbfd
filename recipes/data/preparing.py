# SPDX-License-Identifier: Apache-2.0
"""Makes Parquet shards with embedded images of a data set: few large files instead of many small ones.

Samples go through twice, one at a time. First they are divided into shards by the size of their images, which also
gives each shard a fingerprint. Then each shard that is not there yet is written by one process and appears when it is
whole; the manifest comes last. An interrupted run that is started again keeps its shards, and its result is the same
to the byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ..errors import ConfigError, PeFoMedError
from ..records import Sample
from ..staging import whole_file
from .datasets_index import find_source, stream_samples
from .image_facts import encoded_size, file_of, relative_name
from .prepared import FORM_VERSION, MANIFEST, read_manifest
from .reading import MAX_LISTED_PROBLEMS, SPLIT_SPELLINGS, DatasetError, MissingSplitError, canonical_split
from .shards import file_sha256, image_names, stored_facts, write_shard

logger = logging.getLogger(__name__)

SHARD_BYTES = 500_000_000
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Shard:
    """A run of a split's samples that becomes one file; `fingerprint` covers settings, samples and image sizes."""

    split: str
    name: str
    rows: int
    fingerprint: str


def parse_size(text: str) -> int:
    """Return a number of bytes: `500MB`, `2GiB` or `1000000`.

    Raises:
        ConfigError: it is none, or less than 1.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or float(match[1]) * _UNITS[match[2].upper()] < 1:
        raise ConfigError(f"found the size {text!r}; expected a number with KB, MB or GB, such as 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def prepare_dataset(
    dataset: str,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    splits: Sequence[str] = (),
    language: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    max_side_px: int | None = None,
    on_missing: Literal["fail", "skip"] = "fail",
    workers: int = 1,
) -> Path:
    """Write a data set as Parquet shards, to be read as `prepared` or by `datasets`, and return their folder.

    Args:
        dataset: slug of the data set.
        root: its folder.
        out: a new or empty folder, or that of an earlier call with the same settings and data: what is there is kept.
        splits: those to prepare; all that there are without.
        language: as for reading.
        shard_bytes: of the original images of one shard, at most, but for one sample with more.
        max_side_px: images with a longer side are scaled down to it; the bytes of the others stay as they are, see
            [`bare_image`].
        on_missing: whether samples whose image file is not there stop the preparation or are left out, and counted.
        workers: processes; each writes one shard at a time.

    Raises:
        ConfigError: an unknown data set, split or language, a size out of range, or `out` holds another preparation.
        DatasetError: the data set cannot be read, has no such split, or images are missing.
        PeFoMedError: an image cannot be used, or `out` holds something else.
    """
    if shard_bytes < 1 or (max_side_px is not None and max_side_px < 1) or workers < 1:
        raise ConfigError("shard size, longest side and workers must be 1 or more")
    folder = Path(out)
    source = find_source(dataset)
    settings = {
        "form_version": FORM_VERSION,
        "dataset": dataset,
        "layout": source.recognise(root).name,
        "language": language,
        "splits": [canonical_split(split) for split in splits],
        "shard_bytes": shard_bytes,
        "max_side_px": max_side_px,
        "on_missing": on_missing,
    }
    planner = _Planner(dataset, os.path.abspath(root), language, settings)
    shards = planner.plan()
    fingerprint = hashlib.sha256("".join(shard.fingerprint for shard in shards).encode()).hexdigest()
    if _is_finished(folder, fingerprint):
        logger.warning("%s is complete and is kept", folder)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(planner, shards, folder, max_side_px, workers)
    manifest = {
        **settings,
        "title": source.title,
        "licences": sorted(planner.licences),
        "credentialed": planner.credentialed,
        "fingerprint": fingerprint,
        "left_out_for_missing_images": planner.left_out,
        "shards": [_facts(folder, shard) for shard in shards],
    }
    with whole_file(folder / MANIFEST) as staged:
        staged.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


class _Planner:
    """Goes through the samples of a data set, once to divide them into shards and once to hand them out."""

    def __init__(self, dataset: str, root: str, language: str | None, settings: dict[str, Any]) -> None:
        self.dataset, self.root, self.language, self.settings = dataset, root, language, settings
        self.missing: dict[str, str] = {}  # path -> id of the first sample that names it
        self.left_out = 0
        self.licences: set[str] = set()
        self.credentialed = False

    def plan(self) -> list[Shard]:
        """Return all shards in order.

        Raises:
            DatasetError: no split, none of this name, or images are missing.
        """
        wanted = self.settings["splits"] or list(SPLIT_SPELLINGS)
        shards: list[Shard] = []
        absent: list[str] = []
        for split in dict.fromkeys(wanted):
            try:
                runs = list(self._runs(split))
            except MissingSplitError as error:
                if self.settings["splits"]:
                    raise
                absent.append(str(error))
                continue
            shards += [
                Shard(split, f"{split}-{at:05d}-of-{len(runs):05d}.parquet", rows, fingerprint)
                for at, (rows, fingerprint) in enumerate(runs)
            ]
        if self.missing and self.settings["on_missing"] == "fail":
            listed = [
                f"  {relative_name(path, self.root)} of {id}"
                for path, id in islice(self.missing.items(), MAX_LISTED_PROBLEMS)
            ]
            raise DatasetError("\n".join([f"{self.root}: {len(self.missing)} image files are missing", *listed]))
        if not shards:
            raise DatasetError("\n".join(absent) or f"{self.root}: no sample is left, since all images are missing")
        return shards

    def samples(self, split: str) -> Iterator[Sample]:
        """Yield the samples of a split whose images are all there."""
        for sample in stream_samples(self.dataset, self.root, split, language=self.language):
            if not any(path in self.missing for path in sample.image_paths):
                yield sample

    def _runs(self, split: str) -> Iterator[tuple[int, str]]:
        """Yield (number of samples, fingerprint) of each shard of a split."""
        header = json.dumps(self.settings, sort_keys=True).encode()
        sizes: dict[str, int] = {}
        rows, total, digest = 0, 0, hashlib.sha256(header)
        for sample in stream_samples(self.dataset, self.root, split, language=self.language):
            measured = {path: sizes.get(path) or self._size(path, sample) for path in sample.image_paths}
            if any(path in self.missing for path in measured):
                self.left_out += 1
                continue
            new = sum(size for path, size in measured.items() if path not in sizes)
            if rows and total + new > self.settings["shard_bytes"]:
                yield rows, digest.hexdigest()
                rows, total, digest, sizes = 0, 0, hashlib.sha256(header), {}
                new = sum(measured.values())
            sizes |= measured
            total += new
            rows += 1
            self.licences.add(sample.licence)
            self.credentialed |= sample.credentialed
            row = asdict(sample) | {"image_paths": image_names(sample, self.root)}
            digest.update(json.dumps([row, list(measured.values())], sort_keys=True).encode())
        if rows:
            yield rows, digest.hexdigest()

    def _size(self, path: str, sample: Sample) -> int:
        """Return the number of bytes of an image, 0 for one that is missing, which is noted."""
        if os.path.isfile(file_of(path)):
            return encoded_size(path)
        self.missing.setdefault(path, sample.id)
        return 0


def _is_finished(folder: Path, fingerprint: str) -> bool:
    """Whether a folder holds the whole preparation of this fingerprint.

    Raises:
        ConfigError: it holds another one.
        DatasetError: it holds this one, and a shard is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return False
    if read_manifest(folder)["fingerprint"] == fingerprint:
        return True
    raise ConfigError(
        f"{folder} holds shards of other data or settings ({MANIFEST}); name another folder or delete it"
    )


def _finished_shards(shards: Sequence[Shard], folder: Path) -> set[str]:
    """Return the names of the shards that are there already; leftovers of an interrupted run are removed.

    Raises:
        ConfigError: the folder holds something that does not belong to this preparation.
    """
    for left in folder.glob(".*.partial"):
        left.unlink()
    whole = {
        shard.name for shard in shards if stored_facts(folder / shard.name).get("fingerprint") == shard.fingerprint
    }
    others = sorted({path.name for path in folder.iterdir()} - whole)
    if others:
        raise ConfigError(
            f"{folder} holds {others[0]}, which is of other data or settings, or no shard; name another folder or "
            "delete it"
        )
    if whole:
        logger.warning("%s: %d of %d shards are there already", folder, len(whole), len(shards))
    return whole


def _write_shards(
    planner: _Planner, shards: Sequence[Shard], folder: Path, max_side_px: int | None, workers: int
) -> None:
    """Write the shards that are not there yet, several at a time.

    Raises:
        PeFoMedError: an image cannot be used; shards that are whole stay.
    """
    done = _finished_shards(shards, folder)
    with tqdm(
        total=len(shards), initial=len(done), desc="shards", unit="shard", disable=not sys.stderr.isatty()
    ) as progress:
        jobs = (
            (folder / shard.name, samples, planner.root, max_side_px, shard.fingerprint)
            for shard, samples in _with_samples(planner, shards)
            if shard.name not in done
        )
        if workers == 1 or len(shards) - len(done) <= 1:
            for job in jobs:
                write_shard(*job)
                progress.update()
            return
        # "spawn": a forked copy of a process with running threads can hang
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            running: set[Future[None]] = set()
            try:
                for job in jobs:
                    if len(running) > workers:  # one waits ready; more would only hold texts in memory
                        finished, running = wait(running, return_when=FIRST_COMPLETED)
                        progress.update(sum(future.result() is None for future in finished))
                    running.add(pool.submit(write_shard, *job))
                for future in as_completed(running):
                    future.result()
                    progress.update()
            except BrokenProcessPool:
                raise PeFoMedError(
                    "A process that writes shards was ended, by a faulty image or for want of memory; try again with "
                    "--workers 1: finished shards are kept"
                ) from None
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _with_samples(planner: _Planner, shards: Sequence[Shard]) -> Iterator[tuple[Shard, list[Sample]]]:
    """Yield each shard with its samples.

    Raises:
        DatasetError: there are fewer samples than a moment ago.
    """
    for split in dict.fromkeys(shard.split for shard in shards):
        samples = planner.samples(split)
        for shard in shards:
            if shard.split == split:
                own = list(islice(samples, shard.rows))
                if len(own) < shard.rows:
                    raise DatasetError(f"{planner.root}: the {split} split changed while it was read; try again")
                yield shard, own


def _facts(folder: Path, shard: Shard) -> dict[str, Any]:
    """Return a shard's entry in the manifest."""
    path = folder / shard.name
    size, stored = path.stat().st_size, stored_facts(path)
    return {"file": shard.name, "split": shard.split, "bytes": size, "sha256": file_sha256(path)} | stored

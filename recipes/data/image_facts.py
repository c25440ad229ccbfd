# SPDX-License-Identifier: Apache-2.0
"""Looks at every image of a data set once: whether it can be used, what it shows, and which others show the same."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

from ..errors import PeFoMedError
from .images import burned_in_risk, load_image
from .near_duplicates import perceptual_hash, small_look
from .parquet_images import MARK, is_parquet_reference, read_parquet_image

THUMBNAIL_PX = 224
# Another process costs half a second to start: as much as decoding this many small images.
IMAGES_PER_WORKER = 250


@dataclass(frozen=True)
class ImageFacts:
    """What one image file is: its problem, or its pixels' fingerprints.

    `state` is `good`, `missing` (no such file) or `corrupt` (it cannot be used, and `problem` says why, without the
    folder's name). `pixels` is a sha256 over size and RGB pixels: equal pictures have the same one, whatever their
    files. `hash` and `look` are those of [`near_duplicates.Picture`]. `may_hold_text` is [`images.burned_in_risk`].
    """

    state: str
    problem: str = ""
    width: int = 0
    height: int = 0
    pixels: str = ""
    hash: int = 0
    look: bytes = b""
    may_hold_text: bool = False
    thumbnail: Image.Image | None = None


def file_of(path: str) -> str:
    """Return the file that an image lies in: itself, or the Parquet file of a reference such as `a.parquet#7`."""
    file, mark, _ = path.partition(MARK)
    return file + MARK[:-1] if mark else path


def encoded_size(path: str) -> int:
    """Return the number of bytes of an image file, or of an image in a Parquet file.

    Raises:
        OSError, DatasetError: it is not there.
    """
    return len(read_parquet_image(path)) if is_parquet_reference(path) else os.path.getsize(path)


def relative_name(path: str, root: str | os.PathLike[str]) -> str:
    """Return an image's name below the data set's folder, which tells nothing about the machine."""
    return Path(os.path.relpath(path, root)).as_posix()


def examine_image(path: str, *, thumbnail: bool = False) -> ImageFacts:
    """Decode one image and return what it is; nothing is raised for an image that cannot be used."""
    if not os.path.isfile(file_of(path)):
        return ImageFacts("missing", "no such file")
    try:
        image, may_hold_text = load_image(path), burned_in_risk(path)
    except PeFoMedError as error:
        text = str(error).removeprefix(f"{path}: ")
        return ImageFacts("corrupt", text.replace(os.path.join(os.path.dirname(path), ""), ""))
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return ImageFacts(
        "good",
        width=image.width,
        height=image.height,
        pixels=digest.hexdigest(),
        hash=perceptual_hash(image),
        look=small_look(image),
        may_hold_text=may_hold_text,
        thumbnail=ImageOps.contain(image, (THUMBNAIL_PX, THUMBNAIL_PX)) if thumbnail else None,
    )


def examine_images(
    paths: Collection[str], *, thumbnails: Collection[str] = (), workers: int | None = None
) -> Iterator[tuple[str, ImageFacts]]:
    """Yield (path, facts) for each image in order; each is decoded once.

    Args:
        paths: absolute paths, or references into Parquet files; each once.
        thumbnails: those of the paths of which a small picture is wanted, too.
        workers: processes that decode; by default one for each processor, and fewer for few images.

    Raises:
        PeFoMedError: an image ended a worker, as broken files can by way of a decoder's fault or of too little memory.
    """
    if workers is None:
        workers = min(os.cpu_count() or 1, 1 + len(paths) // IMAGES_PER_WORKER)
    examine = partial(_examined, thumbnails=frozenset(thumbnails))
    with tqdm(total=len(paths), desc="images", unit="image", disable=not sys.stderr.isatty()) as progress:
        for path, facts in zip(paths, _mapped(examine, paths, workers), strict=True):
            progress.update()
            yield path, facts


def _examined(path: str, thumbnails: Collection[str]) -> ImageFacts:
    return examine_image(path, thumbnail=path in thumbnails)


def _mapped(examine: partial[ImageFacts], paths: Iterable[str], workers: int) -> Iterator[ImageFacts]:
    if workers <= 1:
        yield from map(examine, paths)
        return
    # "spawn": a forked copy of a process with running threads can hang
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(examine, paths, chunksize=16)
        except BrokenProcessPool:
            raise PeFoMedError(
                "A process that decodes images was ended, by a faulty file or for want of memory; "
                "try again with --workers 1"
            ) from None

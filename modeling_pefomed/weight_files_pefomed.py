# SPDX-License-Identifier: Apache-2.0
"""Files of tensors: checkpoints and folders are opened without running anything in them, and written tensor by tensor.

Everything is lazy: a tensor is in memory only while it is copied. Not part of the Hub's remote code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

Loader = Callable[[], torch.Tensor]
# In this order: the first that a folder has is read.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MANIFEST, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "manifest.json", "adapter_config.json", "adapter_model.safetensors"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class ConversionError(ValueError):
    """Something that cannot be converted: what was found, what was expected, what to do."""


@dataclass
class Source:
    """Where tensors come from: `loaders` gives each on demand under the name that stands in the file."""

    label: str
    files: list[Path]
    loaders: dict[str, Loader] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Source:
    """Return the tensors of a `.pth` file: of `{"model": {...}, ...}` or of a bare dict.

    Files of torch's zip format are mapped into memory, not read; older ones must be read whole.

    Raises:
        ConversionError: the file is missing, cut off, wants to run code, or holds no tensors.
    """
    content = load_pickle(path)
    named = content.get("model", content) if isinstance(content, dict) else {}
    items = named.items() if isinstance(named, dict) else ()
    tensors = {str(name): tensor for name, tensor in items if isinstance(tensor, torch.Tensor)}
    if not tensors:
        raise ConversionError(
            f"{path}: found a {type(content).__name__} without tensors, expected a checkpoint: named tensors, or "
            '{"model": named tensors, ...}.'
        )
    return Source(path.name, [path], {name: partial(_itself, tensor) for name, tensor in tensors.items()})


def load_pickle(path: Path) -> Any:
    """Return what a file of `torch.save` holds, with tensors and plain containers allowed and nothing else.

    Raises:
        ConversionError: see [`read_checkpoint`].
    """
    if not path.is_file():
        raise ConversionError(f"{path}: there is no such file; expected a checkpoint.")
    is_zip = zipfile.is_zipfile(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" and not is_zip:
        raise ConversionError(
            f"{path}: found the first {path.stat().st_size:,} bytes of a checkpoint, but its end is missing. "
            "Copy or download it again."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True if is_zip else None)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # bytes of strangers: any error means that they cannot be read
        text = str(error)
        named = re.search(r"GLOBAL ([\w.]+)", text)
        if isinstance(error, pickle.UnpicklingError) and named:
            raise ConversionError(
                f"{path}: found a call of {named.group(1)}, expected tensors only; nothing of it was run. "
                "Do not open this file by other means, unless you trust whoever made it."
            ) from None
        raise ConversionError(
            f"{path}: found no readable checkpoint, expected a file of torch.save, whole and unchanged. "
            f"Copy or download it again. ({first_line(error)})"
        ) from None


def read_folder(source: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> Source:
    """Return the tensors of a Hugging Face folder or Hub id: safetensors or `.bin`, in one file or in parts.

    Args:
        source: a folder, or a Hub id, of which only the files with wanted tensors are fetched.
        wanted: which tensors are needed, by their name in the files; others are not listed.

    Raises:
        ConversionError: there are no weights, or a file is cut off.
    """
    for name in WEIGHT_FILES:
        found = _file_of(source, name)
        if found is not None:
            break
    else:
        raise ConversionError(f"{source}: found no weights, expected one of {', '.join(WEIGHT_FILES)}.")
    if found.suffix == ".json":
        where = read_json(found).get("weight_map", {})
        files = {part: _file_of(source, part) for part in sorted({where[n] for n in where if wanted(n)})}
        missing = [part for part, path in files.items() if path is None]
        if missing:
            raise ConversionError(f"{source}: {found.name} names {', '.join(missing)}, which is missing. Copy it too.")
    else:
        files = {found.name: found}
    result = Source(Path(source).name, [path for path in files.values() if path is not None])
    opened = functools.lru_cache(maxsize=1)(read_checkpoint)  # one mapped `.bin` file at a time
    for path in result.files:
        if path.suffix == ".safetensors":
            loaders = read_safetensors(path).loaders
        else:
            loaders = {name: partial(_tensor_of, opened, path, name) for name in opened(path).loaders}
        result.loaders |= {name: load for name, load in loaders.items() if wanted(name)}
    return result


def read_safetensors(path: Path) -> Source:
    """Return the tensors of one safetensors file.

    Raises:
        ConversionError: the file is missing or cut off.
    """
    return Source(path.name, [path], {name: partial(_safe_tensor, path, name) for name in _safetensors_names(path)})


def write_safetensors(path: Path, loaders: Mapping[str, Loader]) -> None:
    """Write tensors one after the other; `safetensors`' own writer needs them all in memory.

    Source: the safetensors format: length of the header (8 bytes, little-endian), header (JSON), the tensors' bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, load in loaders.items():
        tensor = load()
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for load in loaders.values():
            as_bytes(load()).numpy().tofile(file)
        file.flush()
        os.fsync(file.fileno())


def write_shards(folder: Path, loaders: Mapping[str, Loader], max_shard_bytes: int) -> None:
    """Write `model.safetensors`, or numbered parts of it with their index, and compare each with what was meant.

    Raises:
        ConversionError: a part does not read back bit-equal.
    """
    shards: list[dict[str, Loader]] = [{}]
    size = total = parameters = 0
    for name, load in loaders.items():
        tensor = load()
        nbytes = tensor.numel() * tensor.element_size()
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = load
        size, total, parameters = size + nbytes, total + nbytes, parameters + tensor.numel()
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, shard)
        compare_safetensors(folder / name, shard)  # while the sources are still in the system's cache
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        index = {"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def compare_safetensors(path: Path, loaders: Mapping[str, Loader]) -> None:
    """Read a file back and compare names, dtypes, shapes and bytes.

    Raises:
        ConversionError: something differs.
    """
    names = set(_safetensors_names(path))
    differing = sorted(names ^ set(loaders))
    for name in names & set(loaders):
        read, meant = _safe_tensor(path, name), loaders[name]()
        same = read.dtype == meant.dtype and read.shape == meant.shape
        if not same or not torch.equal(as_bytes(read), as_bytes(meant)):
            differing.append(name)
    if differing:
        raise ConversionError(
            f"{path.name} was written but reads back differently: {len(differing)} tensors, such as {differing[0]}. "
            "Check the disk and start again."
        )


def require_new(targets: Sequence[Path]) -> None:
    """Refuse to write over anything.

    Raises:
        ConversionError: a target exists and is not an empty folder, or two are the same.
    """
    for target in targets:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConversionError(f"{target} exists already. Name another folder, or delete it.")
    if len({target.resolve() for target in targets}) < len(targets):
        raise ConversionError(f"{targets[0]} is named twice. Base and adapter need a folder each.")


@contextlib.contextmanager
def staged(targets: Sequence[Path], loaders: Iterable[Loader]) -> Iterator[list[Path]]:
    """Give a folder beside each target to write into; they take the targets' places when all is done, or vanish.

    Args:
        targets: folders that do not exist yet, see [`require_new`].
        loaders: the tensors to be written, for which there must be room.

    Raises:
        ConversionError: the disk is too full; nothing is written then.
    """
    needed = sum(tensor.numel() * tensor.element_size() for tensor in (load() for load in loaders))
    free = shutil.disk_usage(next(parent for parent in targets[0].resolve().parents if parent.is_dir())).free
    if needed > free:
        raise ConversionError(f"{targets[0]}: {needed:,} bytes are needed, but the disk has {free:,}. Make room.")
    folders = [target.with_name(target.name + ".partial") for target in targets]
    try:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        yield folders
        for folder, target in zip(folders, targets, strict=True):
            os.replace(folder, target)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write `manifest.json` with the sha256 of every file beside it, and return it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}
    manifest = {**content, "files": files, "weights_sha256": _weights_of(files)}
    write_json(folder / MANIFEST, manifest)
    return manifest


def weights_sha256(folder: str | Path) -> str:
    """Return one sha256 for all weight files of a folder or Hub id: what an adapter remembers of its base."""
    manifest = _file_of(folder, MANIFEST)
    if manifest is not None:
        return str(read_json(manifest)["weights_sha256"])
    return _weights_of({path.name: sha256_of(path) for path in read_folder(folder).files})


def _weights_of(files: Mapping[str, str]) -> str:
    weights = {name: digest for name, digest in files.items() if name.endswith((".safetensors", ".bin"))}
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes, flat; NaNs and negative zeros stay what they are."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def sha256_of(path: Path) -> str:
    """Return a file's sha256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _file_of(source: str | Path, name: str) -> Path | None:
    """Return a file of a folder or Hub id, or `None` when it has none of that name."""
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise ConversionError(
            f"{source}: found neither a folder nor a Hub model there ({first_line(error)})"
        ) from None
    return None if found is None else Path(found)


def first_line(error: Exception) -> str:
    """Return an error's first line, or its kind when it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file.

    Raises:
        ConversionError: it is missing or not JSON.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConversionError(f"{path}: no readable JSON ({first_line(error)}). Copy or download it again.") from None


def _safetensors_names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as weights:
            return list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{path}: found no whole safetensors file ({first_line(error)}). Copy or download it again."
        ) from None


def _safe_tensor(path: Path, name: str) -> torch.Tensor:
    # Opened anew for each tensor: pages of a file that stays open would count as memory in use.
    with safe_open(path, framework="pt") as weights:
        return weights.get_tensor(name)


def _tensor_of(opened: Callable[[Path], Source], path: Path, name: str) -> torch.Tensor:
    return opened(path).loaders[name]()

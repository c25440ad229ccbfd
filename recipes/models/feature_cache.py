# SPDX-License-Identifier: Apache-2.0
"""A cache of what the frozen vision tower makes of images: computed once, then read from memory-mapped files.

    cache.json               everything that decides on the features
    shard-....safetensors    features of some images each, by the hashes of their files' contents
    files.json               which image files were looked at, so that unchanged ones are not read again

A cache serves one tower in one number format behind one preprocessing; everything else is refused. Then cached
features equal live ones bit for bit, and training, prediction and any number of adapters share them. The transform of
images is deterministic in this project: one set of features an image is all there is.

Differs: a tower in float32 computes in 16 bits under autocast; cached features are those without autocast.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import PIL
import torch

from ..data import images as image_reading
from ..devices import default_dtype
from ..errors import PeFoMedError
from .feature_shards import find_shards
from .image_keys import ImageKeys, short_hash
from .towers import describe_tower, load_tower

MANIFEST, FILES = "cache.json", "files.json"
_READERS = ("images.py", "dicom.py", "dicom_tones.py", "nifti.py", "windows.py")
# What an image processor says about itself, and not about pixels.
_IDLE_SETTINGS = ("auto_map", "processor_class")


class FeatureCache:
    """Cached features of a vision tower; see [`FeatureCache.open`].

    Threads may share one, and data loaders' workers take a copy that opens the files anew.
    """

    def __init__(self, folder: Path, described: dict[str, Any], image_keys: ImageKeys):
        whole, damaged = find_shards(folder, cache_id(described))
        if damaged:
            raise PeFoMedError(
                f"{folder}: {len(damaged)} shards are torn or of another cache, such as {damaged[0].name}; "
                "`pefomed features` with the same --out throws them away and computes them again"
            )
        self.folder = folder
        self.image_keys = image_keys
        self._shards = whole
        self._places = {key: (number, row) for number, shard in enumerate(whole) for row, key in enumerate(shard.keys)}
        self._mapped: dict[int, torch.Tensor] = {}

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], model: Any, image_processor: Any, dtype: torch.dtype | None = None
    ) -> FeatureCache:
        """Open a cache that `pefomed features` wrote, also on a read-only disk.

        Args:
            model: the model that the features are for, with or without its tower in memory, or its base's folder.
            image_processor: the preprocessing in front of the tower.
            dtype: the tower's number format where `model` is a folder; the device's best by default.

        Raises:
            PeFoMedError: there is no cache, a shard is torn, or the features are of another tower or preprocessing;
                the text names what differs.
        """
        folder = Path(folder)
        if isinstance(model, (str, os.PathLike)):
            model = load_tower(Path(model), dtype or default_dtype())
        described = describe(model, image_processor)
        check_manifest(folder, described)
        image_keys = ImageKeys()
        image_keys.load(folder / FILES)
        return cls(folder, described, image_keys)

    def features(self, images: Sequence[str | os.PathLike[str]]) -> torch.Tensor:
        """Return features of shape `(images, patches, width)`, in the tower's number format.

        They stand in for pixels as `mm_encoder_outputs={"image": {"last_hidden_state": features}}`.

        Args:
            images: paths, or `/folder/file.parquet#ROW` for images in Parquet files.

        Raises:
            PeFoMedError: an image is not in the cache, or its file is missing.
        """
        places = [self._places.get(self.image_keys.key(image)) for image in images]
        if None in places:
            raise PeFoMedError(
                f"{os.fspath(images[places.index(None)])}: this image, as it is now, is not in the feature cache "
                f"{self.folder}; compute it with `pefomed features` and the same --out"
            )
        return torch.stack([self._features_of(shard)[row] for shard, row in places])  # type: ignore[misc]

    def missing(self, images: Iterable[str | os.PathLike[str]]) -> list[str]:
        """Return the images of these that are not in the cache, each once."""
        names = dict.fromkeys(os.fspath(image) for image in images)
        return [name for name in names if name not in self]

    def __contains__(self, image: str | os.PathLike[str]) -> bool:
        return self.image_keys.key(image) in self._places

    def __len__(self) -> int:
        return len(self._places)

    def _features_of(self, shard: int) -> torch.Tensor:
        if shard not in self._mapped:
            self._mapped[shard] = self._shards[shard].features()
        return self._mapped[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}  # a mapped tensor would be pickled with all its values


def describe(model: Any, image_processor: Any, device: str = "") -> dict[str, Any]:
    """Return everything that decides on the features of an image file, by names that errors use.

    Args:
        device: `cuda` or `cpu`, where the tower computes; by default, where it would on this machine.
    """
    settings = {name: value for name, value in image_processor.to_dict().items() if name not in _IDLE_SETTINGS}
    readers = [Path(image_reading.__file__).with_name(name).read_bytes() for name in _READERS]
    described = describe_tower(model) | {
        "device": device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "preprocessing": settings,
        "image reading": short_hash(b"".join(readers)),
        "Pillow": PIL.__version__,
    }
    return json.loads(json.dumps(described))  # tuples and enums as they come back from a file


def cache_id(described: dict[str, Any]) -> str:
    """Return what a cache's shards are marked with."""
    return short_hash(json.dumps(described, sort_keys=True).encode())


def check_manifest(folder: Path, expected: dict[str, Any]) -> None:
    """Compare what a cache says about its features with what is expected of them.

    Raises:
        PeFoMedError: there is no cache, or it holds other features.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PeFoMedError(
            f"{folder}: no feature cache there ({MANIFEST} is missing); write one with `pefomed features`"
        ) from None
    except (OSError, ValueError) as error:
        raise PeFoMedError(f"{folder / MANIFEST}: cannot be read ({error}); write the cache anew") from None
    differing = [name for name in expected if not isinstance(found, dict) or found.get(name) != expected[name]]
    if differing:
        known = found if isinstance(found, dict) else {}
        told = "; ".join(_difference(name, known.get(name), expected[name]) for name in differing)
        raise PeFoMedError(
            f"{folder}: these features were computed with other {' and other '.join(differing)} ({told}). Write a "
            "cache for this model into another folder with `pefomed features`."
        )


def _difference(name: str, found: Any, expected: Any) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        return "; ".join(f"{key}: found {found.get(key)}, expected {expected.get(key)}" for key in keys)
    return f"{name}: found {_short(found)}, expected {_short(expected)}"


def _short(value: Any) -> str:
    return str(value)[:12]

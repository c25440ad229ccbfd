# SPDX-License-Identifier: Apache-2.0
"""What the tests of feature caches share: a tiny base, images of every kind, and a cache of them. Read only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes.data.parquet_images import parquet_reference
from pefomed_recipes.models.feature_building import build_features
from pefomed_recipes.records import Sample

from ..data.fixtures.dicom_files import RAMP, dicom_of, encoded
from ..data.fixtures.parquet import write_hub_parquet
from ..modeling.tiny import draw_image, save_tiny_base


def samples_about(images: Sequence[str | Path]) -> list[Sample]:
    """Two questions about each image."""
    return [
        Sample(f"{image}-{number}", "vqa", [str(image)], "Is there a mass?", ["no"])
        for image in images
        for number in range(2)
    ]


def draw_pngs(folder: Path, count: int, first: int = 0) -> list[str]:
    """Write `count` different images."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        draw_image(number).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(first, first + count)]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model folder."""
    return save_tiny_base(tmp_path_factory.mktemp("features") / "base")


@pytest.fixture(scope="session")
def model(base_folder: Path) -> PeFoMedForConditionalGeneration:
    """The base in float32."""
    return PeFoMedForConditionalGeneration.from_pretrained(base_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def processor(base_folder: Path) -> PeFoMedProcessor:
    """The base's processor."""
    return PeFoMedProcessor.from_pretrained(base_folder)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Images of every kind: PNG, JPEG, 16-bit grey, DICOM, NIfTI, and one inside a Parquet file."""
    folder = tmp_path_factory.mktemp("images")
    found = draw_pngs(folder, 10)
    draw_image(50).save(folder / "photo.jpg")
    Image.fromarray((RAMP * 13).astype(np.uint16)).save(folder / "deep.png")
    (folder / "slice.dcm").write_bytes(encoded(dicom_of(RAMP)))
    volume = np.random.default_rng(0).integers(0, 900, (20, 24, 12)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "volume.nii.gz")
    parquet = write_hub_parquet(folder / "rows.parquet", [("a", "q", "a"), ("b", "q", "a"), ("c", "q", "a")])
    found += [str(folder / name) for name in ("photo.jpg", "deep.png", "slice.dcm", "volume.nii.gz")]
    return [*found, parquet_reference(parquet, 2)]


@pytest.fixture(scope="session")
def cache_folder(base_folder: Path, images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of all images, in float32."""
    folder = tmp_path_factory.mktemp("cache") / "features"
    build_features(base_folder, samples_about(images), folder, dtype=torch.float32)
    return folder

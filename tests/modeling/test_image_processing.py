# SPDX-License-Identifier: Apache-2.0
"""Image preprocessing against an independent computation with Pillow and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_pefomed import PeFoMedImageProcessor

from .tiny import draw_image

# Source: OpenAI's CLIP, to eight decimals as in the released code
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def preprocess(image: Image.Image, size: int = 448) -> np.ndarray:
    """Squash to a square, scale to 0..1, normalise, channels first; in float64."""
    pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)


def pixel_values(*images: Image.Image, **settings: object) -> torch.Tensor:
    return PeFoMedImageProcessor(**settings)(list(images), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("size", [(448, 448), (600, 300), (97, 233), (3, 5)])
def test_pixels_equal_an_independent_computation(size: tuple[int, int]) -> None:
    image = draw_image(0, size=(64, 48)).resize(size)
    got = pixel_values(image)
    assert got.shape == (1, 3, 448, 448)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got[0].numpy(), preprocess(image), rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = draw_image(1).convert(mode)
    np.testing.assert_allclose(pixel_values(image)[0].numpy(), preprocess(image), rtol=0, atol=2e-6)


def test_grey_images_have_three_equal_channels() -> None:
    values = pixel_values(draw_image(1).convert("L"))[0].numpy()
    raw = values * STD[:, None, None] + MEAN[:, None, None]
    np.testing.assert_allclose(raw[0], raw[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(raw[0], raw[2], rtol=0, atol=1e-6)
    assert raw.std() > 0.05


def test_the_same_image_always_gives_the_same_pixels() -> None:
    image = draw_image(2)
    processor = PeFoMedImageProcessor()
    first = processor([image], return_tensors="pt")["pixel_values"]
    assert all(torch.equal(first, processor([image], return_tensors="pt")["pixel_values"]) for _ in range(5))


def test_left_and_right_are_never_exchanged() -> None:
    image = draw_image(2, size=(64, 48))
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    straight, mirror = pixel_values(image), pixel_values(mirrored)
    torch.testing.assert_close(mirror, straight.flip(-1), rtol=0, atol=0.03)  # one grey level: resampling rounds
    assert (straight - straight.flip(-1)).abs().max() > 1


def test_images_of_different_sizes_share_a_batch_in_their_order() -> None:
    images = [draw_image(0), draw_image(1, size=(16, 96)), draw_image(2)]
    together = pixel_values(*images)
    assert together.shape == (3, 3, 448, 448)
    assert all(torch.equal(together[at], pixel_values(image)[0]) for at, image in enumerate(images))


def test_other_sizes_are_a_setting() -> None:
    image = draw_image(0)
    got = pixel_values(image, size={"height": 32, "width": 32})
    np.testing.assert_allclose(got[0].numpy(), preprocess(image, size=32), rtol=0, atol=2e-6)


def test_the_image_that_was_passed_in_is_left_alone() -> None:
    image = draw_image(0)
    before = np.asarray(image).copy()
    pixel_values(image)
    assert np.array_equal(np.asarray(image), before)

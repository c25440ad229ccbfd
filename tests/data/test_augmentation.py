# SPDX-License-Identifier: Apache-2.0
"""Changed training images keep their answers: sides, places and what can be seen."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pefomed_recipes.data.augmentation import augment


def with_spot(x: int, y: int) -> Image.Image:
    """A dark picture with one bright spot."""
    pixels = np.full((96, 128, 3), 30, np.uint8)
    pixels[y - 6 : y + 6, x - 6 : x + 6] = 220
    return Image.fromarray(pixels)


def centre(image: Image.Image) -> tuple[float, float]:
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 128)
    return float(columns.mean()), float(rows.mean())


@pytest.mark.parametrize(("x", "y"), [(32, 24), (96, 24), (32, 72), (96, 72)])
def test_a_spot_stays_on_its_side_in_every_draw(x, y):
    for number in range(200):
        changed_x, changed_y = centre(augment(with_spot(x, y), f"0/{number}/a.png"))
        assert (changed_x < 64) == (x < 64) and (changed_y < 48) == (y < 48)


def test_a_mirrored_image_would_change_the_answer():
    mirrored = with_spot(32, 24).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert (centre(mirrored)[0] < 64) != (centre(with_spot(32, 24))[0] < 64)


def test_boxes_keep_their_places():
    for number in range(20):
        assert centre(augment(with_spot(32, 24), str(number), keep_places=True)) == centre(with_spot(32, 24))


def test_the_key_alone_decides_the_picture():
    image = with_spot(40, 40)
    pictures = [augment(image, key).tobytes() for key in ("0/1/a", "0/1/a", "0/2/a", "1/1/a", "0/1/b")]
    assert pictures[0] == pictures[1] and len(set(pictures)) == 4
    assert augment(image, "0/1/a").size == image.size and augment(image, "0/1/a").mode == "RGB"

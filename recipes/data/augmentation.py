# SPDX-License-Identifier: Apache-2.0
"""Slight random changes of training images that leave every answer true.

Off by default. Nothing here mirrors or turns an image far: left stays left, up stays up. Evaluation never changes an
image.

Differs: the released code crops down to half of the image and mirrors every second one, at evaluation as well; answers
about sides are then wrong.
"""

from __future__ import annotations

import hashlib
import math
import random
from typing import Literal

from PIL import Image, ImageEnhance

Augmentation = Literal["none", "safe"]

MIN_SHARE = 0.85  # of the image's area that a cut keeps
MAX_TURN_DEGREES = 5.0
TONES = (0.9, 1.1)  # factors of brightness and of contrast


def augment(image: Image.Image, key: str, *, keep_places: bool = False) -> Image.Image:
    """Return an RGB image of the same size: cut, turned and toned a little, by draws that `key` decides.

    Args:
        image: RGB.
        key: such as seed, epoch and image: the same one makes the same picture in every process.
        keep_places: leave everything where it is, for answers that are boxes.
    """
    draws = random.Random(hashlib.sha256(key.encode()).digest())
    if not keep_places:
        turn = draws.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES)
        share = math.sqrt(draws.uniform(MIN_SHARE, 1))
        width, height = share * image.width, share * image.height
        left, top = draws.uniform(0, image.width - width), draws.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        image = image.rotate(turn, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC, box)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        image = enhance(image).enhance(draws.uniform(*TONES))
    return image

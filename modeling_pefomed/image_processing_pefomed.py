# SPDX-License-Identifier: Apache-2.0
"""Image preprocessing of PeFoMed: one deterministic transform for training and evaluation, without torchvision."""

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling


class PeFoMedImageProcessor(PilBackend):
    r"""
    Turns images into `pixel_values` of shape `(images, 3, 448, 448)`, float32: RGB, bicubic resize to a square, scaled
    to 0..1, normalised with CLIP's mean and standard deviation.

    Source: the released code's *evaluation* transform. Differs: the released evaluation configs name the training
    transform (random crop and horizontal flip), which mirrors anatomy; no random transform exists here.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 448, "width": 448}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True


__all__ = ["PeFoMedImageProcessor"]

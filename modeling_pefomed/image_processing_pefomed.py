# SPDX-License-Identifier: Apache-2.0
"""Image preprocessing of PeFoMed: one deterministic transform for training and evaluation, without torchvision."""

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling


class PeFoMedImageProcessor(PilBackend):
    r"""
    Turns images into `pixel_values` of shape `(images, 3, 448, 448)`, float32: RGB, bicubic resize to a square, scaled
    to 0..1, normalised with CLIP's mean and standard deviation.

    Training takes the same way in two parts: [`~PeFoMedImageProcessor.resize_to_bytes`] where images are decoded, and
    [`~PeFoMedImageProcessor.normalize_bytes`] on the device, so that a quarter of the bytes travel.

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

    def resize_to_bytes(self, images):
        """Return the resized images before any arithmetic: `(images, 3, size, size)`, uint8."""
        return self(images, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]

    def normalize_bytes(self, pixels):
        """
        Return `pixel_values` `(N, 3, size, size)`, float32, on the device of `pixels`: bit for bit what the processor
        itself gives.

        Args:
            pixels (`torch.ByteTensor` of shape `(N, 3, size, size)`): from [`~PeFoMedImageProcessor.resize_to_bytes`].
        """
        values = pixels
        if self.do_rescale:
            values = pixels.double() * self.rescale_factor  # in float64, as transformers does; then rounded once
        values = values.float()
        if self.do_normalize:
            mean, std = (values.new_tensor(numbers)[:, None, None] for numbers in (self.image_mean, self.image_std))
            values = (values - mean) / std
        return values


__all__ = ["PeFoMedImageProcessor"]

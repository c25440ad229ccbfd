# SPDX-License-Identifier: Apache-2.0
"""Inputs changed on purpose: what a model answers to them shows what its answers owe to the images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from ..errors import ConfigError, PeFoMedError, did_you_mean
from ..records import CONTROLS, Sample

if TYPE_CHECKING:  # asking an endpoint needs no model library
    from modeling_pefomed import PeFoMedProcessor

BLANK, SHUFFLED, MIRRORED = CONTROLS.values()
SEED = 0

Paths = tuple[str, ...]


def control_in_records(control: str) -> str:
    """Return the name that records keep of a control, given by that or by its short name; "" stays "".

    Raises:
        ConfigError: it is unknown.
    """
    if control and control not in (*CONTROLS, *CONTROLS.values()):
        hint = did_you_mean(control, (*CONTROLS, *CONTROLS.values()))
        raise ConfigError(f"unknown control {control!r}{hint}; expected {', '.join(CONTROLS)}")
    return CONTROLS.get(control, control)


def blank_image(processor: PeFoMedProcessor) -> Image.Image:
    """Return an image that says nothing: uniform, at the mean colour, so that all its pixels are 0 when normalised."""
    size = processor.image_processor.size
    colour = tuple(round(255 * mean) for mean in processor.image_processor.image_mean)
    return Image.new("RGB", (size["width"], size["height"]), colour)


def mirrored(image: Image.Image) -> Image.Image:
    """Return an image with left and right exchanged."""
    return ImageOps.mirror(image)


def images_of_others(samples: Sequence[Sample]) -> dict[Paths, Paths]:
    """Return for each sample's images those of another study, as many; all samples of a study's images share theirs.

    Every image set is given away once. The draw depends on the samples and on nothing else.

    Raises:
        PeFoMedError: some study has more than half of the image sets of its kind, so that no exchange gives all of
            them to others.
    """
    owners = {tuple(sample.image_paths): _owner(sample) for sample in samples}
    others: dict[Paths, Paths] = {}
    for count in sorted({len(paths) for paths in owners}):
        studies: dict[str, list[Paths]] = {}
        for paths, owner in owners.items():
            if len(paths) == count:
                studies.setdefault(owner, []).append(paths)
        groups = [sorted(studies[owner]) for owner in sorted(studies)]
        random.Random(SEED).shuffle(groups)
        groups.sort(key=len, reverse=True)  # stable: those of equal size stay shuffled
        ordered = [paths for group in groups for paths in group]
        shift = len(groups[0])
        if 2 * shift > len(ordered):
            raise PeFoMedError(
                f"{SHUFFLED}: one study has {shift} of the {len(ordered)} sets of {count} image(s); expected at most "
                "half of them, so that each can be shown another study's images. Ask about more studies."
            )
        others |= {paths: ordered[(at + shift) % len(ordered)] for at, paths in enumerate(ordered)}
    return others


def _owner(sample: Sample) -> str:
    """Return what the images of one study have in common: the patient where one is known, so that nobody is shown an
    image of the same patient."""
    return sample.patient_id or sample.study_id or sample.image_id or "\n".join(sample.image_paths)

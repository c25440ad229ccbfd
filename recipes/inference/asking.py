# SPDX-License-Identifier: Apache-2.0
"""From samples to what the model is asked: each distinct question once, its images read while the model works."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from modeling_pefomed import PeFoMedProcessor

from ..data.images import load_image
from ..data.instructions import VqaInstruction, render_instruction
from ..models.feature_cache import FeatureCache
from ..records import Sample
from .controls import BLANK, MIRRORED, SHUFFLED, Paths, blank_image, images_of_others, mirrored
from .requests import Request

# Images decoded at the same time, and image sets read ahead of the model: it need not wait, and memory stays bounded.
READERS, READ_AHEAD = 4, 16


@dataclass
class Asked:
    """One distinct question: the samples that ask it, the images that are shown for them, and the prompt."""

    samples: list[Sample]
    images: Paths
    instruction: str
    prompt: Sequence[int]


class Prompts:
    """What every sample is asked: `instruction` and `sha256` of the prompt's token ids by the sample's id, and the
    token ids by their `sha256`."""

    def __init__(self, processor: PeFoMedProcessor, samples: list[Sample], instruction: VqaInstruction) -> None:
        self.instruction: dict[str, str] = {}
        self.sha256: dict[str, str] = {}
        self.ids: dict[str, Sequence[int]] = {}
        known: dict[tuple[str, str, int], str] = {}
        for sample in samples:
            text = render_instruction(sample, training=False, instruction=instruction)
            wording = (sample.task, text, len(sample.image_paths))
            if wording not in known:
                ids = processor.encode_prompt(text, sample.task, num_images=len(sample.image_paths))
                known[wording] = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
                self.ids[known[wording]] = array("i", ids)
            self.instruction[sample.id], self.sha256[sample.id] = text, known[wording]


def distinct_questions(
    unanswered: list[Sample], samples: list[Sample], prompts: Prompts, control: str
) -> dict[str, Asked]:
    """Return what is to be asked, by the id of its first sample; questions about the same images stand together.

    Decoding is deterministic: what is asked twice is answered once. All blank images look alike.
    """
    others = images_of_others(samples) if control == SHUFFLED else {}
    groups: dict[Paths, dict[str, Asked]] = {}
    for sample in unanswered:
        images: Paths = tuple(sample.image_paths)
        images = ("",) * len(images) if control == BLANK else others.get(images, images)
        sha256 = prompts.sha256[sample.id]
        twins = groups.setdefault(images, {})
        new = Asked([], images, prompts.instruction[sample.id], prompts.ids[sha256])
        twins.setdefault(sha256, new).samples.append(sample)
    return {one.samples[0].id: one for twins in groups.values() for one in twins.values()}


def read_requests(
    asked: dict[str, Asked], control: str, processor: PeFoMedProcessor, features: FeatureCache | None
) -> Iterator[list[Request]]:
    """Yield requests, those about the same images together, while threads read the next images."""
    groups: dict[Paths, list[Asked]] = {}
    for one in asked.values():
        groups.setdefault(one.images, []).append(one)
    blank = blank_image(processor) if control == BLANK else None

    def read(path: str) -> Image.Image | str:
        if features is not None:
            return path
        image = blank or load_image(path)
        return mirrored(image) if control == MIRRORED else image

    with ThreadPoolExecutor(READERS) as pool:
        waiting = iter(groups.items())
        ahead: list[tuple[list[Asked], list[Future[Image.Image | str]]]] = []
        while True:
            for paths, group in islice(waiting, READ_AHEAD - len(ahead)):
                ahead.append((group, [pool.submit(read, path) for path in paths]))
            if not ahead:
                return
            group, reading = ahead.pop(0)
            images = tuple(future.result() for future in reading)
            yield [
                Request(one.samples[0].id, one.samples[0].task, one.instruction, images, prompt=one.prompt)
                for one in group
            ]

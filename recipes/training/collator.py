# SPDX-License-Identifier: Apache-2.0
"""Packed rows: all questions of an image behind one shared prefix, supervised on the answers only.

    tokens        <s> [INST] <Img> image tokens </Img> [vqa] | Is there a mass? [/INST] yes </s> | Which organ? ...
    segment_ids   0  0      0     0            0      0      | 1                1       1   1    | 2 ...
    position_ids  0  1      ...                       P-1    | P                                 | P ...
    labels        -100 ...                                   | -100             -100    yes </s> | -100 ...

The image is encoded, projected and attended to once a row, with the same loss and gradients as one row per question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from modeling_pefomed import PeFoMedProcessor, shared_prefix_length

from ..errors import PeFoMedError
from ..records import Sample

IGNORED = -100


@dataclass
class Segment:
    """One sample as token ids: `prompt` (all before the answer, image tokens included), `answer` and end token."""

    sample_id: str
    prompt: list[int]
    answer: list[int]


def pack_row(segments: list[Segment]) -> dict[str, Any]:
    """Return one packed row: lists `input_ids`, `segment_ids`, `position_ids`, `labels` of equal length.

    Args:
        segments: samples of one task about the same image or images, so that their prompts share the image tokens.
    """
    prefix_length = shared_prefix_length([segment.prompt for segment in segments])
    row: dict[str, Any] = {
        "input_ids": segments[0].prompt[:prefix_length],
        "segment_ids": [0] * prefix_length,
        "position_ids": list(range(prefix_length)),
        "labels": [IGNORED] * prefix_length,
    }
    for number, segment in enumerate(segments, start=1):
        own = segment.prompt[prefix_length:]
        tokens = own + segment.answer
        row["input_ids"] = row["input_ids"] + tokens
        row["segment_ids"] += [number] * len(tokens)
        row["position_ids"] += range(prefix_length, prefix_length + len(tokens))
        row["labels"] += [IGNORED] * len(own) + segment.answer
    return row


def pack_samples(
    samples: Iterable[Sample],
    processor: PeFoMedProcessor,
    instruction: Callable[[Sample], str],
    *,
    max_length: int,
    max_questions_per_image: int,
    seed: int,
    training: bool = False,
) -> Dataset:
    """Return a dataset of packed rows, one image (or image set) each; an image's questions are spread over several
    rows when they are more than `max_questions_per_image` or longer than `max_length` tokens.

    Args:
        instruction: gives a sample's text after the task identifier.
        max_length: tokens of a row.
        seed: of the order of an image's questions.
        training: whether the rows are trained on, for prompts that differ then (`template: released`).

    Raises:
        PeFoMedError: there are no samples, or one sample alone is longer than `max_length`; nothing is ever cut.
    """
    groups: dict[tuple[str, ...], list[tuple[str, Segment]]] = {}
    too_long = []
    for sample in samples:
        images = len(sample.image_paths)
        prompt = processor.encode_prompt(instruction(sample), sample.task, num_images=images, training=training)
        answer = processor.encode_answer(sample.answers[0], training=training)
        if len(prompt) + len(answer) > max_length:
            too_long.append(f"{sample.id} ({len(prompt) + len(answer)} tokens)")
        groups.setdefault((*sample.image_paths, sample.task), []).append(
            (sample.id, Segment(sample.id, prompt, answer))
        )
    if too_long:
        raise PeFoMedError(
            f"{len(too_long)} samples are longer than max_length={max_length} tokens, image tokens included: "
            f"{', '.join(too_long[:5])}{' ...' if len(too_long) > 5 else ''}. Raise max_length or shorten them; "
            "nothing is cut."
        )
    if not groups:
        raise PeFoMedError("The dataset is empty: found 0 samples, expected at least one.")

    rows: list[dict[str, Any]] = []
    for key, members in groups.items():
        # By the sample's id, not by a path: the same data in another folder trains the same adapter.
        random.Random(f"{seed}/{members[0][0]}").shuffle(members)
        rows.extend(
            {
                "image_paths": list(key[:-1]),
                "sample_ids": [segment.sample_id for segment in chunk],
                **(row := pack_row(chunk)),
                "length": len(row["input_ids"]),  # rows of like length share a batch: little padding
            }
            for chunk in _chunks([segment for _, segment in members], max_length, max_questions_per_image)
        )
    return Dataset.from_list(rows)


def _chunks(segments: list[Segment], max_length: int, max_questions: int) -> Iterable[list[Segment]]:
    """Split an image's segments greedily into rows that fit."""
    chunk: list[Segment] = []
    for segment in segments:
        longer = [*chunk, segment]
        if chunk and (len(longer) > max_questions or len(pack_row(longer)["input_ids"]) > max_length):
            yield chunk
            longer = [segment]
        chunk = longer
    yield chunk


class PackedRowCollator:
    """Pads packed rows to a multiple of `pad_to_multiple_of` tokens and loads their images.

    Few distinct lengths matter: on a CPU every new shape costs seconds once.

    Args:
        processor: gives the pad token and the image transform.
        load_image: opens one image path as RGB.
        pad_to_multiple_of: row lengths are rounded up to it.

    Returns (each call):
        `input_ids`, `attention_mask`, `segment_ids`, `position_ids`, `labels` of shape (rows, length), int64, and
        `pixel_values` (images, 3, size, size), float32.
    """

    def __init__(self, processor: PeFoMedProcessor, load_image: Callable[[str | Path], Any], pad_to_multiple_of: int):
        self.processor = processor
        self.load_image = load_image
        self.pad_to_multiple_of = pad_to_multiple_of
        tokenizer = processor.tokenizer
        self.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        # A pad token is its own segment at position 0; where it equals the end token, labels still tell them apart.
        fill = {"input_ids": self.pad_token_id, "segment_ids": -1, "position_ids": 0, "labels": IGNORED}
        batch = {
            name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])
            for name, value in fill.items()
        }
        batch["attention_mask"] = (batch["segment_ids"] >= 0).long()
        images = [self.load_image(path) for row in rows for path in row["image_paths"]]
        batch["pixel_values"] = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return batch

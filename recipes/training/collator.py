# SPDX-License-Identifier: Apache-2.0
"""From packed rows and image files to a batch: padded, or several images in a row, and the images as bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from modeling_pefomed import PeFoMedProcessor

from .packing import IGNORED

COLUMNS = ("input_ids", "segment_ids", "position_ids", "labels")


class ImageFeatures(Protocol):
    """Where the vision tower's outputs are kept."""

    def features(self, paths: Sequence[str]) -> torch.Tensor:
        """Return the tower's output of these images, `(N, patches, width)`."""


class PackedRowCollator:
    """Makes a batch of packed rows: pads them to a multiple of `pad_to_multiple_of` tokens and loads their images.

    Few distinct lengths matter: on a CPU every new shape costs seconds once.

    Args:
        processor: gives the pad token and the image transform.
        load_image: opens one image path as RGB.
        pad_to_multiple_of: row lengths are rounded up to it.
        row_tokens: put the batch's images behind one another in rows of up to so many tokens; by default each has a
            row of its own.
        normalize: `False` leaves the images as bytes, to be normalised on the device.
        features: gives the vision tower's outputs, so that images need not be loaded.
        augment: changes an image of a training row, given what its random draws hang on.

    Returns (each call):
        `input_ids`, `attention_mask`, `segment_ids`, `position_ids`, `labels` of shape (rows, length), int64, with
        `row_tokens` also `image_group_ids`: which of the packed rows a token comes from, -1 for padding. And
        `pixel_values` (images, 3, size, size), float32 or uint8, or else `mm_encoder_outputs`.
    """

    def __init__(
        self,
        processor: PeFoMedProcessor,
        load_image: Callable[[str | Path], Any],
        pad_to_multiple_of: int,
        *,
        row_tokens: int | None = None,
        normalize: bool = True,
        features: ImageFeatures | None = None,
        augment: Callable[[Any, str], Any] | None = None,
    ):
        self.processor = processor
        self.load_image = load_image
        self.pad_to_multiple_of = pad_to_multiple_of
        self.row_tokens, self.normalize, self.features, self.augment = row_tokens, normalize, features, augment
        tokenizer = processor.tokenizer
        self.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        # A pad token is its own segment at position 0; where it equals the end token, labels still tell them apart.
        fill = {"input_ids": self.pad_token_id, "segment_ids": -1, "position_ids": 0, "labels": IGNORED}
        places = [[number] for number in range(len(rows))]
        joined = rows
        if self.row_tokens is not None:
            fill["image_group_ids"] = -1
            places = share_out([len(row["input_ids"]) for row in rows], self.row_tokens)
            joined = [join_rows({number: rows[number] for number in place}) for place in places]
        longest = max(len(row["input_ids"]) for row in joined)
        length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        batch: dict[str, Any] = {
            name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in joined])
            for name, value in fill.items()
        }
        batch["attention_mask"] = (batch["segment_ids"] >= 0).long()
        return batch | self._images([rows[number] for place in places for number in place])

    def _images(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if self.features is not None:
            paths = [path for row in rows for path in row["image_paths"]]
            return {"mm_encoder_outputs": {"image": {"last_hidden_state": self.features.features(paths)}}}
        transform = self.processor.image_processor
        images = [self._load(row, number) for row in rows for number in range(len(row["image_paths"]))]
        pixels = transform.resize_to_bytes(images)
        return {"pixel_values": transform.normalize_bytes(pixels) if self.normalize else pixels}

    def _load(self, row: dict[str, Any], number: int) -> Any:
        image = self.load_image(row["image_paths"][number])
        if self.augment is None or not row["draw"]:
            return image
        return self.augment(image, f"{row['draw']}/{number}")


def join_rows(rows: dict[int, dict[str, Any]]) -> dict[str, list[int]]:
    """Return packed rows behind one another as one, with `image_group_ids` that keep them apart.

    Segments are numbered on from row to row; positions start at 0 in each.

    Args:
        rows: packed rows by their group's id.
    """
    joined: dict[str, list[int]] = {name: [] for name in (*COLUMNS, "image_group_ids")}
    before = 0
    for group, row in rows.items():
        for name in ("input_ids", "position_ids", "labels"):
            joined[name] += row[name]
        joined["segment_ids"] += [number + before if number else 0 for number in row["segment_ids"]]
        joined["image_group_ids"] += [group] * len(row["input_ids"])
        before += max(row["segment_ids"])
    return joined


def share_out(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Return which packed rows stand together, so that the sums of their lengths are few and of like size: at most
    `limit` tokens, or the longest row's.
    """
    limit = max(limit, *lengths)
    count = -(-sum(lengths) // limit)
    while True:
        sums = [0] * count
        places: list[list[int]] = [[] for _ in sums]
        for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
            place = min(range(count), key=sums.__getitem__)
            places[place].append(number)
            sums[place] += lengths[number]
        if max(sums) <= limit:
            return places
        count += 1

# SPDX-License-Identifier: Apache-2.0
"""Packed rows: all questions of an image behind one shared prefix, supervised on the answers only.

    tokens        <s> [INST] <Img> image tokens </Img> [vqa] | Is there a mass? [/INST] yes </s> | Which organ? ...
    segment_ids   0  0      0     0            0      0      | 1                1       1   1    | 2 ...
    position_ids  0  1      ...                       P-1    | P                                 | P ...
    labels        -100 ...                                   | -100             -100    yes </s> | -100 ...

The image is encoded, projected and attended to once a row, with the same loss and gradients as one row per question.
"""

from __future__ import annotations

import copy
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from modeling_pefomed import PeFoMedProcessor, shared_prefix_length

from ..errors import PeFoMedError
from ..records import Sample

IGNORED = -100
EPOCH_STRIDE = 1_000_003  # between the seeds of epochs: those of runs with other seeds lie between
REMEMBERED_PROMPTS = 4096  # requests of captions and reports are few, and questions repeat


@dataclass
class Segment:
    """One sample as token ids: `prompt` (all before the answer, image tokens included), `answer` and end token."""

    sample_id: str
    prompt: list[int]
    answer: list[int]


def pack_row(segments: list[Segment], repeated: Mapping[int, int] | None = None) -> dict[str, Any]:
    """Return one packed row: lists `input_ids`, `segment_ids`, `position_ids`, `labels` of equal length.

    Args:
        segments: samples of one task about the same image or images, so that their prompts share the image tokens.
        repeated: how often a token of the shared prefix stands in the row, where not once: `{image token: 256}` for
            prompts with one image token an image.
    """
    shared = shared_prefix_length([segment.prompt for segment in segments])
    prefix = _repeat(segments[0].prompt[:shared], repeated or {})
    row: dict[str, Any] = {
        "input_ids": prefix,
        "segment_ids": [0] * len(prefix),
        "position_ids": list(range(len(prefix))),
        "labels": [IGNORED] * len(prefix),
    }
    behind = len(prefix)
    for number, segment in enumerate(segments, start=1):
        own = segment.prompt[shared:]
        tokens = own + segment.answer
        row["input_ids"] += tokens
        row["segment_ids"] += [number] * len(tokens)
        row["position_ids"] += range(behind, behind + len(tokens))
        row["labels"] += [IGNORED] * len(own) + segment.answer
    return row


def _repeat(tokens: list[int], repeated: Mapping[int, int]) -> list[int]:
    return [token for token in tokens for _ in range(repeated.get(token, 1))]


class EncodedSamples:
    """Token ids of many samples, a prompt and an answer each, in flat arrays: a tenth of the memory of lists, and
    shared with the data loader's processes."""

    def __init__(self) -> None:
        self._tokens, self._bounds = array("i"), array("q", [0])

    def append(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Add one sample behind the others."""
        for tokens in (prompt, answer):
            self._tokens.extend(tokens)
            self._bounds.append(len(self._tokens))

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        """Return prompt and answer of a sample."""
        start, middle, end = self._bounds[2 * index : 2 * index + 3]
        return self._tokens[start:middle].tolist(), self._tokens[middle:end].tolist()


@dataclass
class ImageGroup:
    """The samples about one image or set of images, by their numbers, and how many of them a row holds at most."""

    image_paths: list[str]
    source: str
    samples: list[int]
    per_row: int

    @property
    def counts(self) -> list[int]:
        """The samples of each row: all are full but the last."""
        return [min(self.per_row, len(self.samples) - at) for at in range(0, len(self.samples), self.per_row)]


class PackedRows(Dataset[dict[str, Any]]):
    """Packed rows, each an image (or image set) with some of its questions, built when they are read.

    An image has as many rows as its questions need. Each epoch spreads them anew: an epoch holds every question once,
    and which of them share a row changes. `rows[epoch, number]` depends on the seed, the epoch and the number alone,
    so that a continued run sees what an uninterrupted one sees; `rows[number]` is of epoch 0.

    Attributes:
        lengths: tokens of each row, int32; of an image with several rows, those of as many mean questions.
        images: which image (or image set) each row is about, int32.
        longest: tokens and id of the longest sample.
    """

    def __init__(
        self,
        groups: list[ImageGroup],
        lengths: list[int],
        encoded: EncodedSamples,
        sample_ids: list[str],
        longest: tuple[int, str],
        repeated: Mapping[int, int],
        seed: int,
        training: bool,
    ) -> None:
        self._training = training
        self._groups, self._encoded, self._sample_ids = groups, encoded, sample_ids
        self._repeated, self._seed, self.longest = repeated, seed, longest
        counts = [len(group.counts) for group in groups]
        self._group = np.repeat(np.arange(len(groups), dtype=np.int32), counts)
        self._part = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        self.lengths = np.array(lengths, dtype=np.int32)
        numbers: dict[tuple[str, ...], int] = {}
        image_of = [numbers.setdefault(tuple(group.image_paths), len(numbers)) for group in groups]
        self.images = np.repeat(np.array(image_of, dtype=np.int32), counts)

    @property
    def sources(self) -> list[str]:
        """The data set that each row comes from."""
        return [self._groups[group].source for group in self._group]

    def select(self, numbers: Sequence[int] | np.ndarray) -> PackedRows:
        """Return these rows in this order; one may stand more than once."""
        chosen = copy.copy(self)
        for name in ("_group", "_part", "lengths", "images"):
            setattr(chosen, name, getattr(self, name)[np.asarray(numbers)])
        return chosen

    def longest_first(self) -> PackedRows:
        """Return the rows by length, so that those of a batch need little padding."""
        return self.select(np.argsort(-self.lengths, kind="stable"))

    def __len__(self) -> int:
        return len(self._group)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        group = self._groups[self._group[number]]
        samples = list(group.samples)
        # By the sample's id, not by a path: the same data in another folder trains the same adapter.
        random.Random(f"{self._seed + EPOCH_STRIDE * epoch}/{self._sample_ids[samples[0]]}").shuffle(samples)
        first = self._part[number] * group.per_row
        chosen = samples[first : first + group.per_row]
        segments = [Segment(self._sample_ids[sample], *self._encoded[sample]) for sample in chosen]
        # What random changes of the row's images are drawn by: of training rows only, anew each epoch.
        draw = f"{self._seed}/{epoch}/{self._sample_ids[group.samples[0]]}/{self._part[number]}"
        return {
            "draw": draw if self._training else "",
            "image_paths": group.image_paths,
            "sample_ids": [segment.sample_id for segment in segments],
            **pack_row(segments, self._repeated),
        }


def pack_samples(
    samples: Iterable[Sample],
    processor: PeFoMedProcessor,
    instruction: Callable[[Sample], str],
    *,
    max_length: int,
    max_questions_per_image: int,
    seed: int,
    training: bool = False,
) -> PackedRows:
    """Return packed rows, one image (or image set) each; an image's questions are spread over several rows when they
    are more than `max_questions_per_image`, or might be longer than `max_length` tokens. Each sample is tokenised
    once, with one token for an image.

    Args:
        instruction: gives a sample's text after the task identifier; it stays the same in all epochs.
        max_length: tokens of a row.
        seed: of the order of an image's questions.
        training: whether the rows are trained on, for prompts that differ then (`template: released`).

    Raises:
        PeFoMedError: there are no samples, or one sample alone is longer than `max_length`; nothing is ever cut.
    """
    repeated: dict[Any, int] = {processor.image_token_id: processor.image_seq_length}

    @lru_cache(REMEMBERED_PROMPTS)
    def encode(text: str, task: str, num_images: int) -> list[int]:
        return processor.encode_prompt(text, task, num_images, training=training, expand_images=False)

    encoded, longest = EncodedSamples(), (0, "")
    sample_ids: list[str] = []
    too_long: list[str] = []
    members: dict[tuple[str, ...], tuple[str, list[int]]] = {}
    for sample in samples:
        prompt = encode(instruction(sample), sample.task, len(sample.image_paths))
        answer = processor.encode_answer(sample.answers[0], training=training)
        tokens = len(_repeat(prompt, repeated)) + len(answer)
        longest = max(longest, (tokens, sample.id))
        if tokens > max_length:
            too_long.append(f"{sample.id} ({tokens} tokens)")
        members.setdefault((*sample.image_paths, sample.task), (sample.source, []))[1].append(len(sample_ids))
        encoded.append(prompt, answer)
        sample_ids.append(sample.id)
    if too_long:
        raise PeFoMedError(
            f"{len(too_long)} samples are longer than max_length={max_length} tokens, image tokens included: "
            f"{', '.join(too_long[:5])}{' ...' if len(too_long) > 5 else ''}. Raise max_length or shorten them; "
            "nothing is cut."
        )
    if not members:
        raise PeFoMedError("The dataset is empty: found 0 samples, expected at least one.")

    groups, lengths = [], []
    for key, (source, numbers) in members.items():
        texts = [encoded[number] for number in numbers]
        shared = shared_prefix_length([prompt for prompt, _ in texts])
        prefix = len(_repeat(texts[0][0][:shared], repeated))
        own = [len(prompt) - shared + len(answer) for prompt, answer in texts]
        per_row = min(max_questions_per_image, _how_many_fit(own, max_length - prefix))
        groups.append(ImageGroup(list(key[:-1]), source, numbers, per_row))
        lengths += [prefix + -(-sum(own) * count // len(own)) for count in groups[-1].counts]
    return PackedRows(groups, lengths, encoded, sample_ids, longest, repeated, seed, training)


def _how_many_fit(tokens: list[int], limit: int) -> int:
    """Return how many of these always fit, whichever are chosen: the longest ones do."""
    sums = np.cumsum(sorted(tokens, reverse=True))
    return max(1, int(np.searchsorted(sums, limit, side="right")))

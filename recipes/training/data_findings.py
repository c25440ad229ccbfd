# SPDX-License-Identifier: Apache-2.0
"""What a data set shows of mistakes that spoil a training run. `pefomed data check` looks at images and counts.

Findings count samples and never repeat what one says. Source: the released code cleans, lower-cases and cuts texts,
flips images of left-or-right questions, and lets duplicate ids collapse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from ..answers import SIDES, YES_NO, normalize_answer, normalize_answer_type
from ..data.datasets_index import load_samples
from ..data.instructions import render_instruction
from ..data.reading import DatasetError, MissingSplitError
from ..records import Sample
from .examined import Finding, Subject
from .findings import random_transforms

SPLITS = ("train", "validation", "test")
ENOUGH_TEXTS = 20  # fewer say nothing about how texts were treated
TOKENISED_SAMPLES = 1000  # of each split, at most
# What the released code deletes, and the number of words at which it cuts.
DELETED_MARKS, CUT_WORDS = '.!"()*#:;~', 50


def read_splits(
    dataset: str, data_root: str, task: str, language: str | None
) -> tuple[dict[str, list[Sample]], list[Finding]]:
    """Return the samples of each split that is there, and what cannot be read.

    Raises:
        ConfigError: an unknown data set, task or language.
    """
    splits, problems = {}, []
    for split in SPLITS:
        try:
            splits[split] = load_samples(dataset, data_root, split, task, language=language)
        except MissingSplitError as error:
            if split == "train":
                problems.append(Finding("error", str(error), "a training split", "name the right folder"))
        except DatasetError as error:
            problems.append(Finding("error", str(error), "samples that can be read", "correct these lines"))
    return splits, problems


def check_data(
    splits: Mapping[str, Sequence[Sample]], subject: Subject, max_length: int, answer_limit: int | None
) -> Iterator[Finding]:
    """Yield what is wrong with samples for the model that is examined.

    Args:
        max_length: tokens of a row.
        answer_limit: tokens of the longest answer that is generated for this task.
    """
    yield from check_overlaps(splits)
    samples = [sample for part in splits.values() for sample in part]
    yield from check_answers(samples, flips=bool(random_transforms(subject.transform)))
    yield from check_treatment([answer for s in samples if s.task in ("caption", "report") for answer in s.answers])
    yield from check_lengths(splits, subject, max_length, answer_limit)


def check_overlaps(splits: Mapping[str, Sequence[Sample]]) -> Iterator[Finding]:
    """Yield ids and images that two splits share."""
    for first, second in combinations(splits, 2):
        ids = {sample.id for sample in splits[first]} & {sample.id for sample in splits[second]}
        if ids:
            yield Finding(
                "warning",
                f"{len(ids)} ids of {second} occur in {first}, too",
                "an id for each sample, so that predictions can be told apart",
                "rename them in one of the splits",
            )
        known = {image for sample in splits[first] for image in _images(sample)}
        images = {image for sample in splits[second] for image in _images(sample)}
        if known & images:
            yield Finding(
                "warning",
                f"{len(known & images)} of {len(images)} images of {second} occur in {first}, too",
                "images of one split only: a model may know the others by heart",
                "split by image (pefomed data check --make-split image-disjoint), or report both numbers",
            )


def check_answers(samples: Sequence[Sample], *, flips: bool) -> Iterator[Finding]:
    """Yield what closed answers and sides ask for."""
    closed = [sample for sample in samples if normalize_answer_type(sample.answer_type) == "CLOSED"]
    others = [s for s in closed if not any(normalize_answer(answer) in YES_NO for answer in s.answers)]
    if others:
        yield Finding(
            "note",
            f"{len(others)} of {len(closed)} closed questions are answered otherwise than by yes or no",
            "yes or no, or one of the alternatives that the question names",
            "look at them: an open question counted as closed changes both scores",
        )
    sided = [s for s in samples if set(SIDES) & set(normalize_answer(" ".join([s.instruction, *s.answers])).split())]
    if flips and sided:
        yield Finding(
            "error",
            f"{len(sided)} of {len(samples)} samples speak of left or right, and images are changed at random",
            "images that are never mirrored",
            "remove the random transform from the image processor",
        )


def check_treatment(texts: Sequence[str]) -> Iterator[Finding]:
    """Yield how captions or reports look as if they had been treated before."""
    if len(texts) < ENOUGH_TEXTS:
        return
    advice = "take the texts from their source; nothing here needs them cleaned"
    lengths = [len(text.split()) for text in texts]
    if not any(text != text.lower() for text in texts):
        yield Finding("warning", f"none of {len(texts)} texts has a capital", "texts as they were written", advice)
    if sum(lengths) > 10 * len(texts) and not any(mark in text for text in texts for mark in DELETED_MARKS):
        yield Finding(
            "warning",
            f"none of {len(texts)} texts has a mark such as . or ( in it",
            "texts as they were written: without its point, 2.5 cm becomes 2 5 cm",
            advice,
        )
    if max(lengths) == CUT_WORDS and lengths.count(CUT_WORDS) > len(texts) / 20:
        yield Finding(
            "warning",
            f"{lengths.count(CUT_WORDS)} texts end at word {CUT_WORDS}, and none later",
            "whole texts",
            advice,
        )


def check_lengths(
    splits: Mapping[str, Sequence[Sample]], subject: Subject, max_length: int, answer_limit: int | None
) -> Iterator[Finding]:
    """Yield what is longer than a row or than what is generated, among the first samples of each split."""
    processor, too_long, cut, seen = subject.processor, 0, 0, 0
    for split, samples in splits.items():
        for sample in samples[:TOKENISED_SAMPLES]:
            instruction = render_instruction(sample, training=False)  # the longer wording of questions
            answer = len(processor.encode_answer(sample.answers[0]))
            prompt = len(processor.encode_prompt(instruction, sample.task, num_images=len(sample.image_paths)))
            too_long += split != "test" and prompt + answer > max_length
            cut += answer_limit is not None and answer > answer_limit
            seen += 1
    if too_long:
        yield Finding(
            "error",
            f"{too_long} of {seen} samples are longer than {max_length} tokens, image tokens included",
            "samples that fit into a row: nothing is cut, training refuses them",
            "raise --max-length, or shorten them",
        )
    if cut:
        yield Finding(
            "warning",
            f"{cut} of {seen} answers are longer than the {answer_limit} tokens that are generated",
            "answers that can be given in full",
            "raise max_new_tokens, or shorten them",
        )


def _images(sample: Sample) -> list[str]:
    return [*sample.image_paths, *([sample.image_id] if sample.image_id else [])]

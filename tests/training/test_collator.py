# SPDX-License-Identifier: Apache-2.0
"""Rows and batches: labels on answers only, nothing cut, nothing lost, lengths from a few sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from modeling_pefomed import PeFoMedImageProcessor, PeFoMedProcessor
from pefomed_recipes.data.augmentation import augment
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.records import Sample
from pefomed_recipes.training.collator import PackedRowCollator, share_out
from pefomed_recipes.training.packing import IGNORED, Segment, pack_row, pack_samples

from ..modeling.tiny import IMAGE_SIZE, IMAGE_TOKENS, build_processor, build_tokenizer, draw_image

IMAGES = {f"{seed}.png": draw_image(seed) for seed in range(4)}


def open_image(path: Any) -> Image.Image:
    return IMAGES[str(path)]


def make_samples(per_image: dict[str, int], task: str = "vqa") -> list[Sample]:
    return [
        Sample(f"{image}/{number}", task, [image], f"Is there a mass number {number}?", [f"yes, {number}"])
        for image, count in per_image.items()
        for number in range(count)
    ]


def pack(processor: PeFoMedProcessor, samples: list[Sample], **settings: int) -> list[dict[str, Any]]:
    chosen = {"max_length": 512, "max_questions_per_image": 16, "seed": 0} | settings
    return list(pack_samples(samples, processor, lambda sample: sample.instruction, **chosen))


@pytest.fixture(scope="module")
def processor() -> PeFoMedProcessor:
    """The tiny model's processor."""
    return build_processor()


@pytest.fixture(scope="module")
def processor_where_padding_is_the_end_token() -> PeFoMedProcessor:
    """As many published language models have it."""
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return build_processor(tokenizer)


def segments_of(row: dict[str, Any]) -> dict[int, list[int]]:
    """Positions of each segment in a row."""
    return {
        number: [at for at, segment in enumerate(row["segment_ids"]) if segment == number]
        for number in set(row["segment_ids"])
    }


def test_a_row_holds_the_shared_prefix_once_and_then_each_question() -> None:
    row = pack_row([Segment("a", [1, 9, 9, 2, 3], [50, 0]), Segment("b", [1, 9, 9, 4, 5, 6], [60, 61, 0])])
    assert row == {
        "input_ids": [1, 9, 9] + [2, 3, 50, 0] + [4, 5, 6, 60, 61, 0],
        "segment_ids": [0, 0, 0] + [1] * 4 + [2] * 6,
        "position_ids": [0, 1, 2] + [3, 4, 5, 6] + [3, 4, 5, 6, 7, 8],
        "labels": [-100] * 3 + [-100, -100, 50, 0] + [-100, -100, -100, 60, 61, 0],
    }


def test_labels_cover_only_the_answer_and_its_end_token(processor: PeFoMedProcessor) -> None:
    samples = {sample.id: sample for sample in make_samples({"0.png": 3, "1.png": 1})}
    for row in pack(processor, list(samples.values())):
        positions = segments_of(row)
        assert all(row["labels"][at] == IGNORED for at in positions[0])
        for number, sample_id in enumerate(row["sample_ids"], start=1):
            labels = [row["labels"][at] for at in positions[number]]
            answer = processor.encode_answer(samples[sample_id].answers[0])
            assert labels == [IGNORED] * (len(labels) - len(answer)) + answer
            assert labels[0] == IGNORED, "the first token of a segment would be predicted by the one before it"
            assert [row["input_ids"][at] for at in positions[number]][-len(answer) :] == answer


def test_prefix_and_segment_make_the_whole_prompt(processor: PeFoMedProcessor) -> None:
    samples = {sample.id: sample for sample in make_samples({"0.png": 3})}
    [row] = pack(processor, list(samples.values()))
    positions = segments_of(row)
    assert row["input_ids"].count(processor.image_token_id) == IMAGE_TOKENS
    for number, sample_id in enumerate(row["sample_ids"], start=1):
        sample = samples[sample_id]
        whole = positions[0] + positions[number]
        expected = processor.encode_prompt(sample.instruction, "vqa") + processor.encode_answer(sample.answers[0])
        assert [row["input_ids"][at] for at in whole] == expected
        assert [row["position_ids"][at] for at in whole] == list(range(len(expected)))


@pytest.mark.parametrize("most", [1, 2, 3, 16])
@pytest.mark.parametrize("length", [60, 100, 512])
def test_every_sample_is_in_exactly_one_row_and_no_row_is_too_long(
    processor: PeFoMedProcessor, most: int, length: int
) -> None:
    samples = make_samples({"0.png": 7, "1.png": 1, "2.png": 4})
    rows = pack(processor, samples, max_questions_per_image=most, max_length=length)
    assert Counter(name for row in rows for name in row["sample_ids"]) == Counter(sample.id for sample in samples)
    for row in rows:
        assert len(row["sample_ids"]) <= most
        assert len(row["input_ids"]) <= length
        assert {name.partition("/")[0] for name in row["sample_ids"]} == set(row["image_paths"])
    if length == 512:
        assert len(rows) == sum(-(-count // most) for count in (7, 1, 4))


def test_tasks_and_image_sets_never_share_a_row(processor: PeFoMedProcessor) -> None:
    samples = make_samples({"0.png": 2}) + [
        Sample("report", "report", ["0.png"], "Write the report.", ["normal"]),
        Sample("pair", "vqa", ["0.png", "1.png"], "Compare.", ["equal"]),
        Sample("pair, other order", "vqa", ["1.png", "0.png"], "Compare.", ["equal"]),
    ]
    rows = pack(processor, samples)
    found = sorted((tuple(row["image_paths"]), len(row["sample_ids"])) for row in rows)
    assert found == [(("0.png",), 1), (("0.png",), 2), (("0.png", "1.png"), 1), (("1.png", "0.png"), 1)]
    for row in rows:
        assert row["input_ids"].count(processor.image_token_id) == IMAGE_TOKENS * len(row["image_paths"])


def test_each_epoch_asks_every_question_once_and_spreads_them_anew(
    processor: PeFoMedProcessor,
) -> None:
    samples = make_samples({"0.png": 17, "1.png": 1, "2.png": 4})
    settings = {"max_length": 150, "max_questions_per_image": 8, "seed": 0}
    rows = pack_samples(samples, processor, lambda sample: sample.instruction, **settings)
    again = pack_samples(samples, processor, lambda sample: sample.instruction, **settings)
    companies = []
    for epoch in (0, 1, 2):
        read = [rows[epoch, number] for number in range(len(rows))]
        assert sorted(name for row in read for name in row["sample_ids"]) == sorted(sample.id for sample in samples)
        assert max(len(row["input_ids"]) for row in read) <= 150
        # a row depends on nothing that was read before
        assert [again[epoch, number] for number in reversed(range(len(rows)))] == read[::-1]
        companies.append({frozenset(row["sample_ids"]) for row in read if "0.png" in row["image_paths"]})
    assert companies[0] != companies[1] != companies[2]
    sizes = [len(row["sample_ids"]) for row in rows if "0.png" in row["image_paths"]]
    assert sizes == [8, 8, 1]
    assert rows[0] == rows[0, 0]


def test_lengths_and_images_of_rows_are_known_before_they_are_built(processor: PeFoMedProcessor) -> None:
    samples = make_samples({"0.png": 16, "1.png": 2}) + [Sample("x", "report", ["0.png"], "Report.", ["normal"])]
    rows = pack_samples(
        samples, processor, lambda sample: sample.instruction, max_length=512, max_questions_per_image=8, seed=0
    )
    built = [len(row["input_ids"]) for row in rows]
    assert abs(rows.lengths - built).max() <= 3  # of an image with several rows, their mean
    assert [built[row] for row in (2, 3)] == rows.lengths[2:].tolist()
    assert rows.images.tolist() == [0, 0, 1, 0]
    ordered = rows.longest_first()
    assert ordered.lengths.tolist() == sorted(rows.lengths.tolist(), reverse=True)
    assert [row["sample_ids"] for row in rows.select([3, 3, 2])] == [rows[n]["sample_ids"] for n in (3, 3, 2)]
    whole = [processor.encode_prompt(s.instruction, s.task) + processor.encode_answer(s.answers[0]) for s in samples]
    assert rows.longest[0] == max(map(len, whole))


def test_the_order_of_questions_depends_on_the_seed_alone(processor: PeFoMedProcessor) -> None:
    samples = make_samples({"0.png": 8})
    orders = [pack(processor, samples, seed=seed)[0]["sample_ids"] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_the_order_of_questions_is_the_same_wherever_the_folder_lies(processor: PeFoMedProcessor) -> None:
    here = make_samples({"0.png": 8, "1.png": 8})
    there = [replace(sample, image_paths=[f"/elsewhere/{sample.image_paths[0]}"]) for sample in here]
    first, second = (pack(processor, samples) for samples in (here, there))
    assert [row["sample_ids"] for row in first] == [row["sample_ids"] for row in second]
    assert [row["input_ids"] for row in first] == [row["input_ids"] for row in second]


def test_samples_that_are_too_long_are_named_and_nothing_is_cut(processor: PeFoMedProcessor) -> None:
    samples = make_samples({"0.png": 2}) + [Sample("the long one", "vqa", ["1.png"], "Is it? " * 50, ["yes"])]
    length = len(processor.encode_prompt(samples[-1].instruction, "vqa") + processor.encode_answer("yes"))
    with pytest.raises(PeFoMedError, match=rf"1 samples.*max_length={length - 1}.*the long one \({length} tokens\)"):
        pack(processor, samples, max_length=length - 1)
    assert sum(len(row["sample_ids"]) for row in pack(processor, samples, max_length=length)) == 3


def test_rows_to_train_on_have_the_form_for_training() -> None:
    processor = build_processor()
    processor.set_template("released")
    samples = [Sample("1", "vqa", ["0.png"], "Is there a mass?", ["A mass: 2.5 cm."])]
    texts = [
        processor.tokenizer.decode(
            pack_samples(
                samples,
                processor,
                lambda sample: sample.instruction,
                max_length=512,
                max_questions_per_image=1,
                seed=0,
                training=training,
            )[0]["input_ids"]
        ).replace("<ImageHere>", "@")
        for training in (True, False)
    ]
    assert texts == [
        "<s>[INST] <img>@@@@</img> [vqa] is there a mass? [/INST] a mass 2 5 cm</s>",
        "<s><s>[INST] <Img>@@@@</Img> [vqa] is there a mass? [/INST] A mass: 2.5 cm.</s>",
    ]


def test_an_empty_dataset_is_refused(processor: PeFoMedProcessor) -> None:
    with pytest.raises(PeFoMedError, match="dataset is empty"):
        pack(processor, [])


@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_batches_are_padded_to_a_multiple(processor: PeFoMedProcessor, multiple: int) -> None:
    rows = pack(processor, make_samples({"0.png": 3, "1.png": 1}))
    batch = PackedRowCollator(processor, open_image, multiple)(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    length = batch["input_ids"].shape[1]
    assert longest <= length < longest + multiple and length % multiple == 0
    for at, row in enumerate(rows):
        size = len(row["input_ids"])
        for name in ("input_ids", "segment_ids", "position_ids", "labels"):
            assert batch[name].dtype == torch.int64
            assert batch[name][at, :size].tolist() == row[name]
        padding = {name: set(batch[name][at, size:].tolist()) for name in ("input_ids", "segment_ids", "labels")}
        assert size == length or padding == {
            "input_ids": {processor.tokenizer.pad_token_id},
            "segment_ids": {-1},
            "labels": {IGNORED},
        }
        assert batch["attention_mask"][at].tolist() == [1] * size + [0] * (length - size)


def test_images_stand_in_the_order_of_their_rows(processor: PeFoMedProcessor) -> None:
    samples = [
        Sample("one", "vqa", ["2.png"], "Is it?", ["yes"]),
        Sample("two", "vqa", ["1.png", "3.png"], "Compare.", ["equal"]),
    ]
    rows = pack(processor, samples)
    batch = PackedRowCollator(processor, open_image, 8)(rows)
    assert batch["pixel_values"].shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    for at, path in enumerate(path for row in rows for path in row["image_paths"]):
        alone = processor.image_processor([IMAGES[path]], return_tensors="pt")["pixel_values"][0]
        assert torch.equal(batch["pixel_values"][at], alone)


def test_the_end_token_is_supervised_where_it_is_also_the_padding(
    processor_where_padding_is_the_end_token: PeFoMedProcessor,
) -> None:
    processor = processor_where_padding_is_the_end_token
    eos = processor.tokenizer.eos_token_id
    assert processor.tokenizer.pad_token_id == eos
    rows = pack(processor, make_samples({"0.png": 3, "1.png": 1}))
    batch = PackedRowCollator(processor, open_image, 64)(rows)
    assert (batch["labels"] == eos).sum(dim=1).tolist() == [len(row["sample_ids"]) for row in rows]
    assert ((batch["input_ids"] == eos) & (batch["attention_mask"] == 0) & (batch["labels"] != IGNORED)).sum() == 0
    assert ((batch["input_ids"] == eos) & (batch["attention_mask"] == 1)).sum() == len(make_samples({"0.png": 4}))


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    processor = build_processor(tokenizer)
    rows = pack(processor, make_samples({"0.png": 3, "1.png": 1}))
    batch = PackedRowCollator(processor, open_image, 64)(rows)
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {tokenizer.eos_token_id}
    assert (batch["labels"] == tokenizer.eos_token_id).sum() == 4


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_bytes_that_are_normalised_later_equal_what_the_processor_gives(mode: str) -> None:
    every = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode)
    for size in (16, 40):
        transform = PeFoMedImageProcessor(size={"height": size, "width": size})
        pixels = transform.resize_to_bytes([every, draw_image(0).convert(mode)])
        assert pixels.dtype == torch.uint8 and pixels.shape == (2, 3, size, size)
        whole = transform([every, draw_image(0).convert(mode)], return_tensors="pt")["pixel_values"]
        assert torch.equal(transform.normalize_bytes(pixels), whole)
    assert len(transform.resize_to_bytes([every]).unique()) > 200
    plain = PeFoMedImageProcessor(do_normalize=False)
    expected = plain([every], return_tensors="pt")["pixel_values"]
    assert torch.equal(plain.normalize_bytes(plain.resize_to_bytes([every])), expected)


def test_images_can_stay_bytes(processor: PeFoMedProcessor) -> None:
    rows = pack(processor, make_samples({"0.png": 3, "1.png": 1}))
    later = PackedRowCollator(processor, open_image, 64, normalize=False)(rows)["pixel_values"]
    at_once = PackedRowCollator(processor, open_image, 64)(rows)["pixel_values"]
    assert later.dtype == torch.uint8
    assert torch.equal(processor.image_processor.normalize_bytes(later), at_once)


def test_an_image_is_opened_once_for_all_its_questions(processor: PeFoMedProcessor) -> None:
    opened: list[str] = []
    PackedRowCollator(processor, lambda path: opened.append(str(path)) or open_image(path), 64)(
        pack(processor, make_samples({"0.png": 7, "1.png": 3}))
    )
    assert sorted(opened) == ["0.png", "1.png"]


def test_images_of_a_row_stand_in_the_order_of_their_tokens(processor: PeFoMedProcessor) -> None:
    rows = pack(processor, make_samples({"0.png": 1, "1.png": 6, "2.png": 2, "3.png": 3}))
    apart = PackedRowCollator(processor, open_image, 64)(rows)["pixel_values"]
    batch = PackedRowCollator(processor, open_image, 8, row_tokens=160)(rows)
    assert 1 < len(batch["input_ids"]) < len(rows)
    groups = batch["image_group_ids"]
    assert torch.equal(groups >= 0, batch["attention_mask"].bool())
    images = groups[batch["input_ids"] == processor.image_token_id][::IMAGE_TOKENS]
    assert sorted(images.tolist()) == [0, 1, 2, 3]
    assert all(torch.equal(batch["pixel_values"][at], apart[number]) for at, number in enumerate(images))
    for number, row in enumerate(rows):
        mine = groups == number
        for name in ("input_ids", "position_ids", "labels"):
            assert batch[name][mine].tolist() == row[name]
        assert batch["segment_ids"][mine].unique().numel() == len(row["sample_ids"]) + 1
    # a segment's number occurs once in a row
    for segments, group in zip(batch["segment_ids"], groups, strict=True):
        assert all(group[segments == segment].unique().numel() == 1 for segment in segments[segments > 0].unique())


@pytest.mark.parametrize("limit", [10, 100, 137, 1000])
def test_rows_are_shared_out_whole_within_the_limit_and_evenly(limit: int) -> None:
    lengths = [13, 99, 42, 42, 7, 60, 100, 1, 35]
    places = share_out(lengths, limit)
    sums = [sum(lengths[number] for number in place) for place in places]
    assert sorted(number for place in places for number in place) == list(range(len(lengths)))
    assert max(sums) <= max(limit, 100)
    assert len(places) <= -(-sum(lengths) // max(limit, 100)) + 1


def test_features_stand_in_for_images(processor: PeFoMedProcessor) -> None:
    class Features:
        def features(self, paths: Any) -> torch.Tensor:
            return torch.tensor([[[float(path[0])]] for path in paths])

    def refuse(path: Any) -> Image.Image:
        raise AssertionError(path)

    rows = pack(processor, make_samples({"2.png": 2, "1.png": 9}))
    batch = PackedRowCollator(processor, refuse, 64, features=Features())(rows)
    assert "pixel_values" not in batch
    assert batch["mm_encoder_outputs"]["image"]["last_hidden_state"].flatten().tolist() == [2, 1]


def test_training_images_change_anew_each_epoch_and_all_others_never(processor: PeFoMedProcessor) -> None:
    samples = make_samples({"0.png": 2, "1.png": 2})
    settings: dict[str, Any] = {"max_length": 512, "max_questions_per_image": 16, "seed": 0}
    train, other = (
        pack_samples(samples, processor, lambda sample: sample.instruction, **settings, training=training)
        for training in (True, False)
    )
    plain, changing = (PackedRowCollator(processor, open_image, 32, augment=how) for how in (None, augment))

    def pixels(collate: PackedRowCollator, rows: list[dict[str, Any]]) -> torch.Tensor:
        return collate(rows)["pixel_values"]

    unchanged = pixels(plain, [other[0], other[1]])
    assert torch.equal(pixels(changing, [other[0], other[1]]), unchanged)
    first, again, next_epoch = (pixels(changing, [train[epoch, 0], train[epoch, 1]]) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, unchanged) and not torch.equal(first, next_epoch)

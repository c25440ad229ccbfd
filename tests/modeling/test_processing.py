# SPDX-License-Identifier: Apache-2.0
"""The processor: one prompt, token for token, however it is written; image tokens; what an answer's mask covers."""

from __future__ import annotations

import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoProcessor, PreTrainedTokenizerFast

from modeling_pefomed import PeFoMedProcessor, shared_prefix_length

from .tiny import IMAGE_TOKENS, ask, build_llama_tokenizer, build_processor, build_tokenizer, draw_image, encode

TASKS = ("caption", "vqa", "report", "refer", "grounding", "identify", "detection")
TOKENIZERS = {"byte-level BPE": build_tokenizer, "llama": build_llama_tokenizer}


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_processor(request: pytest.FixtureRequest) -> PeFoMedProcessor:
    """A processor on each kind of tokenizer."""
    return build_processor(TOKENIZERS[request.param]())


def text_of(processor: PeFoMedProcessor, ids: list[int]) -> str:
    return processor.tokenizer.decode(ids).replace(processor.image_token, "@")


@pytest.mark.parametrize("task", TASKS)
def test_prompt_reads_as_in_the_paper(processor: PeFoMedProcessor, task: str) -> None:
    ids = processor.encode_prompt("Is there a mass?", task)
    assert text_of(processor, ids) == f"<s>[INST] <Img>@@@@</Img> [{task}] Is there a mass? [/INST]"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("images", [1, 2])
def test_encoded_prompt_equals_the_chat_templates(any_processor: PeFoMedProcessor, task: str, images: int) -> None:
    instruction = "Is there a mass, 2.5 cm (left)?\n Näheres: 肺"
    conversation = ask(instruction, *[draw_image(seed) for seed in range(images)])
    chat = encode(any_processor, conversation, task=task)
    assert any_processor.encode_prompt(instruction, task, num_images=images) == chat["input_ids"][0].tolist()
    assert chat["pixel_values"].shape[0] == images


@pytest.mark.parametrize(
    "answer", ["yes", "a mass, 2.5 cm", "FINDINGS: clear.\nIMPRESSION: normal.", "{<3><4><50><60>}"]
)
def test_prompt_and_answer_join_to_what_the_chat_template_writes(any_processor: PeFoMedProcessor, answer: str) -> None:
    conversation = ask("Is there a mass?", draw_image(0), answer=answer)
    whole = encode(any_processor, conversation)["input_ids"][0].tolist()
    assert any_processor.encode_prompt("Is there a mass?", "vqa") + any_processor.encode_answer(answer) == whole


def test_prompt_has_exactly_one_begin_token(any_processor: PeFoMedProcessor) -> None:
    bos = any_processor.tokenizer.bos_token_id
    for ids in (
        any_processor.encode_prompt("Is there a mass?", "vqa"),
        encode(any_processor, ask("Is there a mass?", draw_image(0)))["input_ids"][0].tolist(),
    ):
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_answer_ends_with_one_end_token(any_processor: PeFoMedProcessor) -> None:
    ids = any_processor.encode_answer("yes")
    eos = any_processor.tokenizer.eos_token_id
    assert ids.count(eos) == 1 and ids[-1] == eos
    assert any_processor.tokenizer.decode(ids[:-1]).strip() == "yes"


def test_prompts_ask_for_an_answer_and_never_end_the_conversation(any_processor: PeFoMedProcessor) -> None:
    ids = any_processor.encode_prompt("Is there a mass?", "vqa")
    assert any_processor.tokenizer.eos_token_id not in ids
    assert text_of(any_processor, ids).endswith("[/INST]")


def test_prompt_without_a_task_has_no_identifier(processor: PeFoMedProcessor) -> None:
    conversation = ask("Is there a mass?", draw_image(0))
    ids = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"][0]
    assert text_of(processor, ids) == "<s>[INST] <Img>@@@@</Img> Is there a mass? [/INST]"


def test_unknown_task_is_refused_with_the_known_ones(processor: PeFoMedProcessor) -> None:
    with pytest.raises(TemplateError, match="Unknown task vga; expected one of caption, vqa"):
        processor.encode_prompt("Is there a mass?", "vga")
    with pytest.raises(TemplateError, match="Unknown task vga"):
        processor.apply_chat_template(ask("Is there a mass?", draw_image(0)), task="vga", tokenize=True)


def test_several_turns_carry_the_task_once_each(processor: PeFoMedProcessor, images: list[Image.Image]) -> None:
    conversation = ask("Is there a mass?", images[0], answer="yes") + ask("Where?")
    ids = encode(processor, conversation)["input_ids"][0].tolist()
    assert text_of(processor, ids) == (
        "<s>[INST] <Img>@@@@</Img> [vqa] Is there a mass? [/INST] yes</s>[INST] [vqa] Where? [/INST]"
    )


def test_every_image_becomes_its_number_of_image_tokens(processor: PeFoMedProcessor) -> None:
    for count in (0, 1, 3):
        ids = processor.encode_prompt("Compare.", "vqa", num_images=count)
        assert ids.count(processor.image_token_id) == count * IMAGE_TOKENS


def test_image_token_lies_behind_the_vocabulary() -> None:
    tokenizer = build_tokenizer()
    vocabulary = len(tokenizer)
    processor = build_processor(tokenizer)
    assert processor.image_token_id == vocabulary
    assert len(tokenizer) == vocabulary + 1


def test_image_token_that_the_tokenizer_has_keeps_its_id() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<ImageHere>", "<other>"]})
    before = len(tokenizer)
    processor = build_processor(tokenizer)
    assert len(tokenizer) == before
    assert processor.image_token_id == tokenizer.convert_tokens_to_ids("<ImageHere>") == before - 2


def test_batches_are_padded_on_the_left_and_masked(
    processor: PeFoMedProcessor, batch: dict[str, torch.Tensor]
) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    padded = int((mask[0] == 0).sum())
    assert padded > 0
    assert mask[0].tolist() == [0] * padded + [1] * (ids.shape[1] - padded)
    assert ids[0, padded:].tolist() == processor.encode_prompt("Is there a mass?", "vqa")


@pytest.mark.parametrize("answer", ["yes", "a mass, 2.5 cm"])
@pytest.mark.parametrize("images", [1, 2])
def test_assistant_mask_covers_the_answer_and_its_end_token(
    any_processor: PeFoMedProcessor, answer: str, images: int
) -> None:
    conversation = ask("Is there a mass?", *[draw_image(seed) for seed in range(images)], answer=answer)
    encoded = any_processor.apply_chat_template(
        conversation,
        task="vqa",
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
    )
    mask = torch.as_tensor(encoded["assistant_masks"]).bool()
    expected = any_processor.encode_answer(answer)
    assert encoded["input_ids"][mask].tolist() == expected
    assert encoded["input_ids"][0, -len(expected) :].tolist() == expected


def test_processor_reloads_with_the_same_tokens_and_pixels(
    any_processor: PeFoMedProcessor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("processor")
    any_processor.save_pretrained(folder)
    loaded = AutoProcessor.from_pretrained(folder)
    assert isinstance(loaded, PeFoMedProcessor)
    assert (loaded.image_seq_length, loaded.image_token_id) == (IMAGE_TOKENS, any_processor.image_token_id)
    assert loaded.encode_prompt("Is it?", "refer") == any_processor.encode_prompt("Is it?", "refer")
    assert loaded.encode_answer("yes") == any_processor.encode_answer("yes")
    one, other = (encode(p, ask("Is it?", draw_image(0))) for p in (loaded, any_processor))
    assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_tokenizer_without_a_begin_token_works() -> None:
    plain = build_tokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, eos_token="</s>", pad_token="<pad>")
    ids = build_processor(tokenizer).encode_prompt("Is there a mass?", "vqa")
    assert tokenizer.decode(ids).startswith("[INST] <Img>")


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3, 4], [1, 2, 9, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2], [1, 2, 3, 4]], 1),
        ([[1, 2, 3], [7, 2, 3]], 0),
        ([[1], [1]], 0),
    ],
)
def test_shared_prefix_leaves_every_prompt_a_token_of_its_own(prompts: list[list[int]], shared: int) -> None:
    assert shared_prefix_length(prompts) == shared

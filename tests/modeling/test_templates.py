# SPDX-License-Identifier: Apache-2.0
"""The prompt's three forms, token for token.

What the released code feeds its model is written here a second time, from its description: texts around the image are
tokenised one by one by a slow LLaMA tokenizer, which hands each of them to SentencePiece as it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE
from transformers import AutoProcessor, LlamaTokenizer, PreTrainedTokenizerFast

from modeling_pefomed import PeFoMedProcessor, shared_prefix_length
from modeling_pefomed.tokenization_pefomed import load_tokenizer

from .tiny import (
    CORPUS,
    IMAGE_TOKENS,
    ask,
    build_llama_tokenizer,
    build_processor,
    build_tokenizer,
    draw_image,
    encode,
)

# A SentencePiece-BPE model of LLaMA's kind (32,000 pieces, Apache-2.0); `make` puts its wheel's files here.
REAL_MODEL = Path(sys.prefix) / "share" / "mistral-common" / "mistral_common" / "data" / "tokenizer.model.v1"
SHORT_ANSWER = "Based on the image, respond to this question with a short answer: "
INSTRUCTIONS = [
    "Is there a mass?",
    "is there evidence of an aortic aneurysm?",
    SHORT_ANSWER + "Where is the lesion located?",
    SHORT_ANSWER + "Is/are the enhanced muscles enlarged? -yes/no",
    "What is the size of the nodule: 2.5 cm, 25 mm or 1/2 inch?",
    "Is it 12 x 34mm (T2-weighted), or 56.78 cm^3?!",
    "How many ribs are fractured (left side)?",
    'What does "ground-glass" mean here; and why?',
    "two  spaces,   three,    four and          ten",
    " starts and ends with a space ",
    "  starts with two",
    "tab\tand\ttwo\t\ttabs",
    "one line\nand another\n\nand one more\n",
    "\n leading newline",
    "trailing newline\n",
    "trailing tab\t",
    "Näheres zur Läsion? Größe in µm²",
    "肺にすりガラス影はありますか",
    "есть ли выпот в плевре?",
    "هل يوجد انصباب؟",
    "emoji 🫁 and 𝛼-fetoprotein, naïve ’quotes’ – dash",
    "ALL CAPITALS: CT OR MRI?",
    "~tilde~ #hash *star* a.b.c; d:e",
    "....",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
    " ".join(f"word{number}" for number in range(47)),
    " ".join(f"word{number}" for number in range(48)),
    " ".join(f"word{number}" for number in range(49)),
    " ".join(f"word{number}" for number in range(50)),
    " ".join(f"word{number}." for number in range(120)),
    "x",
]
ANSWERS = [
    "yes",
    "No.",
    "a mass, 2.5 cm",
    " leading space",
    "two  spaces",
    "FINDINGS: clear.\nIMPRESSION: normal.",
    "肺",
]
TEMPLATES = ("paper", "released")


# --------------------------------------------------------------------------- the released code, from its description


def blip_caption(text: str) -> str:
    """Lower case; each of `.!"()*#:;~` to a blank; runs of white space to one blank; the first fifty words."""
    for character in '.!"()*#:;~':
        text = text.replace(character, " ")
    text = "".join(part if len(part) < 2 or part.strip() else " " for part in re.split(r"(\s+)", text.lower()))
    words = text.rstrip("\n").strip(" ").split(" ")
    return " ".join(words[:50])


def reference_prompt(
    pieces: sentencepiece.SentencePieceProcessor, template: str, instruction: str, task: str, training: bool
) -> list[int]:
    """Begin tokens, the text before the image, one id -1 for each image token, the text after it."""
    begin = [pieces.bos_id()]
    if template == "paper":
        text = f"[INST] <Img><ImageHere></Img> [{task}] {instruction} [/INST]"
    elif training:
        text = "[INST] {} [/INST]".format(blip_caption(f"<Img><ImageHere></Img> [{task}] {instruction} "))
    else:
        text = "[INST] <Img><ImageHere></Img> {} [/INST]".format(blip_caption(f"[{task}] {instruction}"))
        begin += [pieces.bos_id()]  # the text starts with "<s>", and the tokenizer adds another
    before, after = re.split("<imagehere>", text, flags=re.IGNORECASE)
    return begin + pieces.encode(before) + [-1] * IMAGE_TOKENS + pieces.encode(after)


def reference_answer(
    pieces: sentencepiece.SentencePieceProcessor, template: str, answer: str, training: bool
) -> list[int]:
    text = blip_caption(answer) if template == "released" and training else answer
    return [*pieces.encode(text), pieces.eos_id()]


# ---------------------------------------------------------------------------------------------------- the tokenizers


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE model with LLaMA's settings, trained on a few sentences."""
    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS, *INSTRUCTIONS, *ANSWERS]),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        max_sentence_length=100_000,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def as_llama(model: Path, folder: Path, legacy: bool) -> LlamaTokenizer:
    """As a language model's folder that holds no more than SentencePiece's file."""
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return load_tokenizer(folder)


def as_older_file(model: Path, folder: Path) -> PreTrainedTokenizerFast:
    """As in the tokenizer.json of transformers 4: a normalizer puts a space before every text, whatever it is."""
    llama = as_llama(model, folder, legacy=True)
    rust = RustTokenizer(BPE(vocab=llama._vocab, merges=llama._merges, byte_fallback=True, fuse_unk=True))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    rust.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


LOADED: dict[str, Callable[[Path, Path], PreTrainedTokenizerFast]] = {
    "legacy": lambda model, folder: as_llama(model, folder, legacy=True),
    "not legacy": lambda model, folder: as_llama(model, folder, legacy=False),
    "transformers 4": as_older_file,
}


@pytest.fixture(scope="module", params=["small", pytest.param("real", marks=pytest.mark.integration)])
def pieces_file(request: pytest.FixtureRequest, small_model: Path) -> Path:
    """The file of each SentencePiece model."""
    if request.param == "real":
        assert REAL_MODEL.is_file(), "run `make setup`: it fetches the tokenizer that this test compares with"
    return small_model if request.param == "small" else REAL_MODEL


@pytest.fixture(scope="module")
def pieces(pieces_file: Path) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece itself."""
    return sentencepiece.SentencePieceProcessor(model_file=str(pieces_file))


@pytest.fixture(scope="module", params=LOADED)
def llama_processor(
    request: pytest.FixtureRequest, pieces_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> PeFoMedProcessor:
    """A processor on the same model, as transformers loads it from each kind of file."""
    return build_processor(LOADED[request.param](pieces_file, tmp_path_factory.mktemp("llama")))


def with_slots(processor: PeFoMedProcessor, ids: list[int]) -> list[int]:
    return [-1 if token == processor.image_token_id else token for token in ids]


# --------------------------------------------------------------------------------------- equal to the released code


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_and_answers_are_the_references_to_the_token(
    llama_processor: PeFoMedProcessor,
    pieces: sentencepiece.SentencePieceProcessor,
    template: str,
    training: bool,
) -> None:
    llama_processor.set_template(template)
    for task in ("vqa", "caption", "report"):
        for instruction in INSTRUCTIONS:
            ids = with_slots(llama_processor, llama_processor.encode_prompt(instruction, task, training=training))
            assert ids == reference_prompt(pieces, template, instruction, task, training), (task, instruction)
    for answer in [*ANSWERS, *INSTRUCTIONS]:
        ids = llama_processor.encode_answer(answer, training=training)
        assert ids == reference_answer(pieces, template, answer, training), answer


UNLIKE_CONTROL = st.characters(codec="utf-8", exclude_categories=("Cc", "Co", "Cs"), exclude_characters="<[▁")


@pytest.mark.parametrize("training", [True, False])
@given(text=st.text(UNLIKE_CONTROL | st.sampled_from(" \n\t.,:0123456789aeiouAEIOU"), min_size=1, max_size=60))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_any_text_is_the_references_to_the_token(small_processor: Any, training: bool, text: str) -> None:
    processor, pieces = small_processor
    for template in TEMPLATES:
        processor.set_template(template)
        ids = with_slots(processor, processor.encode_prompt(text, "vqa", training=training))
        assert ids == reference_prompt(pieces, template, text, "vqa", training)
        assert processor.encode_answer(text, training=training) == reference_answer(pieces, template, text, training)


@pytest.fixture(scope="module")
def small_processor(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PeFoMedProcessor, Any]:
    """A processor on the small model, and SentencePiece itself."""
    tokenizer = as_llama(small_model, tmp_path_factory.mktemp("llama"), legacy=True)
    return build_processor(tokenizer), sentencepiece.SentencePieceProcessor(model_file=str(small_model))


def test_the_space_before_each_segment_is_what_the_comparison_sees(small_model: Path, tmp_path: Path) -> None:
    """Transformers' own rule for such a tokenizer puts no space after an image: other tokens."""
    processor = build_processor(as_llama(small_model, tmp_path, legacy=False))
    paper = processor.encode_prompt("Is it?", "vqa")
    processor.tokenizer.backend_tokenizer.pre_tokenizer.prepend_scheme = "first"
    assert processor.encode_prompt("Is it?", "vqa") != paper


def test_double_spaces_need_the_order_of_scores(pieces_file: Path, tmp_path: Path) -> None:
    """Why `load_tokenizer` is there: transformers alone merges a bare model's spaces first."""
    loaded = as_llama(pieces_file, tmp_path, legacy=True)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(pieces_file))
    text = "is  it   a    mass"
    assert loaded.encode(text, add_special_tokens=False) == pieces.encode(text)
    if pieces_file == REAL_MODEL:
        plain = LlamaTokenizer.from_pretrained(tmp_path)
        assert plain.encode(text, add_special_tokens=False) != pieces.encode(text)


def test_a_saved_processor_gives_the_same_tokens(
    llama_processor: PeFoMedProcessor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for template in TEMPLATES:
        llama_processor.set_template(template)
        folder = tmp_path_factory.mktemp("processor")
        llama_processor.save_pretrained(folder)
        loaded = AutoProcessor.from_pretrained(folder)
        assert loaded.template == template
        for text in INSTRUCTIONS[:12]:
            for training in (True, False):
                prompt = llama_processor.encode_prompt(text, "vqa", training=training)
                assert loaded.encode_prompt(text, "vqa", training=training) == prompt
                answer = llama_processor.encode_answer(text, training=training)
                assert loaded.encode_answer(text, training=training) == answer


# ------------------------------------------------------------------------------------------ other kinds of tokenizers

# Computed before there was more than one form: adapters trained then are asked with these ids.
PINNED = [
    ("Is there a mass in the left lung?",
     [0, 61, 264, 63, 273, 265, 32, 330, 330, 330, 330, 269, 265, 32, 263, 286, 63, 223, 296,
      267, 275, 277, 223, 271, 320, 289, 267, 278, 279, 86, 278, 324, 33, 274, 264, 63]),
    ("Where  is it, 2.5 cm?",
     [0, 61, 264, 63, 273, 265, 32, 330, 330, 330, 330, 269, 265, 32, 263, 286, 63, 223, 57,
      262, 275, 223, 290, 268, 86, 14, 223, 20, 16, 23, 223, 69, 79, 33, 274, 264, 63]),
]  # fmt: skip


@pytest.mark.parametrize(("instruction", "ids"), PINNED)
def test_the_papers_form_on_byte_level_tokenizers_is_as_it_was(instruction: str, ids: list[int]) -> None:
    processor = build_processor(build_tokenizer())
    assert processor.encode_prompt(instruction, "vqa") == ids
    assert processor.encode_prompt(instruction, "vqa", training=True) == ids
    assert encode(processor, ask(instruction, draw_image(0)))["input_ids"][0].tolist() == ids


def test_the_papers_answer_on_byte_level_tokenizers_is_as_it_was() -> None:
    processor = build_processor(build_tokenizer())
    assert processor.encode_answer("yes, left") == [223, 328, 14, 278, 279, 86, 1]


CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|turn|>system\nBe brief.<|end|>\n"
    "{% endif %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + "
    "' [/INST]' }}{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def chat_processor(kind: str) -> PeFoMedProcessor:
    """A processor whose language model has a chat template of its own."""
    if kind == "ChatML":
        tokenizer = build_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
        tokenizer.chat_template = CHATML
    else:
        tokenizer = build_llama_tokenizer()
        tokenizer.chat_template = LLAMA_2
    processor = build_processor(tokenizer)
    processor.set_template("chat")
    return processor


@pytest.mark.parametrize(
    ("kind", "prompt", "answer"),
    [
        (
            "ChatML",
            "<|turn|>system\nBe brief.<|end|>\n<|turn|>user\n<Img>@@@@</Img> [vqa] Is it?<|end|>\n<|turn|>assistant\n",
            "yes<|end|>",
        ),
        ("LLaMA-2", "<s>[INST] <Img>@@@@</Img> [vqa] Is it? [/INST]", "yes </s>"),
    ],
)
def test_the_language_models_own_template_carries_image_and_task(kind: str, prompt: str, answer: str) -> None:
    processor = chat_processor(kind)
    ids = processor.encode_prompt("Is it?", "vqa")
    assert processor.tokenizer.decode(ids).replace(processor.image_token, "@") == prompt
    written = processor.encode_answer("yes")
    assert processor.tokenizer.decode(written).strip() == answer
    whole = encode(processor, ask("Is it?", draw_image(0), answer="yes"))["input_ids"][0].tolist()
    assert whole[: len(ids) + len(written)] == ids + written


@pytest.mark.parametrize("kind", ["ChatML", "LLaMA-2"])
@pytest.mark.parametrize("images", [1, 2])
def test_chat_prompts_equal_the_chat_templates(kind: str, images: int) -> None:
    processor = chat_processor(kind)
    for instruction in INSTRUCTIONS:
        chat = encode(processor, ask(instruction, *[draw_image(seed) for seed in range(images)]))
        assert processor.encode_prompt(instruction, "vqa", num_images=images) == chat["input_ids"][0].tolist()
        assert chat["pixel_values"].shape[0] == images


@pytest.mark.parametrize("kind", ["ChatML", "LLaMA-2"])
def test_the_language_models_template_survives_saving_in_every_form(kind: str, tmp_path: Path) -> None:
    processor = chat_processor(kind)
    ids, answer = processor.encode_prompt("Is it?", "vqa"), processor.encode_answer("yes")
    for template in ("chat", "paper"):
        processor.set_template(template)
        processor.save_pretrained(tmp_path / template)
        loaded = AutoProcessor.from_pretrained(tmp_path / template)
        assert loaded.template == template
        again = AutoProcessor.from_pretrained(tmp_path / template, template="chat")
        assert (again.encode_prompt("Is it?", "vqa"), again.encode_answer("yes")) == (ids, answer)


def test_a_language_model_without_a_chat_template_has_no_such_form() -> None:
    with pytest.raises(ValueError, match="template 'chat' needs a chat template of the language model"):
        build_processor().set_template("chat")


def test_a_chat_template_that_answers_elsewhere_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    with pytest.raises(ValueError, match="writes an answer elsewhere"):
        build_processor(tokenizer).set_template("chat")


def test_a_chat_template_of_ones_own_is_rendered_as_it_is_and_has_no_other_form() -> None:
    own = "{{ bos_token }}{% for m in messages %}Q: {{ m['content'][1]['text'] }} <ImageHere>{% endfor %}"
    plain = build_processor()
    processor = PeFoMedProcessor(plain.image_processor, plain.tokenizer, own, image_seq_length=IMAGE_TOKENS)
    ids = processor.encode_prompt("Is it?", "vqa")
    assert processor.tokenizer.decode(ids).replace(processor.image_token, "@") == "<s>Q: Is it? @@@@"
    assert encode(processor, ask("Is it?", draw_image(0)))["input_ids"][0].tolist() == ids
    for template in ("released", "chat"):
        with pytest.raises(ValueError, match=f"template '{template}' needs the project's chat_template"):
            processor.set_template(template)


def test_an_unknown_form_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Unknown template 'papre'; expected one of paper, released, chat"):
        build_processor().set_template("papre")


@pytest.mark.parametrize("template", ["paper", "released", "chat"])
def test_questions_about_an_image_share_its_tokens_in_every_form(template: str) -> None:
    processor = chat_processor("ChatML")
    processor.set_template(template)
    for training in (True, False):
        prompts = [processor.encode_prompt(text, "vqa", training=training) for text in ("Is it CT?", "Which organ?")]
        shared = prompts[0][: shared_prefix_length(prompts)]
        assert shared.count(processor.image_token_id) == IMAGE_TOKENS


@pytest.mark.parametrize("template", ["released", "chat"])
def test_a_whole_conversation_keeps_its_form(template: str) -> None:
    processor = chat_processor("LLaMA-2")
    processor.set_template(template)
    turns = ask("Is it CT?", draw_image(0), answer="yes") + ask("Where?")
    ids = encode(processor, turns)["input_ids"][0].tolist()
    text = processor.tokenizer.decode(ids).replace(processor.image_token, "@")
    expected = {
        "released": "<s><s> [INST] <Img>@@@@ </Img> [vqa] is it ct? [/INST] yes</s> [INST] [vqa] where? [/INST]",
        "chat": "<s>[INST] <Img>@@@@</Img> [vqa] Is it CT? [/INST] yes </s><s>[INST] [vqa] Where? [/INST]",
    }
    assert text == expected[template]

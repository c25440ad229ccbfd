# SPDX-License-Identifier: Apache-2.0
"""Every family of towers and language models goes the whole way: composed, trained, saved, reloaded, asked.

Windows of sliding attention are shorter than the prompts here, and soft bounds of logits are low: otherwise neither
would show in a tiny model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2VisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from pefomed_recipes.inference.generate import Request, generate_answers, load_model
from pefomed_recipes.records import Sample
from pefomed_recipes.training.adapters import add_adapter
from pefomed_recipes.training.collator import PackedRowCollator
from pefomed_recipes.training.composing import (
    assemble,
    check_base,
    compose,
    load_parts,
    load_vision_tower,
    resized_tower,
)
from pefomed_recipes.training.packing import pack_samples

from ..modeling.tiny import INITIALIZER_RANGE, ask, build_tokenizer, draw_image, encode, vision_config

TOWER_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
WIDE = {**TOWER_SIZES, "intermediate_size": 64}
TEXT_SIZES = {
    "vocab_size": 352,  # more rows than the tokenizer has tokens: the image token's id lies inside
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": INITIALIZER_RANGE,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
WINDOW = {"sliding_window": 20}  # in every layer: an answer sees the image through two of them
MIXED = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA3 = {**TEXT_SIZES, **MIXED, "head_dim": 12, "query_pre_attn_scalar": 12}
TEXTS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**TEXT_SIZES),
    "qwen2": Qwen2Config(**TEXT_SIZES, **MIXED, use_sliding_window=True),
    "qwen3": Qwen3Config(**TEXT_SIZES, head_dim=12),
    "mistral": MistralConfig(**TEXT_SIZES, **WINDOW),
    "gemma": GemmaConfig(**TEXT_SIZES, head_dim=12),
    "gemma2": Gemma2Config(**GEMMA3, final_logit_softcapping=2.0, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**GEMMA3),
    "gemma3 with its own tower": Gemma3Config(
        text_config=GEMMA3, vision_config=WIDE, mm_tokens_per_image=4, image_token_index=300
    ),
    "phi": PhiConfig(**TEXT_SIZES),
    "phi3": Phi3Config(**TEXT_SIZES, **WINDOW),
}
TOWERS = (
    "vit",
    "clip",
    "clip with its text tower",
    "siglip",
    "dinov2",
    "dinov2 with registers",
    "eva",
    "eva inside blip-2",
)
EXTRA_TOKENS = {"siglip": 0, "dinov2 with registers": 5}  # one, a CLS token, for all others
# One pair for every language model, in which every tower occurs.
PAIRS = list(zip(TEXTS, [*TOWERS, "siglip", "vit"], strict=True))
QUICK = {("qwen2", "clip"), ("gemma2", "dinov2 with registers")}
QUESTIONS = (
    ("Is there a mass in the left lung?", "yes"),
    ("Which organ is shown in the image?", "the liver"),
    ("Is it left?", "no"),
)


@cache
def image() -> Image.Image:
    return draw_image(0)


def save_tower(folder: Path, family: str) -> None:
    """Save a tiny tower as its makers publish it; every weight is drawn, so that none can hide a mistake."""
    builders = {
        "vit": lambda: ViTModel(ViTConfig(**{**WIDE, "image_size": [32, 32], "patch_size": [8, 8]})),
        "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**WIDE)),
        "clip with its text tower": lambda: CLIPModel(
            CLIPConfig(vision_config=WIDE, text_config={"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 9})
        ),
        "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**WIDE)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**TOWER_SIZES)),
        "dinov2 with registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TOWER_SIZES)),
        "eva": lambda: Blip2VisionModel(vision_config()),
        "eva inside blip-2": lambda: Blip2ForConditionalGeneration(
            Blip2Config(
                vision_config=vision_config().to_dict(),
                qformer_config={"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9},
                text_config={"model_type": "opt", "hidden_size": 24, "num_hidden_layers": 1, "vocab_size": 9},
            )
        ),
    }
    torch.manual_seed(0)
    tower = builders[family]()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(std=INITIALIZER_RANGE)
    tower.save_pretrained(folder)
    if family == "siglip":
        transform = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
        (folder / "preprocessor_config.json").write_text(json.dumps(transform), encoding="utf-8")


def save_llm(folder: Path, family: str) -> None:
    """Save a tiny language model; the head's bias and the norms are drawn too. Qwen's tokenizer has no begin token,
    Phi's no padding token."""
    torch.manual_seed(1)
    config = TEXTS[family]
    build = Gemma3ForConditionalGeneration if isinstance(config, Gemma3Config) else AutoModelForCausalLM.from_config
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * INITIALIZER_RANGE)
    model.save_pretrained(folder)
    tokenizer = build_tokenizer()
    if family.startswith("qwen"):
        tokenizer.bos_token = None
    if family.startswith("phi"):
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tower and every language model."""
    folder = tmp_path_factory.mktemp("parts")
    for tower in TOWERS:
        save_tower(folder / tower, tower)
    for text in TEXTS:
        save_llm(folder / text, text)
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tower", TOWERS)
def test_any_tower_goes_with_any_language_model(parts: Path, tower: str, text: str) -> None:
    loaded = load_parts(parts / text, parts / tower, torch.float32)
    model, processor = assemble(loaded, dtype=torch.float32, patch_group_size=2, image_size=16, seed=0)
    check_base(loaded, model, processor)
    assert processor.image_seq_length == 2
    inputs = encode(processor, ask("Is there a mass?", image()))
    other = encode(processor, ask("Is there a mass?", draw_image(1)))
    with torch.no_grad():
        assert not torch.allclose(model(**inputs).logits[:, -1], model(**other).logits[:, -1])


@pytest.mark.parametrize("tower", TOWERS)
def test_a_resized_tower_sees_what_its_own_interpolation_sees(tmp_path: Path, tower: str) -> None:
    """Position embeddings are interpolated once, and that is what the family does for every image."""
    save_tower(tmp_path, tower)
    own = load_vision_tower(tmp_path, torch.float32).eval()
    config, state = resized_tower(load_vision_tower(tmp_path, torch.float32), 48, 8)
    resized = type(own)(type(own.config)(**config))
    resized.load_state_dict(state)
    pixels = torch.randn(2, 3, 48, 48)
    if tower == "vit":
        own.embeddings.patch_size = 8  # its method cannot divide by a pair
    always = {} if tower.startswith("dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected, found = own(pixels, **always).last_hidden_state, resized.eval()(pixels).last_hidden_state
    assert found.shape[1] == 36 + EXTRA_TOKENS.get(tower, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@dataclass
class Composed:
    """A base made of two families, and the language model alone."""

    folder: Path
    llm: Path
    targets: tuple[str, ...]

    def load(self) -> tuple[Any, Any]:
        """The base and its processor."""
        model = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval(), AutoProcessor.from_pretrained(self.folder)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(pair, id="-".join(pair), marks=[] if pair in QUICK else [pytest.mark.integration])
        for pair in PAIRS
    ],
)
def composed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    """Each language model with one of the towers."""
    text, tower = request.param
    folder = tmp_path_factory.mktemp("families")
    save_llm(folder / "llm", text)
    save_tower(folder / "tower", tower)
    record = compose(str(folder / "tower"), str(folder / "llm"), folder / "base")
    assert record["image_tokens"] == 4
    model = AutoModelForImageTextToText.from_pretrained(folder / "base")
    tokens = model.get_image_features(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape[1]
    assert tokens == 16 + EXTRA_TOKENS.get(tower, 1)
    return Composed(folder / "base", folder / "llm", ("qkv_proj",) if text == "phi3" else ("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def loaded(composed: Composed) -> tuple[Any, Any]:
    """The base of tests that leave it as it is."""
    return composed.load()


def adapted(composed: Composed) -> Any:
    """The base with an adapter away from its start, ready for training."""
    model = add_adapter(composed.load()[0], r=4, alpha=8, dropout=0.0, target_modules=composed.targets)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=INITIALIZER_RANGE)
    return model.train()


def batch_of(processor: Any, *, questions_per_row: int) -> dict[str, torch.Tensor]:
    """Three questions about one image, packed or one a row."""
    samples = [Sample(str(n), "vqa", ["image"], *pair) for n, pair in enumerate((q, [a]) for q, a in QUESTIONS)]
    rows = pack_samples(
        samples,
        processor,
        lambda sample: sample.instruction,
        max_length=512,
        max_questions_per_image=questions_per_row,
        seed=0,
    )
    return PackedRowCollator(processor, lambda path: image(), pad_to_multiple_of=8)(list(rows))


def test_text_is_read_as_by_the_language_model_alone(composed: Composed, loaded: tuple[Any, Any]) -> None:
    """Scaled embeddings, a head's bias and bounded logits are where they belong."""
    model, processor = loaded
    alone = AutoModelForCausalLM.from_pretrained(composed.llm, dtype=torch.float32).eval()
    ids = processor.tokenizer([question for question, _ in QUESTIONS], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, found = alone(**ids).logits, model(**ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_packed_rows_train_as_one_row_a_question(composed: Composed) -> None:
    """Also where windows are shorter than the prompt: they are counted in positions, not in columns."""
    model, processor = adapted(composed), composed.load()[1]
    results = []
    for questions_per_row in (3, 1):
        batch = batch_of(processor, questions_per_row=questions_per_row)
        assert len(batch["input_ids"]) == 3 // questions_per_row
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        results.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
    (packed, packed_gradients), (plain, plain_gradients) = results
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-6)
    for name, gradient in plain_gradients.items():
        assert gradient.norm() > 0, name
        error = (packed_gradients[name] - gradient).norm() / gradient.norm()
        assert error < 2e-5, f"{name}: {error:.1e}"


def test_a_step_lowers_the_loss_and_survives_saving(composed: Composed, tmp_path: Path) -> None:
    model, processor = adapted(composed), composed.load()[1]
    batch = batch_of(processor, questions_per_row=3)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    before = model(**batch, use_cache=False).loss
    before.backward()
    optimizer.step()
    with torch.no_grad():
        after = model(**batch, use_cache=False).loss
    assert after < before
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reloaded, _ = load_model(tmp_path, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(**batch, use_cache=False).loss, after, rtol=1e-6, atol=1e-6)


def test_answers_in_a_batch_are_those_of_single_questions(loaded: tuple[Any, Any]) -> None:
    """Plain `generate`, padded on the left where prompts differ in length."""
    model, processor = loaded
    processor.tokenizer.padding_side = "left"
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    conversations = [ask(question, image()) for question, _ in QUESTIONS]
    together = model.generate(**encode(processor, *conversations), **options)[:, -3:]
    for row, conversation in zip(together, conversations, strict=True):
        assert torch.equal(model.generate(**encode(processor, conversation), **options)[0, -3:], row)


def test_answers_with_the_image_encoded_once_are_those_of_plain_generation(loaded: tuple[Any, Any]) -> None:
    """Sliding windows included, whose places no padding may take; the image token's spare row is never an answer."""
    model, processor = loaded
    picture = image()
    requests = [Request(str(n), "vqa", question, (picture,)) for n, (question, _) in enumerate(QUESTIONS)]
    answers = dict(generate_answers(model, processor, requests, max_new_tokens=3))
    for request in requests:
        inputs = encode(processor, ask(request.instruction, picture))
        output = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answers[request.id] == processor.tokenizer.decode(output, skip_special_tokens=True).strip()
    assert model.generation_config.suppress_tokens == [processor.image_token_id]

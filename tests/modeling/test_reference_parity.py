# SPDX-License-Identifier: Apache-2.0
"""Converted weights compute what the released model computes: tower, logits, loss, gradients, greedy tokens.

The reference is plain torch, written from the model's description ([`reference`]). Each mistake that a converter can
make is made here once, to show that the comparison would see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText, Blip2VisionModel

from modeling_pefomed import PeFoMedConfig, PeFoMedForConditionalGeneration
from modeling_pefomed.weight_files_pefomed import Source
from modeling_pefomed.weight_names_pefomed import POST_LAYERNORM, TOWER, Collection
from pefomed_recipes.training.packing import Segment, pack_row

from .reference import EvaVisionTransformer, Reference, Sizes, positions_for
from .released import Released, release
from .tiny import draw_image

pytestmark = pytest.mark.integration

QUESTIONS = (("Is there a mass?", "yes"), ("Which organ is shown?", "the right kidney"), ("Is it left?", "no"))
TOWER_TOLERANCE, TOWER_TOLERANCE_FP64 = 2e-6, 1e-14
LOGITS_TOLERANCE, LOSS_TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 2e-6, 5e-6


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """Files whose position embeddings are those of a smaller image, and the reference that would load them."""
    released = release(tmp_path_factory.mktemp("released"), eva_image_size=24)
    stored = torch.load(released.eva, weights_only=True)["pos_embed"]
    released.reference.visual_encoder.pos_embed.data = positions_for(stored, grid=4)
    return released


@pytest.fixture(scope="module")
def converted(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `base` and `adapter`."""
    folder = tmp_path_factory.mktemp("converted")
    released.convert(folder)
    return folder


@pytest.fixture
def model(converted: Path) -> PeftModel:
    """The converted base with the converted adapter, ready for training, without dropout."""
    base = PeFoMedForConditionalGeneration.from_pretrained(converted / "base")
    return PeftModel.from_pretrained(base, converted / "adapter", is_trainable=True).eval()


@pytest.fixture(scope="module")
def image(released: Released) -> Tensor:
    return released.processor.image_processor([draw_image(0)], return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def segments(released: Released) -> list[Segment]:
    """Three questions about the image; the first token of each answer differs in how many follow."""
    encode = released.processor
    return [Segment(q, encode.encode_prompt(q, "vqa"), encode.encode_answer(a)) for q, a in QUESTIONS]


def split(released: Released, prompt: list[int]) -> tuple[list[int], list[int]]:
    """The tokens before and after the image's."""
    token = released.processor.image_token_id
    first, count = prompt.index(token), prompt.count(token)
    return prompt[:first], prompt[first + count :]


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max().detach())


def inputs_of(segment: Segment, image: Tensor, *, answered: bool = True) -> dict[str, Tensor]:
    """One row of the model, with labels on the answer."""
    ids = segment.prompt + (segment.answer if answered else [])
    labels = [-100] * len(segment.prompt) + (segment.answer if answered else [])
    return {"input_ids": torch.tensor([ids]), "pixel_values": image} | (
        {"labels": torch.tensor([labels])} if answered else {}
    )


def reference_losses(released: Released, segments: list[Segment], image: Tensor) -> list[Tensor]:
    """The losses of each question's tokens, one forward of the reference for each question."""
    return [
        released.reference.answer_losses(image, *split(released, segment.prompt), segment.answer)
        for segment in segments
    ]


def reduce(losses: list[Tensor], reduction: str) -> Tensor:
    """Token mean: every token counts alike. Example mean: every question does (the released code at batch 1)."""
    return torch.cat(losses).mean() if reduction == "token" else torch.stack([one.mean() for one in losses]).mean()


def packed_losses(model: PeftModel, segments: list[Segment], image: Tensor) -> list[Tensor]:
    """The same from one row that packs all questions behind the image."""
    row = pack_row(segments)
    batch = {name: torch.tensor([row[name]]) for name in ("input_ids", "segment_ids", "position_ids", "labels")}
    labelled = batch["labels"][0, 1:] != -100
    logits = model(**batch, pixel_values=image).logits
    losses = functional.cross_entropy(logits, batch["labels"][0, 1:][labelled], reduction="none")
    numbers = batch["segment_ids"][0, 1:][labelled]
    return [losses[numbers == number] for number in range(1, len(segments) + 1)]


def plain_losses(model: PeftModel, segments: list[Segment], image: Tensor) -> list[Tensor]:
    """The same from one row a question."""
    rows = [inputs_of(segment, image) for segment in segments]
    return [
        functional.cross_entropy(model(**row).logits, torch.tensor(segment.answer), reduction="none")
        for row, segment in zip(rows, segments, strict=True)
    ]


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    """Gradients of LoRA and projector under the reference's names, then forgotten."""
    found = {}
    for name, parameter in module.named_parameters():
        name = name.replace("base_model.model.model.language_model.", "llama_model.base_model.model.model.")
        name = name.replace("base_model.model.model.multi_modal_projector.modules_to_save.default.", "llama_proj.")
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
            parameter.grad = None
    return found


def worst_gradient(model: PeftModel, reference: Reference) -> float:
    """The largest relative difference of a gradient."""
    ours, theirs = gradients(model), gradients(reference)
    assert ours.keys() == theirs.keys()
    assert len(theirs) == 2 * 2 * 2 + 2  # layers x (q, v) x (A, B), and the projector
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tower_equals_the_references(released: Released, converted: Path, image: Tensor, attention: str) -> None:
    model = PeFoMedForConditionalGeneration.from_pretrained(converted / "base", attn_implementation=attention)
    expected = released.reference.features(image)
    assert expected.std() > 0.5
    assert difference(model.get_image_features(image).last_hidden_state, expected) <= TOWER_TOLERANCE


@torch.no_grad()
def tower_difference_fp64(model: PeFoMedForConditionalGeneration, released: Released, image: Tensor) -> float:
    """Between the two towers, norms included, where rounding hides nothing."""
    reference = Reference(released.sizes).eval().double()
    reference.load_state_dict(released.reference.state_dict())
    tower = model.model.vision_tower.double()
    return difference(tower(image.double()).last_hidden_state, reference.features(image.double()))


def test_tower_equals_the_references_to_rounding_in_double_precision(
    converted: Path, released: Released, image: Tensor
) -> None:
    model = PeFoMedForConditionalGeneration.from_pretrained(converted / "base")
    assert tower_difference_fp64(model, released, image) <= TOWER_TOLERANCE_FP64


def drop_query_bias(tower: Any, released: Released) -> None:
    for layer in tower.encoder.layers:
        layer.self_attn.qkv.bias.data[: released.sizes.width] = 0


def swap_key_and_value_bias(tower: Any, released: Released) -> None:
    for layer in tower.encoder.layers:
        query, key, value = layer.self_attn.qkv.bias.data.chunk(3)
        layer.self_attn.qkv.bias.data = torch.cat([query, value, key])


def change_post_layernorm(tower: Any, released: Released) -> None:
    tower.post_layernorm.eps = 1e-6


def change_block_layernorms(tower: Any, released: Released) -> None:
    for layer in tower.encoder.layers:
        layer.layer_norm1.eps = layer.layer_norm2.eps = 1e-5


def approximate_gelu(tower: Any, released: Released) -> None:
    for layer in tower.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU(approximate="tanh")


def interpolate(tower: Any, released: Released, **how: Any) -> None:
    stored = torch.load(released.eva, weights_only=True)["pos_embed"]
    square = stored[:, 1:].transpose(1, 2).unflatten(2, (3, 3))
    larger = functional.interpolate(square, size=(4, 4), **how).flatten(2).transpose(1, 2)
    tower.embeddings.position_embedding.data = torch.cat([stored[:, :1], larger], dim=1)


def interpolate_bilinearly(tower: Any, released: Released) -> None:
    interpolate(tower, released, mode="bilinear", align_corners=False)


def interpolate_between_corners(tower: Any, released: Released) -> None:
    interpolate(tower, released, mode="bicubic", align_corners=True)


def interpolate_in_half_precision(tower: Any, released: Released) -> None:
    tower.embeddings.position_embedding.data = tower.embeddings.position_embedding.data.half().float()


def keep_one_block_less(tower: Any, released: Released) -> None:
    del tower.encoder.layers[-1]


@pytest.mark.parametrize(
    ("mistake", "cost"),
    [
        (change_post_layernorm, 1e-7),
        (change_block_layernorms, 1e-7),
        (approximate_gelu, 1e-4),
        (drop_query_bias, 1e-2),
        (swap_key_and_value_bias, 1e-2),
        (interpolate_bilinearly, 1e-2),
        (interpolate_between_corners, 1e-2),
        (interpolate_in_half_precision, 1e-5),
        (keep_one_block_less, 1e-1),
    ],
)
def test_a_mistake_in_the_tower_is_seen(
    converted: Path, released: Released, image: Tensor, mistake: Callable[[Any, Released], None], cost: float
) -> None:
    model = PeFoMedForConditionalGeneration.from_pretrained(converted / "base")
    mistake(model.model.vision_tower, released)
    assert tower_difference_fp64(model, released, image) > cost


@torch.no_grad()
def logits_difference(model: PeftModel, released: Released, segments: list[Segment], image: Tensor) -> float:
    """The largest over all questions' prompts."""
    return max(
        difference(
            model(**inputs_of(segment, image, answered=False)).logits[0, -len(after) :],
            released.reference.logits(image, before, after)[-len(after) :],
        )
        for segment in segments
        for before, after in [split(released, segment.prompt)]
    )


def test_logits_equal_the_references(
    model: PeftModel, released: Released, segments: list[Segment], image: Tensor
) -> None:
    assert logits_difference(model, released, segments, image) <= LOGITS_TOLERANCE


def group_columns(model: PeftModel, released: Released) -> None:
    """Join patches of a column, not of a row."""
    inner = model.base_model.model.model

    def columns(_: Any, arguments: tuple[Tensor]) -> Tensor:
        [grouped] = arguments
        square = grouped.reshape(1, 4, 4, released.sizes.width)
        return square.transpose(1, 2).reshape(grouped.shape)

    inner.multi_modal_projector.register_forward_pre_hook(columns)


def reverse_groups(model: PeftModel, released: Released) -> None:
    """Join the four tokens of a group in the reverse order."""

    def reverse(_: Any, arguments: tuple[Tensor]) -> Tensor:
        [grouped] = arguments
        return grouped.unflatten(-1, (4, released.sizes.width)).flip(-2).flatten(-2)

    model.base_model.model.model.multi_modal_projector.register_forward_pre_hook(reverse)


def scale_lora_by_one(model: PeftModel, released: Released) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] = 1.0


def forget_lora(model: PeftModel, released: Released) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()


def keep_the_bases_projector(model: PeftModel, released: Released) -> None:
    torch.nn.init.normal_(model.base_model.model.model.multi_modal_projector.modules_to_save["default"].weight)


@pytest.mark.parametrize(
    "mistake", [group_columns, reverse_groups, scale_lora_by_one, forget_lora, keep_the_bases_projector]
)
def test_a_mistake_behind_the_tower_is_seen(
    model: PeftModel,
    released: Released,
    segments: list[Segment],
    image: Tensor,
    mistake: Callable[[PeftModel, Released], None],
) -> None:
    mistake(model, released)
    assert logits_difference(model, released, segments, image) > 1e-2


@pytest.mark.parametrize("reduction", ["token", "example"])
@pytest.mark.parametrize("losses_of", [plain_losses, packed_losses], ids=["unpacked", "packed"])
def test_loss_and_gradients_equal_the_references(
    model: PeftModel,
    released: Released,
    segments: list[Segment],
    image: Tensor,
    losses_of: Callable[[PeftModel, list[Segment], Tensor], list[Tensor]],
    reduction: str,
) -> None:
    expected = reference_losses(released, segments, image)
    losses = losses_of(model, segments, image)
    assert [len(one) for one in losses] == [len(segment.answer) for segment in segments]
    assert len({len(one) for one in losses}) > 1, "the two means are then the same"
    assert difference(torch.cat(losses), torch.cat(expected)) <= LOGITS_TOLERANCE
    theirs, ours = reduce(expected, reduction), reduce(losses, reduction)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=LOSS_TOLERANCE)
    theirs.backward()
    ours.backward()
    assert worst_gradient(model, released.reference) <= GRADIENT_TOLERANCE


def test_the_models_own_loss_is_the_token_mean(
    model: PeftModel, released: Released, segments: list[Segment], image: Tensor
) -> None:
    row = pack_row(segments)
    names = ("input_ids", "segment_ids", "position_ids", "labels")
    loss = model(**{name: torch.tensor([row[name]]) for name in names}, pixel_values=image).loss
    expected = reduce(reference_losses(released, segments, image), "token")
    torch.testing.assert_close(loss, expected, rtol=0, atol=LOSS_TOLERANCE)


def test_a_mistake_in_packing_is_seen_in_the_gradients(
    model: PeftModel, released: Released, segments: list[Segment], image: Tensor
) -> None:
    """Positions that run on instead of starting again behind the image."""
    row = pack_row(segments)
    row["position_ids"] = list(range(len(row["input_ids"])))
    names = ("input_ids", "segment_ids", "position_ids", "labels")
    model(**{name: torch.tensor([row[name]]) for name in names}, pixel_values=image).loss.backward()
    reduce(reference_losses(released, segments, image), "token").backward()
    assert worst_gradient(model, released.reference) > 100 * GRADIENT_TOLERANCE


def test_greedy_tokens_equal_the_references(
    converted: Path, released: Released, segments: list[Segment], image: Tensor
) -> None:
    """In one left-padded batch, from the adapter folder alone."""
    model = AutoModelForImageTextToText.from_pretrained(converted / "adapter")
    end = released.processor.tokenizer.eos_token_id
    longest = max(len(segment.prompt) for segment in segments)
    ids = [[end] * (longest - len(segment.prompt)) + segment.prompt for segment in segments]
    mask = [[0] * (longest - len(segment.prompt)) + [1] * len(segment.prompt) for segment in segments]
    output = model.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        pixel_values=image.repeat(len(segments), 1, 1, 1),
        max_new_tokens=12,
    )
    expected = [
        released.reference.greedy(image, *split(released, segment.prompt), end, most=12) for segment in segments
    ]
    assert len({tuple(tokens) for tokens in expected}) > 1
    for tokens, answer in zip(output[:, longest:].tolist(), expected, strict=True):
        assert tokens[: len(answer)] == answer


@pytest.mark.parametrize(
    "blocks", [pytest.param(2, marks=pytest.mark.integration), pytest.param(39, marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_tower_equals_the_references_at_the_real_width_and_resolution(blocks: int) -> None:
    """1408 wide, 16 heads, 1024 patches of 448 px; all 39 blocks take 8 GB and a minute."""
    sizes = Sizes(image=448, patch=14, width=1408, depth=blocks, heads=16, inner=6144)
    generator = torch.Generator().manual_seed(0)
    reference = EvaVisionTransformer(sizes).eval()
    for name, parameter in reference.named_parameters():
        mean = 1.0 if name.endswith(("norm1.weight", "norm2.weight")) else 0.0
        torch.nn.init.normal_(parameter, mean=mean, std=0.02, generator=generator)
    for number, block in enumerate(reference.blocks, start=1):  # the released tower's own start
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.data /= math.sqrt(2 * number)
    collected = Collection()
    loaders = {f"visual_encoder.{name}": partial(torch.Tensor.detach, t) for name, t in reference.named_parameters()}
    collected.add(Source("eva", [], loaders), vision_layers=39)
    collected.start({POST_LAYERNORM + "weight": torch.ones(1408), POST_LAYERNORM + "bias": torch.zeros(1408)}, "fresh")
    config: Any = PeFoMedConfig().vision_config
    config.num_hidden_layers = blocks
    with torch.device("meta"):
        tower = Blip2VisionModel(config).eval()
    state = {name.removeprefix(TOWER): load() for name, load in collected.loaders.items()}
    tower.load_state_dict(state, assign=True)
    tower.post_layernorm.eps = 1e-5
    image = torch.randn(1, 3, 448, 448, generator=generator)
    expected = functional.layer_norm(reference(image), (1408,), eps=1e-5)
    assert difference(tower(image).last_hidden_state, expected) <= 5e-6

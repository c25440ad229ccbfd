# SPDX-License-Identifier: Apache-2.0
"""Token grouping against loops over pixels' positions, and towers of other kinds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import CLIPVisionConfig, Dinov2WithRegistersConfig, PreTrainedConfig, SiglipVisionConfig

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor, group_patch_tokens

from .tiny import IMAGE_SIZE, INITIALIZER_RANGE, PATCH_SIZE, build_config

SIDE = IMAGE_SIZE // PATCH_SIZE
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "initializer_range": INITIALIZER_RANGE,
}
OTHER_TOWERS = [
    pytest.param(CLIPVisionConfig(**SIZES), 1, id="clip"),
    pytest.param(SiglipVisionConfig(**SIZES), 0, id="siglip without CLS"),
    pytest.param(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3), 4, id="dinov2 with registers"),
]


def group_by_loops(tokens: torch.Tensor, rows: int, columns: int, extra: int, group_size: int) -> torch.Tensor:
    """Walk over each image row from left to right and lay `group_size` neighbouring patches side by side."""
    grouped = []
    for image in tokens:
        strips = []
        for row in range(rows):
            for first in range(0, columns, group_size):
                strip = [image[extra + row * columns + column] for column in range(first, first + group_size)]
                strips.append(torch.cat(strip))
        grouped.append(torch.stack(strips))
    return torch.stack(grouped)


@pytest.mark.parametrize("extra", [0, 1, 5])
@pytest.mark.parametrize(("rows", "columns", "group_size"), [(4, 4, 4), (4, 4, 2), (3, 8, 4), (32, 32, 4)])
def test_groups_are_horizontal_strips_in_row_major_order(extra: int, rows: int, columns: int, group_size: int) -> None:
    tokens = torch.randn(2, extra + rows * columns, 6)
    grouped = group_patch_tokens(tokens, rows * columns, group_size)
    assert torch.equal(grouped, group_by_loops(tokens, rows, columns, extra, group_size))


def test_grouping_copies_nothing() -> None:
    tokens = torch.randn(1, 17, 6)
    grouped = group_patch_tokens(tokens, 16, 4)
    assert grouped.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()


def test_a_tower_that_pools_its_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="gave 4 tokens an image, expected at least 16"):
        group_patch_tokens(torch.zeros(1, 4, 6), 16, 4)


def test_image_features_are_the_projected_groups_of_the_towers_patches(
    model: PeFoMedForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    features = model.get_image_features(inputs["pixel_values"], return_dict=True)
    tower_output = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    projector = model.model.multi_modal_projector
    groups = group_by_loops(tower_output, SIDE, SIDE, extra=1, group_size=4)
    expected = groups @ projector.weight.T + projector.bias
    torch.testing.assert_close(torch.stack(list(features.pooler_output)), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1, "features of about zero would make this test vacuous"


def test_the_cls_token_is_dropped(
    own_model: Callable[..., PeFoMedForConditionalGeneration], inputs: dict[str, torch.Tensor]
) -> None:
    model = own_model()
    before = model.get_image_features(inputs["pixel_values"], return_dict=True)

    def change_cls(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, 0] += 100
        return output

    model.model.vision_tower.post_layernorm.register_forward_hook(change_cls)
    after = model.get_image_features(inputs["pixel_values"], return_dict=True)
    assert not torch.equal(before.last_hidden_state, after.last_hidden_state)
    assert torch.equal(before.pooler_output[0], after.pooler_output[0])


@pytest.mark.parametrize(("vision", "extra"), OTHER_TOWERS)
def test_other_towers_work(
    own_model: Callable[..., PeFoMedForConditionalGeneration],
    processor: PeFoMedProcessor,
    inputs: dict[str, torch.Tensor],
    vision: PreTrainedConfig,
    extra: int,
) -> None:
    model = own_model(build_config(processor, vision=vision))
    features = model.get_image_features(inputs["pixel_values"], return_dict=True)
    assert features.last_hidden_state.shape == (1, extra + SIDE * SIDE, 32)
    groups = group_by_loops(features.last_hidden_state, SIDE, SIDE, extra, 4)
    expected = groups @ model.model.multi_modal_projector.weight.T + model.model.multi_modal_projector.bias
    torch.testing.assert_close(features.pooler_output[0], expected[0], rtol=1e-4, atol=1e-4)

    answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3
    other = model(**dict(inputs) | {"pixel_values": -inputs["pixel_values"]}).logits
    assert not torch.allclose(other, model(**inputs).logits, atol=1e-3), "the image must reach the logits"

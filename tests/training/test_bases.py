# SPDX-License-Identifier: Apache-2.0
"""A base is known by its weights: in any number format, and not by where it lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_pefomed import PeFoMedForConditionalGeneration
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.models.adapter_folders import load_adapter
from pefomed_recipes.models.bases import FINGERPRINT, base_fingerprint, check_base, write_fingerprint
from pefomed_recipes.training.adapters import add_adapter

pytestmark = pytest.mark.integration

PARTS = {"vision_tower", "multi_modal_projector", "language_model", "language_model linear layers", "lm_head"}


def load(folder: Path, **options: Any) -> PeFoMedForConditionalGeneration:
    return PeFoMedForConditionalGeneration.from_pretrained(folder, **options)


def test_the_number_format_does_not_matter(tiny_base: Path) -> None:
    expected = base_fingerprint(load(tiny_base))
    assert set(expected) == PARTS
    assert base_fingerprint(load(tiny_base, dtype=torch.bfloat16)) == expected


def test_each_part_of_a_base_has_its_own_digest(tiny_base: Path) -> None:
    expected = base_fingerprint(load(tiny_base))
    changed = {
        "vision_tower": "model.vision_tower.post_layernorm.bias",
        "multi_modal_projector": "model.multi_modal_projector.bias",
        "language_model": "model.language_model.layers.1.input_layernorm.weight",
        "language_model linear layers": "model.language_model.layers.0.mlp.up_proj.weight",
        "lm_head": "lm_head.weight",
    }
    for part, name in changed.items():
        base = load(tiny_base)
        with torch.no_grad():
            base.get_parameter(name).flatten()[0] += 1
        found = base_fingerprint(base)
        assert {key for key in PARTS if found[key] != expected[key]} == {part}


def test_a_base_in_4_bits_agrees_in_all_other_parts(tiny_base: Path, float32: None) -> None:
    from pefomed_recipes.training.stages import load_base

    expected = base_fingerprint(load(tiny_base))
    found = base_fingerprint(load_base(str(tiny_base), "nf4")[0])
    assert found == {part: digest for part, digest in expected.items() if part != "language_model linear layers"}


def test_a_part_that_is_known_on_one_side_only_is_not_compared(tmp_path: Path) -> None:
    write_fingerprint(tmp_path, {"lm_head": "1", "vision_tower": "2"})
    check_base(tmp_path, {"lm_head": "1", "multi_modal_projector": "3"}, "base")
    with pytest.raises(PeFoMedError, match="vision_tower: found 4, expected 2"):
        check_base(tmp_path, {"vision_tower": "4"}, "base")


def test_training_does_not_continue_on_a_base_with_other_weights(tiny_base: Path, tmp_path: Path) -> None:
    base = load(tiny_base)
    adapted = add_adapter(base, r=4, alpha=8, dropout=0.0)
    adapted.save_pretrained(tmp_path)
    write_fingerprint(tmp_path, adapted.base_fingerprint)
    other = load(tiny_base)
    with torch.no_grad():
        other.model.language_model.layers[0].self_attn.v_proj.weight.add_(0.1)
    with pytest.raises(
        PeFoMedError, match=f"trained on {str(tiny_base)!r}, with other weights in: language_model linear"
    ):
        load_adapter(other, tmp_path, trainable=True)
    load_adapter(load(tiny_base, dtype=torch.bfloat16), tmp_path, trainable=True)


def test_a_run_says_by_its_weights_which_base_it_had(stage1: tuple[Path, dict[str, Any]], tiny_base: Path) -> None:
    expected = base_fingerprint(load(tiny_base))
    assert json.loads((stage1[0] / FINGERPRINT).read_text(encoding="utf-8")) == expected


def test_a_run_whose_base_was_exchanged_does_not_continue(
    run: Any, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pefomed_recipes.training import stages

    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    with monkeypatch.context() as patch:
        patch.setattr(stages, "final_validation_loss", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "out", f"--base={base}")
    assert (tmp_path / "out" / "checkpoint-4" / FINGERPRINT).is_file()
    other = load(base)
    with torch.no_grad():
        other.lm_head.weight.add_(0.1)
    other.save_pretrained(base)
    with pytest.raises(PeFoMedError, match="checkpoint-4: this adapter does not fit the base.*lm_head"):
        run(tmp_path / "out", f"--base={base}")

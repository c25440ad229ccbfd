# SPDX-License-Identifier: Apache-2.0
"""The measurement of a conversion: real files and the real command, here at a tiny size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from modeling_pefomed import PeFoMedConfig
from pefomed_recipes.benchmarks.full_size_conversion import NAME, RESULTS, Sizes, main, measure

VISION = {
    "model_type": "blip_2_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 39,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
# 1.2 GB in one file, in tensors of 34 MB
TEXT = LlamaConfig(
    vocab_size=400, hidden_size=1024, intermediate_size=16384, num_hidden_layers=12, num_attention_heads=8
)


@pytest.mark.integration
@pytest.mark.slow
def test_a_conversion_is_measured_checked_and_cleaned_up_and_never_holds_the_model(tmp_path: Path) -> None:
    sizes = Sizes(PeFoMedConfig(vision_config=VISION, text_config=TEXT.to_dict()), stored_grid=2, rank=4)
    result = measure(tmp_path / "work", sizes, "--num-attention-heads=4", "--image-size=32")
    lora = 12 * 2 * (4 * 1024 + 1024 * 4)
    assert result["opened"]["trained"] == lora + 4 * 32 * 1024 + 1024
    assert result["opened"]["parameters"]["lora"] == lora
    assert set(result["files_mib"]) == {"tower", "checkpoint", "language_model"}
    assert result["files_mib"]["language_model"] > 1200
    assert result["conversion"]["seconds"] > 0
    assert 100 < result["conversion"]["peak_memory_mib"] < 0.8 * result["files_mib"]["language_model"]
    assert list(tmp_path.iterdir()) == []


def test_the_measured_conversion_stays_within_its_bars() -> None:
    result = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
    assert result["opened"]["trained"] == 56_627_200
    assert result["opened"]["parameters"]["tower"] == 987_033_600
    assert result["opened"]["parameters"]["language_model"] == 6_738_415_616
    assert result["peak_memory_per_largest_part"] < 1.3


def test_a_folder_that_exists_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["full_size_conversion", f"--folder={tmp_path}"])
    with pytest.raises(SystemExit):
        main()
    assert tmp_path.is_dir()

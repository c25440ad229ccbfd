# SPDX-License-Identifier: Apache-2.0
"""The paper's configurations read the paper's data sets in the layouts in which people have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_pefomed.processing_pefomed import clean_as_released
from pefomed_recipes.data.datasets_index import load_samples
from pefomed_recipes.data.reading import DatasetError
from pefomed_recipes.errors import ConfigError
from pefomed_recipes.training.arguments import parse_arguments
from pefomed_recipes.training.run_data import pack_split, read_split
from pefomed_recipes.training.stages import STAGE1_DEFAULTS

from ..data.fixtures.clef_caption import write_clef_caption_original
from ..data.fixtures.iu_xray import write_iu_xray_r2gen
from ..data.fixtures.medicat import write_medicat_release
from ..data.fixtures.mimic_cxr import write_mimic_cxr_tree
from ..data.fixtures.path_vqa import write_path_vqa_prepared
from ..data.fixtures.roco import write_roco_original
from ..data.fixtures.slake import write_slake_original
from ..data.fixtures.vqa_rad import write_vqa_rad_prepared
from ..modeling.tiny import build_processor, build_tokenizer

Write = Callable[[Path], None]


def read(config: str, root: Path, *options: str, split: str = "train"):
    recipe, _ = parse_arguments([f"--config={config}", f"--data_root={root}", *options], STAGE1_DEFAULTS, "")
    return read_split(recipe, split)


@pytest.mark.parametrize(
    ("config", "write"),
    [
        ("stage2/vqa_rad", write_vqa_rad_prepared),
        ("stage2/slake", write_slake_original),
        ("stage2/path_vqa", write_path_vqa_prepared),
        ("stage2/iu_xray", write_iu_xray_r2gen),
    ],
)
def test_a_config_of_stage_2_reads_its_data_set(config: str, write: Write, tmp_path: Path) -> None:
    write(tmp_path)
    slug = config.rpartition("/")[2]
    for split in ("train", "validation"):
        samples = read(config, tmp_path, "--on_missing=skip", split=split)[""]
        assert samples and {sample.source for sample in samples} == {slug}
        assert {sample.language for sample in samples} == {"en"}


def test_stage_1_reads_four_data_sets_as_captions_by_their_names(tmp_path: Path) -> None:
    for slug, write in (
        ("clef_caption", write_clef_caption_original),
        ("roco", write_roco_original),
        ("medicat", write_medicat_release),
        ("mimic_cxr", write_mimic_cxr_tree),
    ):
        (tmp_path / slug).mkdir()
        write(tmp_path / slug)
    sets = read("stage1/paper", tmp_path, "--on_missing=skip")
    assert list(sets) == ["clef_caption", "roco", "medicat", "mimic_cxr"]
    assert all(samples and {sample.task for sample in samples} == {"caption"} for samples in sets.values())
    assert all(sample.credentialed == (name == "mimic_cxr") for name, samples in sets.items() for sample in samples)


def test_reports_are_captions_only_where_captions_are_asked_for(tmp_path: Path) -> None:
    write_iu_xray_r2gen(tmp_path)
    assert {s.task for s in load_samples("iu_xray", tmp_path, "test", on_missing="skip")} == {"report"}
    with pytest.raises(DatasetError, match=r"no \[vqa\] samples"):
        load_samples("iu_xray", tmp_path, "test", "vqa", on_missing="skip")


def test_a_data_set_of_two_languages_wants_one_named(tmp_path: Path) -> None:
    write_slake_original(tmp_path)
    with pytest.raises(ConfigError, match="--language en|zh"):
        load_samples("slake", tmp_path, "train", "vqa")
    assert {s.language for s in load_samples("slake", tmp_path, "train", language="zh", on_missing="skip")} == {"zh"}


def test_blip50_is_applied_to_what_is_trained_on_and_never_to_a_reference(tmp_path: Path) -> None:
    write_iu_xray_r2gen(tmp_path)
    processor = build_processor(build_tokenizer())
    options = [f"--data_root={tmp_path}", "--on_missing=skip", "--text=blip50"]
    recipe, config = parse_arguments(["--config=stage2/iu_xray", *options], STAGE1_DEFAULTS, "")
    for split in ("train", "validation"):
        samples = read_split(recipe, split)[""]
        reports = [sample.answers[0] for sample in samples]
        rows = pack_split(samples, processor, recipe, config, training=split == "train")
        said = [
            processor.tokenizer.decode([token for token in row["labels"] if token != -100], skip_special_tokens=True)
            for row in rows
        ]
        wanted = [clean_as_released(report) if split == "train" else report for report in reports]
        assert sorted(text.strip() for text in said) == sorted(wanted)
        assert reports == [sample.answers[0] for sample in samples] != [clean_as_released(text) for text in reports]

# SPDX-License-Identifier: Apache-2.0
"""Cached features are what the tower gives, to the last bit; features of anything else are refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedImageProcessor, PeFoMedProcessor
from pefomed_recipes.data.images import load_image
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.models import image_keys
from pefomed_recipes.models.feature_building import build_features
from pefomed_recipes.models.feature_cache import MANIFEST, FeatureCache
from pefomed_recipes.models.image_keys import ImageKeys
from pefomed_recipes.training.adapters import add_adapter

from ..modeling.tiny import draw_image
from .conftest import draw_pngs, samples_about

pytestmark = pytest.mark.integration


def live(model: Any, processor: PeFoMedProcessor, images: list[str]) -> torch.Tensor:
    """What the tower makes of the images now, without its CLS token."""
    pixels = processor.image_processor([load_image(image) for image in images], return_tensors="pt")["pixel_values"]
    return model.get_image_features(pixels, return_dict=True).last_hidden_state[:, 1:]


@pytest.fixture
def cache(cache_folder: Path, model: Any, processor: PeFoMedProcessor) -> FeatureCache:
    """The cache of all images, opened for the model in memory."""
    return FeatureCache.open(cache_folder, model, processor.image_processor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cached_features_of_every_kind_of_image_equal_live_ones_bit_for_bit(
    base_folder: Path, processor: PeFoMedProcessor, images: list[str], tmp_path: Path, dtype: torch.dtype
) -> None:
    """Also those of images that were computed in other company."""
    model = PeFoMedForConditionalGeneration.from_pretrained(base_folder, dtype=dtype).eval()
    build_features(base_folder, samples_about(images), tmp_path / "features", dtype=dtype)
    cache = FeatureCache.open(tmp_path / "features", model, processor.image_processor)
    assert len(cache) == len(images)
    for start in range(0, len(images), 3):
        few = images[start : start + 3]
        found = cache.features(few)
        assert found.dtype == dtype and found.shape == (len(few), 16, 32)
        assert torch.equal(found, live(model, processor, few))


def test_a_model_answers_from_the_cache_as_from_pixels(
    cache: FeatureCache, model: Any, processor: PeFoMedProcessor, images: list[str]
) -> None:
    prompt = processor.encode_prompt("Is there a mass?", "vqa", num_images=1)
    ids = torch.tensor([prompt, prompt])
    pixels = processor.image_processor([load_image(image) for image in images[:2]], return_tensors="pt")
    features = {"image": {"last_hidden_state": cache.features(images[:2])}}
    live, cached = model(ids, **pixels).logits, model(ids, mm_encoder_outputs=features).logits
    assert torch.equal(live, cached)


def test_the_model_may_be_named_by_its_folder_or_carry_an_adapter(
    cache_folder: Path, base_folder: Path, processor: PeFoMedProcessor
) -> None:
    base = PeFoMedForConditionalGeneration.from_pretrained(base_folder, dtype=torch.float32)
    adapted = add_adapter(base, r=2, alpha=4, dropout=0.0)
    opened = FeatureCache.open(cache_folder, adapted, processor.image_processor)
    named = FeatureCache.open(cache_folder, base_folder, processor.image_processor, dtype=torch.float32)
    assert len(opened) == len(named) > 0


def nudged_weight(model: Any) -> None:
    weight = model.model.vision_tower.encoder.layers[1].mlp.fc2.weight
    with torch.no_grad():
        weight.view(-1)[77] = torch.nextafter(weight.view(-1)[77], torch.tensor(9.0))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (nudged_weight, r"tower weights \(tower weights: found \w{12}, expected \w{12}\)"),
        (lambda model: model.model.vision_tower.to(torch.bfloat16), "number format: found float32, expected bfloat16"),
        (lambda model: setattr(model.config, "vision_post_layernorm_eps", 1e-6), "tower configuration: found"),
        (
            lambda model: model.set_attn_implementation({"vision_config": "eager"}),
            "attention: found sdpa, expected eager",
        ),
    ],
    ids=["one_nudged_weight", "number_format", "epsilon", "attention"],
)
def test_features_of_another_tower_are_refused_and_the_text_says_what_differs(
    cache_folder: Path, model: Any, processor: PeFoMedProcessor, change: Any, told: str
) -> None:
    other = copy.deepcopy(model)
    change(other)
    with pytest.raises(PeFoMedError, match=f"computed with other .*{told}.*into another folder"):
        FeatureCache.open(cache_folder, other, processor.image_processor)


def test_features_of_other_preprocessing_are_refused_and_the_setting_is_named(cache_folder: Path, model: Any) -> None:
    other = PeFoMedImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(PeFoMedError, match=r"other preprocessing \(image_mean: found .*0\.48.*expected .*0\.5, 0\.5"):
        FeatureCache.open(cache_folder, model, other)


@pytest.mark.parametrize("name", ["Pillow", "device", "image reading"])
def test_features_computed_in_other_surroundings_are_refused(
    cache_folder: Path, model: Any, processor: PeFoMedProcessor, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(cache_folder, tmp_path / "features")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps(manifest | {name: "9.9"}), encoding="utf-8")
    with pytest.raises(PeFoMedError, match=f"computed with other {name} .*found 9.9, expected"):
        FeatureCache.open(folder, model, processor.image_processor)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no feature cache there"), ("{", "cannot be read"), ("[]", "computed with other")],
    ids=["missing", "torn", "no_object"],
)
def test_a_folder_without_a_readable_manifest_is_refused(
    model: Any, processor: PeFoMedProcessor, tmp_path: Path, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_text(content, encoding="utf-8")
    with pytest.raises(PeFoMedError, match=told):
        FeatureCache.open(tmp_path, model, processor.image_processor)


@pytest.mark.parametrize("change", ["shorter", "longer", "of_another_cache"])
def test_a_torn_or_foreign_shard_is_refused(
    cache_folder: Path, model: Any, processor: PeFoMedProcessor, tmp_path: Path, change: str
) -> None:
    folder = shutil.copytree(cache_folder, tmp_path / "features")
    [shard] = folder.glob("shard-*")
    content = shard.read_bytes()
    marked = content.index(b'"cache":"') + len(b'"cache":"')
    changed = {
        "shorter": content[:-1],
        "longer": content + b"\0",
        "of_another_cache": content[:marked] + b"0" * 32 + content[marked + 32 :],
    }[change]
    shard.write_bytes(changed)
    with pytest.raises(PeFoMedError, match=r"1 shards are torn or of another cache, such as shard-.*pefomed features"):
        FeatureCache.open(folder, model, processor.image_processor)


def test_an_image_is_found_under_any_name_and_not_after_a_change(
    cache: FeatureCache, images: list[str], tmp_path: Path
) -> None:
    moved = shutil.copy(images[3], tmp_path / "moved.png")
    assert moved in cache and torch.equal(cache.features([moved]), cache.features([images[3]]))
    draw_image(999).save(moved)
    assert moved not in cache and cache.missing([*images, moved, moved]) == [str(moved)]
    with pytest.raises(PeFoMedError, match=r"moved\.png: this image, as it is now, is not in the feature cache"):
        cache.features([images[0], moved])
    with pytest.raises(PeFoMedError, match=r"gone\.png: no such file"):
        cache.features([tmp_path / "gone.png"])


def test_unchanged_files_are_not_read_again_and_replaced_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a file of the same length whose time was set back; and what is remembered outlives the process."""
    file, saved = tmp_path / "image.png", tmp_path / "files.json"
    file.write_bytes(b"first")
    os.utime(file, ns=(10**18, 10**18))
    read = []
    content = image_keys._content
    monkeypatch.setattr(image_keys, "_content", lambda name: read.append(name) or content(name))
    monkeypatch.setattr(image_keys, "_SETTLED_NS", -(10**9))  # this file is older than it looks
    known = ImageKeys()
    first = known.key(file)
    known.save(saved)
    later = ImageKeys()
    later.load(saved)
    assert [known.key(file), later.key(file)] == [first, first] and len(read) == 1
    assert str(tmp_path) not in saved.read_text(encoding="ascii")
    file.write_bytes(b"other")
    os.utime(file, ns=(10**18, 10**18))
    assert later.key(file) != first and len(read) == 2


def test_a_file_that_has_just_changed_is_read_each_time(tmp_path: Path) -> None:
    """It can change again within one tick of the clock that tells its age."""
    [file] = draw_pngs(tmp_path, 1)
    known = ImageKeys()
    known.key(file)
    assert known.known == {}


def test_threads_and_other_processes_read_the_same_features(cache: FeatureCache, images: list[str]) -> None:
    expected = [cache.features([image]) for image in images]
    assert len(pickle.dumps(cache)) < 20_000
    copied = pickle.loads(pickle.dumps(cache))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: copied.features([image]), images * 8))
    assert all(torch.equal(one, other) for one, other in zip(found, expected * 8, strict=True))
    loader = torch.utils.data.DataLoader(
        images, batch_size=4, collate_fn=cache.features, num_workers=1, multiprocessing_context="spawn"
    )
    assert torch.equal(torch.cat(list(loader)), torch.cat(expected))


def test_a_cache_is_opened_and_read_without_writing(
    cache_folder: Path, model: Any, processor: PeFoMedProcessor, images: list[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(cache_folder, tmp_path / "features")
    folder.chmod(0o555)
    before = {file.name: file.stat().st_mtime_ns for file in (folder, *folder.iterdir())}
    FeatureCache.open(folder, model, processor.image_processor).features(images)
    assert {file.name: file.stat().st_mtime_ns for file in (folder, *folder.iterdir())} == before
    folder.chmod(0o755)


def test_writing_to_cached_features_does_not_reach_the_cache(cache: FeatureCache, images: list[str]) -> None:
    expected = cache.features(images[:2]).clone()
    cache.features(images[:2]).zero_()
    assert torch.equal(cache.features(images[:2]), expected)

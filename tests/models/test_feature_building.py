# SPDX-License-Identifier: Apache-2.0
"""A cache is written once and whole: by several processes, after a kill, and never by two runs at a time."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pefomed_recipes.data.phantoms import write_phantoms
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.models import feature_shards
from pefomed_recipes.models.feature_building import LOCK, build_features
from pefomed_recipes.models.feature_cache import FeatureCache

from .conftest import draw_pngs, samples_about

pytestmark = pytest.mark.integration

RENDEZVOUS = ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")  # at any free port of this machine
FEATURE_BYTES = 16 * 32 * 4
RunPython = Callable[..., CompletedProcess[str]]

# Builds a cache of all PNG files of a folder, 4 images a shard, after the line {before}.
SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
import torch
from pefomed_recipes.errors import one_line_errors
from pefomed_recipes.models import feature_building, feature_shards
from pefomed_recipes.records import Sample
torch.set_num_threads(1)
feature_shards.SHARD_BYTES = 4 * {bytes}
feature_building.IMAGES_PER_BATCH = 4
base, images, out = sys.argv[1:]
samples = [Sample(str(file), "vqa", [str(file)], "q", ["a"]) for file in sorted(Path(images).glob("*.png"))]
{before}
with one_line_errors():
    feature_building.build_features(base, samples, out, dtype=torch.float32)
"""


@pytest.fixture
def build_apart(run_python: RunPython, base_folder: Path, tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """`build_apart(images, out, before="")` builds in another process, after a line of Python."""

    def build(images: Path, out: Path, before: str = "") -> CompletedProcess[str]:
        script = tmp_path / "build.py"
        script.write_text(SCRIPT.format(bytes=FEATURE_BYTES, before=before), encoding="utf-8")
        return run_python(script, base_folder, images, out)

    return build


def opened(folder: Path, model: Any, processor: Any) -> FeatureCache:
    return FeatureCache.open(folder, model, processor.image_processor)


def shards_of(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("shard-*.safetensors")}


def build(base: Path, images: list[str], out: Path, **options: Any) -> dict[str, int]:
    return build_features(base, samples_about(images), out, dtype=torch.float32, **options)


def test_equal_images_are_computed_once_and_later_runs_add_what_is_new(
    base_folder: Path, model: Any, processor: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images, out = draw_pngs(tmp_path / "images", 5), tmp_path / "features"
    twins = [shutil.copy(image, f"{image}.copy.png") for image in images[:2]]
    assert build(base_folder, images + twins, out) == {"images": 5, "new": 5, "bytes": 5 * FEATURE_BYTES}
    assert "0.01 MB to write for 5 of 5 images; " in capfd.readouterr().err
    first = shards_of(out)
    more = draw_pngs(tmp_path / "images", 3, first=5)
    assert build(base_folder, [*images, *more], out)["new"] == 3
    assert first.items() < shards_of(out).items()
    assert build(base_folder, [*images, *more, *twins], out)["new"] == 0
    cache = opened(out, model, processor)
    assert len(cache) == 8 and cache.missing([*images, *more, *twins]) == []


def test_a_dry_run_says_the_size_and_writes_nothing(
    base_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images, out = draw_pngs(tmp_path / "images", 3), tmp_path / "features"
    assert build(base_folder, images, out, dry_run=True)["new"] == 3
    assert "to write for 3 of 3 images" in capfd.readouterr().err
    assert not out.exists()
    build(base_folder, images[:2], out)
    before = shards_of(out)
    assert build(base_folder, images, out, dry_run=True)["new"] == 1
    assert shards_of(out) == before


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * FEATURE_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PeFoMedError, match="0.01 MB to write for 3 of 3 images, but only 0.01 MB are free"):
        build(base_folder, draw_pngs(tmp_path / "images", 3), tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_a_disk_that_fills_up_ends_in_one_sentence_and_keeps_what_is_whole(
    build_apart: Any, base_folder: Path, model: Any, processor: Any, tmp_path: Path
) -> None:
    """The system refuses to write more than 8 kB of a file: the second shard does not fit."""
    images, out = draw_pngs(tmp_path / "images", 2), tmp_path / "features"
    build(base_folder, images, out)
    kept = shards_of(out)
    draw_pngs(tmp_path / "images", 4, first=2)
    limit = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))"
    process = build_apart(tmp_path / "images", out, limit)
    [line] = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "features cannot be written there (File too large); make room" in line
    assert shards_of(out) == kept and not list(out.glob(".*.partial"))
    assert len(opened(out, model, processor)) == 2


@pytest.mark.parametrize("place", ["file", "below_a_file", "other_folder"])
def test_a_place_that_cannot_hold_a_cache_is_refused(base_folder: Path, tmp_path: Path, place: str) -> None:
    images = draw_pngs(tmp_path / "images", 1)
    out = {"file": Path(images[0]), "below_a_file": Path(images[0]) / "x", "other_folder": base_folder}[place]
    told = "features cannot be written there" if place == "below_a_file" else "something else than a feature cache"
    with pytest.raises(PeFoMedError, match=told):
        build(base_folder, images, out)
    assert (base_folder / "config.json").is_file()


def test_a_killed_run_goes_on_where_it_stopped(
    build_apart: Any, base_folder: Path, model: Any, processor: Any, tmp_path: Path
) -> None:
    """It is killed while it writes its third shard of four."""
    images, out = draw_pngs(tmp_path / "images", 14), tmp_path / "features"
    kill = (
        "written = []; sync = os.fsync\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL) if len(written) == 2 else written.append(sync(fd))"
    )
    assert build_apart(tmp_path / "images", out, kill).returncode == -9
    kept = shards_of(out)
    assert len(kept) == 2 and len(list(out.glob(".shard-*.partial"))) == 1
    assert len(opened(out, model, processor)) == 8
    assert build(base_folder, images, out)["new"] == 6
    assert kept.items() < shards_of(out).items() and not list(out.glob(".*.partial"))
    build(base_folder, images, tmp_path / "whole")
    found, expected = (opened(folder, model, processor).features(images) for folder in (out, tmp_path / "whole"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("damage", ["torn", "one_bit"])
def test_damaged_shards_are_thrown_away_and_computed_again(
    base_folder: Path, model: Any, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """A torn one by every run, one with a wrong bit by a run that verifies."""
    monkeypatch.setattr(feature_shards, "SHARD_BYTES", 8 * FEATURE_BYTES)
    images, out = draw_pngs(tmp_path / "images", 20), tmp_path / "features"
    build(base_folder, images, out)
    expected = opened(out, model, processor).features(images)
    shard = max(out.glob("shard-*"), key=lambda file: file.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4
    shard.write_bytes(content[:-9] if damage == "torn" else content)
    if damage == "one_bit":
        assert build(base_folder, images, out)["new"] == 0
    assert build(base_folder, images, out, verify=damage == "one_bit")["new"] == 8
    assert not shard.exists()
    assert torch.equal(opened(out, model, processor).features(images), expected)


def test_two_runs_do_not_write_to_one_folder(base_folder: Path, tmp_path: Path) -> None:
    images, out = draw_pngs(tmp_path / "images", 2), tmp_path / "features"
    build(base_folder, images[:1], out)
    with (out / LOCK).open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PeFoMedError, match="another run writes features there; wait"):
            build(base_folder, images, out)
    assert build(base_folder, images, out)["new"] == 1


def test_a_cache_of_another_tower_is_not_added_to(base_folder: Path, tmp_path: Path) -> None:
    images, out = draw_pngs(tmp_path / "images", 2), tmp_path / "features"
    build(base_folder, images, out)
    other = shutil.copytree(base_folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.vision_tower.post_layernorm.bias"][3] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    before = shards_of(out)
    with pytest.raises(PeFoMedError, match="computed with other tower weights"):
        build(other, images, out)
    assert shards_of(out) == before


def test_an_image_that_cannot_be_read_is_named(base_folder: Path, tmp_path: Path) -> None:
    images, out = draw_pngs(tmp_path / "images", 2), tmp_path / "features"
    Path(images[1]).write_bytes(Path(images[1]).read_bytes()[:60])
    with pytest.raises(PeFoMedError, match=r"1\.png: the PNG data"):
        build(base_folder, images, out)
    with pytest.raises(PeFoMedError, match="found 0 images"):
        build(base_folder, [], out)


def test_two_processes_write_the_features_of_one(
    repo: Path, run_python: RunPython, base_folder: Path, model: Any, processor: Any, tmp_path: Path
) -> None:
    """Through the launcher, all splits of a data set."""
    write_phantoms(
        tmp_path / "data", tasks=("vqa",), cases_per_split={"train": 8, "validation": 2, "test": 3}, size_px=64, seed=0
    )
    options = ("--dataset", "phantoms", "--data-root", tmp_path / "data")
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", *RENDEZVOUS)
    launcher = (repo / "recipes" / "features.py", base_folder, *options, "--out", tmp_path / "two")
    process = run_python(*launch, *launcher)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("to write for 13 of 13 images") == process.stderr.count("wrote ") == 1
    images = sorted(map(str, (tmp_path / "data").rglob("*.png")))
    dtype = opened_dtype(tmp_path / "two")
    build_features(base_folder, samples_about(images), tmp_path / "one", dtype=dtype)
    one, two = (
        FeatureCache.open(tmp_path / name, base_folder, processor.image_processor, dtype) for name in ("one", "two")
    )
    assert len(shards_of(tmp_path / "two")) == 2 and len(images) == len(two) == 13
    assert torch.equal(one.features(images), two.features(images))


def opened_dtype(folder: Path) -> torch.dtype:
    """The number format of a cache's features: the best of the machine where the launcher ran."""
    [first, *_] = [load_file(shard)["features"] for shard in folder.glob("shard-*")]
    return first.dtype

# SPDX-License-Identifier: Apache-2.0
"""Images that look the same: what the hash survives, what the banded search finds, and the list across data sets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pefomed_recipes import cli
from pefomed_recipes.data.duplicates import find_duplicates
from pefomed_recipes.data.near_duplicates import (
    MAX_DISTANCE,
    MIN_CORRELATION,
    Picture,
    find_near_duplicates,
    perceptual_hash,
    small_look,
)
from pefomed_recipes.data.phantoms import case_seed, draw_phantom, render_phantom
from pefomed_recipes.errors import ConfigError, PeFoMedError

from .small_sets import write_set


def phantom_image(index: int) -> Image.Image:
    """A phantom as a picture."""
    return Image.fromarray(render_phantom(draw_phantom(case_seed(5, "train", index), "medium"), 128))


def picture(image: Image.Image, part: str, name: str = "a.png") -> Picture:
    """A picture in one part."""
    return Picture(perceptual_hash(image), small_look(image), {part: [name]})


def compressed(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=30)
    return Image.open(stream)


def cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    return image.crop((int(width * share), int(height * share), int(width * (1 - share)), int(height * (1 - share))))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": compressed,
    "half the size": lambda image: image.resize((64, 64), Image.Resampling.BICUBIC),
    "stretched": lambda image: image.resize((128, 96)),
    "in colour": lambda image: image.convert("RGB"),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_that_were_saved_or_shown_differently_are_found(change: str) -> None:
    for index in range(12):
        image = phantom_image(index)
        [pair] = find_near_duplicates([picture(image, "train"), picture(CHANGES[change](image), "test")])
        assert pair.distance <= MAX_DISTANCE
        assert pair.correlation >= MIN_CORRELATION


def test_a_crop_of_a_tenth_and_a_mirrored_image_are_other_pictures() -> None:
    for index in range(12):
        image = phantom_image(index)
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        others = [picture(cropped(image, 0.1), "test"), picture(mirrored, "validation")]
        found = find_near_duplicates([picture(image, "train"), others[0]])
        assert found == []
        assert perceptual_hash(mirrored) != perceptual_hash(image)


def test_few_pairs_of_different_phantoms_look_the_same() -> None:
    images = [phantom_image(index) for index in range(120)]
    found = find_near_duplicates([picture(image, f"part{at % 2}") for at, image in enumerate(images)])
    assert len(found) <= 12  # of 3,600; phantoms of one view differ in little more than a lesion


def test_the_search_in_bands_finds_what_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**64, 300, dtype=np.uint64)]
    for at in range(200):  # neighbours at every distance up to 9 bits
        flips = rng.choice(64, size=at % 10, replace=False)
        hashes.append(hashes[at] ^ sum(1 << int(bit) for bit in flips))
    look = bytes(range(256))
    pictures = [Picture(value, look, {"train" if at < 300 else "test": ["x"]}) for at, value in enumerate(hashes)]
    for max_distance in (0, 3, 6, 16):
        expected = {
            (first, second)
            for first in range(300)
            for second in range(300, 500)
            if (hashes[first] ^ hashes[second]).bit_count() <= max_distance
        }
        found = find_near_duplicates(pictures, max_distance=max_distance)
        assert sorted((pair.first, pair.second) for pair in found) == sorted(expected)
        assert [pair.distance for pair in found] == sorted(pair.distance for pair in found)


def test_any_number_of_parts_can_be_searched() -> None:
    look = bytes(range(256))
    pictures = [Picture(7, look, {f"part{at}": ["x"]}) for at in range(130)]
    pictures += [Picture(7, look, {"part0": ["y"]}), Picture(7, look, {"part0": ["z"], "part1": ["z"]})]
    found = {(pair.first, pair.second) for pair in find_near_duplicates(pictures)}
    assert len(found) == 132 * 131 // 2 - 1
    assert (0, 130) not in found  # both in part 0 alone
    assert (130, 131) in found  # the second one is in part 1, too


def test_images_of_one_tone_are_alike_and_have_a_stable_hash() -> None:
    black, grey = Image.new("L", (30, 20), 0), Image.new("RGB", (50, 50), (90, 90, 90))
    assert perceptual_hash(black) == perceptual_hash(grey) == 0
    [pair] = find_near_duplicates([picture(black, "train"), picture(grey, "test")])
    assert pair.correlation == 1
    assert find_near_duplicates([picture(black, "train"), picture(phantom_image(0), "test")]) == []


def test_pictures_of_the_same_part_are_no_pair_and_none_at_all_are_no_error() -> None:
    image = phantom_image(0)
    assert find_near_duplicates([picture(image, "train"), picture(compressed(image), "train")]) == []
    assert find_near_duplicates([]) == []


@pytest.fixture
def two_sets(tmp_path: Path) -> tuple[Path, Path]:
    """Two sets; the second one's test split holds an exact and a compressed copy of two training images."""
    first = write_set(tmp_path / "first", {"train": [{}, {}, {}], "test": [{}]})
    images = [{"image": "images/exact.png"}, {"image": "images/near.jpg"}, {"image": "images/gone.png"}, {}]
    second = write_set(tmp_path / "second", {"test": images})
    for old, new in (("train-0.png", "exact.png"), ("train-2.png", "near.jpg")):
        with Image.open(first / "images" / old) as image:
            image.save(second / "images" / new)
    (second / "images/gone.png").unlink()
    return first, second


def test_pairs_across_sets_and_splits_are_counted_and_named_from_their_folders(two_sets: tuple[Path, Path]) -> None:
    first, second = two_sets
    report = find_duplicates([f"jsonl:{first}", f"jsonl:{second}"], workers=1)
    assert report["parts"] == {"jsonl#1/train": 3, "jsonl#1/test": 1, "jsonl#2/test": 4}
    assert report["counts"] == [{"parts": ["jsonl#1/train", "jsonl#2/test"], "pictures": 2}]
    assert [(pair["names"], pair["equal"]) for pair in report["listed"]] == [
        (["jsonl#1/train images/train-0.png", "jsonl#2/test images/exact.png"], True),
        (["jsonl#1/train images/train-2.png", "jsonl#2/test images/near.jpg"], False),
    ]
    assert report["unusable"] == 1
    assert str(first.parent) not in json.dumps(report)


def test_the_command_prints_pairs_and_writes_them(
    two_sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"{name}:{root}" for name, root in zip(("jsonl", "phantoms"), two_sets, strict=True)]
    out = tmp_path / "pairs.json"
    monkeypatch.setattr("sys.argv", ["pefomed", "data", "duplicates", *sets, "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed, said = capsys.readouterr()
    assert not stop.value.code
    assert [line.split("\t")[1:] for line in printed.splitlines()] == [
        ["jsonl/train images/train-0.png", "phantoms/test images/exact.png"],
        ["jsonl/train images/train-2.png", "phantoms/test images/near.jpg"],
    ]
    assert "2 pictures of phantoms/test are in jsonl/train, too, or nearly" in said
    assert json.loads(out.read_text(encoding="utf-8"))["pairs"] == 2


@pytest.mark.parametrize("entry", ["jsonl", "jsonl:", "jsnol:data"])
def test_a_set_must_be_known_and_have_a_folder(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"NAME:DIR|did you mean jsonl"):
        find_duplicates([entry])


def test_a_folder_without_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeFoMedError, match="found no split"):
        find_duplicates([f"jsonl:{tmp_path}"])

# SPDX-License-Identifier: Apache-2.0
"""Phantoms: a seed is one case everywhere, pictures show what the truth says, a reflection swaps left and right."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import numpy as np
import pytest

from pefomed_recipes.data.phantom_truth import SEED_STREAMS
from pefomed_recipes.data.phantoms import (
    DIFFICULTIES,
    VIEWS,
    Phantom,
    caption,
    case_seed,
    draw_phantom,
    facts,
    mirror,
    questions,
    referring_phrases,
    render_phantom,
    report,
)
from pefomed_recipes.errors import ConfigError

SWAPPED = {"left": "right", "right": "left"}


def cases(count: int, difficulty: str = "easy", stream: str = "preview") -> list[Phantom]:
    return [draw_phantom(case_seed(7, stream, index), difficulty) for index in range(count)]


def test_a_seed_gives_these_very_pixels_and_words_on_every_machine() -> None:
    # another hash means other data: raise FORM_VERSION, so that nobody mixes old and new
    pixels, words = hashlib.sha256(), hashlib.sha256()
    for difficulty in DIFFICULTIES:
        for phantom in cases(40, difficulty):
            pixels.update(render_phantom(phantom, 64).tobytes())
            told = (
                questions(phantom),
                questions(phantom, training=True),
                caption(phantom),
                report(phantom),
                referring_phrases(phantom),
            )
            words.update(repr(told).encode())
    assert words.hexdigest()[:16] == "8b60f795a6620852"
    assert pixels.hexdigest()[:16] == "af89b155e5192ab4"


def test_drawing_and_rendering_again_changes_nothing() -> None:
    for phantom in cases(20):
        again = draw_phantom(phantom.seed, phantom.difficulty)
        assert again == phantom
        assert np.array_equal(render_phantom(again, 48), render_phantom(phantom, 48))


def test_streams_seeds_and_indices_never_share_a_case() -> None:
    seeds = {
        case_seed(seed, stream, index)
        for seed in range(5)
        for stream in SEED_STREAMS
        for index in (0, 1, 1000, 2**32 - 1)
    }
    assert len(seeds) == 5 * len(SEED_STREAMS) * 4


@pytest.mark.parametrize("size_px", [33, 64])
def test_the_mirrored_truth_renders_as_the_reflected_image_exactly(size_px: int) -> None:
    for phantom in cases(60):
        image = render_phantom(phantom, size_px)
        assert np.array_equal(render_phantom(mirror(phantom), size_px), image[:, ::-1])
    assert mirror(mirror(phantom)) == phantom


def test_a_reflection_swaps_the_answers_about_sides_and_no_others() -> None:
    swapped = 0
    for phantom in cases(300):
        reflected = mirror(phantom)
        for asked, about_reflection in zip(questions(phantom), questions(reflected), strict=True):
            assert asked.question == about_reflection.question
            before, after = asked.answer, about_reflection.answer
            if asked.question.startswith("Is there a lesion on the"):
                assert {before, after} == {"yes", "no"}
                swapped += 1
            else:
                assert after.split() == [SWAPPED.get(word, word) for word in before.split()]
                swapped += after != before
        expected = {f"{key}={SWAPPED.get(value, value)}" for key, _, value in map(split_fact, facts(phantom))}
        assert facts(reflected) == expected
    assert swapped > 200


def split_fact(fact: str) -> tuple[str, str, str]:
    return fact.partition("=")


def test_the_patients_right_is_on_the_left_of_the_image() -> None:
    for phantom in cases(200):
        for lesion in phantom.lesions:
            middle = (lesion.box[0] + lesion.box[2]) / 2
            if lesion.side:
                assert lesion.side == ("right" if middle < 50 else "left")
            else:
                assert not VIEWS[phantom.view].is_sided


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_lesion_changes_the_pixels_of_its_box_and_no_others(difficulty: str) -> None:
    size_px, seen = 100, 0
    for phantom in cases(120, difficulty):
        if len(phantom.lesions) != 1:
            continue
        without = render_phantom(replace(phantom, lesions=()), size_px).astype(int)
        change = render_phantom(phantom, size_px).astype(int) - without
        x1, y1, x2, y2 = phantom.lesions[0].box
        margin = 5  # soft edges
        outside = change.copy()
        outside[max(y1 - margin, 0) : y2 + margin, max(x1 - margin, 0) : x2 + margin] = 0
        assert not outside.any()
        inside = change[(y1 + y2) // 2 - 1 : (y1 + y2) // 2 + 2, (x1 + x2) // 2 - 1 : (x1 + x2) // 2 + 2].mean()
        assert inside > 4 if phantom.lesions[0].tone == "bright" else inside < -4
        seen += 1
    assert seen > 30


def test_harder_levels_show_fainter_lesions() -> None:
    strength = []
    for difficulty in DIFFICULTIES:
        changes = [
            np.abs(render_phantom(phantom, 64).astype(int) - render_phantom(replace(phantom, lesions=()), 64)).sum()
            for phantom in cases(80, difficulty)
            if len(phantom.lesions) == 1
        ]
        strength.append(np.mean(changes))
    assert strength[0] > 1.5 * strength[1] > 2.5 * strength[2]


def test_one_case_has_the_same_content_at_any_size() -> None:
    for phantom in cases(30):
        small = render_phantom(phantom, 64).astype(float)
        large = render_phantom(phantom, 256).astype(float).reshape(64, 4, 64, 4).mean(axis=(1, 3))
        assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.95


def test_patients_differ_and_every_view_and_finding_occurs() -> None:
    drawn = cases(600)
    assert {phantom.view for phantom in drawn} == set(VIEWS)
    assert {len(phantom.lesions) for phantom in drawn} == {0, 1, 2, 3}
    for finding in ("cardiomegaly", "ventricles", "gallstone", "contrast"):
        assert {getattr(phantom, finding) for phantom in drawn} == {None, False, True}
    assert {phantom.effusion for phantom in drawn} == {None, "no", "left", "right", "yes"}
    assert len({render_phantom(phantom, 32).tobytes() for phantom in drawn[:100]}) == 100


def test_rendering_takes_less_than_1_5_ms_a_case() -> None:
    drawn = cases(100)
    render_phantom(drawn[0], 64)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        for phantom in drawn:
            render_phantom(phantom, 64)
        seconds.append(time.process_time() - start)
    assert min(seconds) / len(drawn) < 0.0015


def test_located_phrases_single_out_one_lesion() -> None:
    phrases = 0
    for phantom in cases(300):
        named = referring_phrases(phantom)
        assert len({phrase for phrase, _ in named}) == len(named)
        for _, (x1, y1, x2, y2) in named:
            assert 0 <= x1 < x2 <= 100 and 0 <= y1 < y2 <= 100
        phrases += len(named)
        if len(phantom.lesions) == 1:
            assert len(named) == 1
    assert phrases > 150


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean easy"):
        draw_phantom(0, "eazy")
    with pytest.raises(ConfigError, match="did you mean train"):
        case_seed(0, "trian", 0)
    with pytest.raises(ConfigError, match="-1"):
        case_seed(-1, "train", 0)
    with pytest.raises(ConfigError, match="8 px"):
        render_phantom(draw_phantom(0), 8)

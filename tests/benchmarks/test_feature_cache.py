# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the feature cache measures every part; the kept result's costs grow with the images."""

from __future__ import annotations

import json

import pytest

from pefomed_recipes.benchmarks.feature_cache import RESULTS, ROWS, growth, memory, save_base


@pytest.mark.integration
def test_every_part_of_a_caches_life_is_measured(tmp_path):
    found = growth(40)
    assert found["images"] == 40 and all(value >= 0 for value in found.values())
    base = save_base(tmp_path / "base", image_px=32, patch_px=8, width=32, layers=1)
    whole, without = (memory(base, absent) for absent in (False, True))
    assert whole["parameters"] > without["parameters"] > 0


def test_the_kept_result_grows_no_faster_than_the_images():
    kept = json.loads((RESULTS / "feature_cache.json").read_text(encoding="utf-8"))
    counts = [row["images"] for row in kept["growth"]]
    assert counts == list(ROWS)
    for name in kept["growth"][0].keys() - {"images", "read_microseconds_per_image"}:
        small, large = (row[name] for row in kept["growth"][-2:])
        assert large <= 2 * small * counts[-1] / counts[-2], name
    first, *_, last = (row["read_microseconds_per_image"] for row in kept["growth"])
    assert last <= 5 * first
    assert kept["memory"]["without_tower"]["held_mib"] < kept["memory"]["whole"]["held_mib"] / 2

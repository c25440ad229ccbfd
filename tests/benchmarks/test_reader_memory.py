# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the readers' memory streams every row that it writes, in every form."""

from __future__ import annotations

import json

import pytest

from pefomed_recipes.benchmarks.reader_memory import FORMS, RESULTS, ROWS, stream_all, write_rows


@pytest.mark.parametrize("form", FORMS)
def test_all_generated_rows_are_streamed(tmp_path, form):
    write_rows(form, tmp_path, 50)
    found = stream_all(form, tmp_path)
    assert found["rows"] == 50 and 0 < found["before_mib"] <= found["peak_mib"]


def test_the_kept_result_shows_memory_that_hardly_grows():
    kept = json.loads((RESULTS / "reader_memory.json").read_text(encoding="utf-8"))
    assert set(kept["forms"]) == set(FORMS)
    for small, large in kept["forms"].values():
        assert (small["rows"], large["rows"]) == ROWS
        assert large["peak_mib"] - small["peak_mib"] < 50

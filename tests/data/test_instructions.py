# SPDX-License-Identifier: Apache-2.0
"""The wording that follows the task identifier: the paper's, deterministic, and the same at every test."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter

import pytest

from pefomed_recipes.data.datasets_index import SOURCES
from pefomed_recipes.data.instructions import (
    CAPTION_REQUESTS,
    DATASET_REQUESTS,
    RELEASED_CAPTION_REQUESTS,
    RELEASED_REPORT_REQUESTS,
    REPORT_REQUESTS,
    format_box,
    render_instruction,
    vqa_instruction,
)
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.records import Sample

SHORT = "Based on the image, respond to this question with a short answer: "


def sample(task: str, instruction: str = "", id: str = "s1") -> Sample:
    return Sample(id=id, task=task, image_paths=["a.png"], instruction=instruction, answers=["yes"])


def test_vqa_instructions_are_the_papers_two():
    assert vqa_instruction("Is it CT?", instruction="plain") == "Is it CT?"
    assert vqa_instruction("Is it CT?", instruction="short_answer") == SHORT + "Is it CT?"


def test_braces_of_a_question_stay_as_typed():
    assert vqa_instruction("{q} {0} {x.__class__}", instruction="short_answer") == SHORT + "{q} {0} {x.__class__}"


def test_mixed_draws_both_instructions_about_equally():
    drawn = Counter(vqa_instruction("q", "mixed", 0, f"sample-{n}") for n in range(1000))
    assert set(drawn) == {"q", SHORT + "q"} and 420 < drawn["q"] < 580


def test_the_draw_hangs_on_seed_and_sample_id_only():
    rows = [sample("caption", id=str(n)) for n in range(200)]

    def draw(seed: int | tuple[int, int]) -> list[str]:
        return [render_instruction(row, training=True, seed=seed) for row in rows]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw((1, 0)) != draw((1, 1))


def test_the_draw_is_the_same_in_every_process():
    code = (
        "from pefomed_recipes.data.instructions import vqa_instruction as v;"
        "print(''.join(str(len(v('q', 'mixed', 42, str(n))) // 2 % 2) for n in range(40)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    here = "".join(str(len(vqa_instruction("q", "mixed", 42, str(n))) // 2 % 2) for n in range(40))
    assert outputs == {here + "\n"} and {"0", "1"} <= set(here)


def test_one_shape_can_be_chosen_for_training_and_test_alike():
    row = sample("vqa", "Is it CT?")
    for training in (True, False):
        assert render_instruction(row, training=training, instruction="plain") == "Is it CT?"
        assert render_instruction(row, training=training, instruction="short_answer") == SHORT + "Is it CT?"


def test_test_time_asks_for_a_short_answer_whatever_the_seed():
    rows = [sample("vqa", "Is it CT?", id=str(n)) for n in range(50)]
    assert {render_instruction(row, training=False, seed=n) for n, row in enumerate(rows)} == {SHORT + "Is it CT?"}


@pytest.mark.parametrize(("task", "pool"), [("caption", CAPTION_REQUESTS), ("report", REPORT_REQUESTS)])
def test_requests_come_from_the_pool_in_training_and_are_fixed_at_test(task, pool):
    rows = [sample(task, id=str(n)) for n in range(400)]
    assert {render_instruction(row, training=True) for row in rows} == set(pool)
    assert {render_instruction(row, training=False) for row in rows} == {pool[0]}
    assert len(set(pool)) == len(pool)


@pytest.mark.parametrize(
    ("task", "pool", "size"), [("caption", RELEASED_CAPTION_REQUESTS, 17), ("report", RELEASED_REPORT_REQUESTS, 15)]
)
def test_the_released_codes_pools_have_its_sizes_and_are_drawn_from_when_asked_for(task, pool, size):
    rows = [sample(task, id=str(n)) for n in range(600)]
    assert {render_instruction(row, training=True, released=True) for row in rows} == set(pool)
    assert len(set(pool)) == size


@pytest.mark.parametrize(("source", "task"), DATASET_REQUESTS)
def test_a_data_sets_own_wordings_are_drawn_in_training_only(source, task):
    general = CAPTION_REQUESTS if task == "caption" else REPORT_REQUESTS
    rows = [dataclasses.replace(sample(task, id=str(n)), source=source) for n in range(600)]
    drawn = {render_instruction(row, training=True) for row in rows}
    assert drawn == {*general, *DATASET_REQUESTS[source, task]} > set(general)
    assert {render_instruction(row, training=False) for row in rows} == {general[0]}
    assert not {render_instruction(row, training=True, released=True) for row in rows} & (drawn - set(general))


def test_data_sets_with_own_wordings_are_known_and_have_the_task():
    for slug, task in DATASET_REQUESTS:
        assert {task, "report"} & set(SOURCES[slug].tasks)  # where there is nothing else, reports serve as captions


def test_every_report_request_asks_for_a_report():
    assert all("report" in request.lower() and not request.endswith("?") for request in REPORT_REQUESTS)


def test_a_request_of_the_sample_itself_stands():
    for training in (True, False):
        assert render_instruction(sample("report", "Befund bitte."), training=training) == "Befund bitte."


def test_refer_asks_for_the_location_of_the_phrase():
    for training in (True, False):
        row = sample("refer", "left effusion")
        assert render_instruction(row, training=training) == "give me the location of left effusion"


def test_unknown_instructions_tasks_and_empty_questions_are_refused():
    with pytest.raises(ConfigError, match=r"'short_anser' \(did you mean short_answer\?\); expected one of plain"):
        vqa_instruction("q", instruction="short_anser")  # type: ignore[arg-type]
    with pytest.raises(PeFoMedError, match=r"Unknown task 'captoin' \(did you mean caption\?\)"):
        render_instruction(sample("captoin"), training=True)
    for task in ("vqa", "refer"):
        with pytest.raises(PeFoMedError, match="is empty"):
            render_instruction(sample(task, " "), training=True)


def test_a_box_is_written_as_the_scorer_reads_it():
    assert format_box([0, 5, 100, 37]) == "{<0><5><100><37>}"


@pytest.mark.parametrize(
    "box", [[1, 2, 3], [1, 2, 3, 4, 5], [1.0, 2, 3, 4], [True, 2, 3, 4], "1234", None, 7, [5, 2, 5, 4], [1, 4, 3, 2],
            [-1, 2, 3, 4], [1, 2, 3, 101]]
)  # fmt: skip
def test_what_is_no_box_is_not_written(box):
    with pytest.raises(PeFoMedError, match="a box must"):
        format_box(box)

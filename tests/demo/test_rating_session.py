# SPDX-License-Identifier: Apache-2.0
"""What a rating study promises, whatever page stands before it: order, resuming, undo, and that no rating is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pefomed_demo import rating_session
from pefomed_demo.rating_session import RatingBook, RatingStudy, Refused
from pefomed_recipes.errors import ConfigError
from pefomed_recipes.evaluation.agreeing import agree
from pefomed_recipes.evaluation.raters import CONTROLS, read_ratings, write_csv
from pefomed_recipes.records import Prediction

RATERS = ("R1", "R2")
Open = Callable[..., RatingStudy]

# Rates as `argv[2]` until nothing is left, in a process of its own; argv[3] further raters' codes were given.
RATE_ALL = """
import sys
from tests_predictions import predictions
from pefomed_demo import rating_session
from pefomed_demo.rating_session import RatingBook, RatingStudy, Refused
rating_session.SHORTEST_SECONDS = 0
items = predictions()
study = RatingStudy(items, RatingBook(sys.argv[1], items), ["R1", "R2"])
while (at := study.progress(sys.argv[2])).code:
    try:
        study.rate(sys.argv[2], at.code, 1, "x" * 300)
        print(at.code, flush=True)
    except Refused:
        pass
"""


def predictions() -> list[Prediction]:
    """Twenty answers of each of two systems."""
    return [
        Prediction(f"item {n}", "vqa", f"Question {n}?", [f"answer {n}"], f"{name} says {n}", model=name)
        for n in range(20)
        for name in ("one", "two")
    ]


@pytest.fixture
def open_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens the same study anew, as a server does that was started again."""
    monkeypatch.setattr(rating_session, "SHORTEST_SECONDS", 0)

    def open_study(seed: int = 0) -> RatingStudy:
        items = predictions()
        return RatingStudy(items, RatingBook(tmp_path / "ratings.jsonl", items), RATERS, seed=seed)

    return open_study


def rate_all(study: RatingStudy, rater: str, score: int | None = 1) -> list[str]:
    """Rate what is left; returns the codes in the order in which they were asked."""
    asked = []
    while code := study.progress(rater).code:
        study.rate(rater, code, score)
        asked.append(code)
    return asked


def test_each_rater_has_an_order_that_only_seed_and_code_decide(open_study: Open) -> None:
    orders = {rater: list(open_study().rows[rater]) for rater in RATERS}
    assert orders == {rater: list(open_study().rows[rater]) for rater in RATERS}
    assert orders["R1"] != orders["R2"]
    assert orders["R1"] != list(open_study(seed=1).rows["R1"])


def test_a_study_holds_every_answer_hidden_repeats_and_controls(open_study: Open) -> None:
    rows = [shown.row for shown in open_study().rows["R1"].values()]
    assert {(row.item_id, row.system) for row in rows} >= {(item.id, item.system) for item in predictions()}
    assert sum(row.repeat for row in rows) == round(0.08 * (len(rows) - sum(row.repeat for row in rows)))
    assert {row.system for row in rows} >= set(CONTROLS)


def test_a_study_that_is_opened_again_goes_on_where_it_stopped(open_study: Open) -> None:
    study = open_study()
    expected = list(study.rows["R1"])
    for _ in range(7):
        study.rate("R1", study.progress("R1").code, 0)
    again = open_study()
    assert (again.progress("R1").done, again.progress("R2").done) == (7, 0)
    assert rate_all(again, "R1") == expected[7:]


def test_undo_takes_back_one_rating_after_the_other_and_no_other_raters(open_study: Open) -> None:
    study = open_study()
    codes = list(study.rows["R1"])
    study.rate("R1", codes[0], 0, "first")
    study.rate("R2", study.progress("R2").code, 1)
    study.rate("R1", codes[1], None)
    study.rate("R2", study.progress("R2").code, 1)
    second, first = study.undo("R1"), study.undo("R1")
    assert second is not None and second.cannot_judge
    assert first is not None and first.comment == "first"
    assert study.undo("R1") is None
    assert study.progress("R1").code == codes[0]
    assert [rating.rater_id for rating in read_ratings([study.book.path])[0]] == ["R2", "R2"]
    study.rate("R1", codes[0], 1)
    assert [rating.score for rating in open_study().book.ratings() if rating.rater_id == "R1"] == [1]


def test_a_file_whose_only_rating_was_taken_back_is_an_empty_one(open_study: Open) -> None:
    study = open_study()
    study.rate("R1", study.progress("R1").code, 0)
    study.undo("R1")
    assert open_study().progress("R1").done == 0


@pytest.mark.parametrize("score", [2, -1, True, 0.5, "1"])
def test_scores_off_the_scale_are_refused(open_study: Open, score: object) -> None:
    study = open_study()
    with pytest.raises(Refused, match="from 0 to 1"):
        study.rate("R1", study.progress("R1").code, score)  # type: ignore[arg-type]
    assert not study.book.path.exists()


def test_only_the_row_that_is_shown_can_be_rated_and_only_once(open_study: Open) -> None:
    study = open_study()
    first, second, *_ = study.rows["R1"]
    for code in (second, next(iter(study.rows["R2"])), "", "nonsense"):
        with pytest.raises(Refused, match="not the one"):
            study.rate("R1", code, 1)
    study.rate("R1", first, 1)
    with pytest.raises(Refused, match="not the one"):
        study.rate("R1", first, 1)
    assert len(study.book.ratings()) == 1


def test_the_second_half_of_a_double_click_does_not_rate_the_next_answer(
    open_study: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rating_session, "SHORTEST_SECONDS", 3600)
    study = open_study()
    with pytest.raises(Refused, match="double"):
        study.rate("R1", study.progress("R1").code, 1)
    assert not study.book.path.exists()


def test_unknown_codes_are_refused_and_unfit_ones_not_accepted(open_study: Open, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not known"):
        open_study().progress("R3")
    for codes in ([], ["Jane Doe"], ["A", "A"], [""]):
        with pytest.raises(ConfigError, match="never a name"):
            RatingStudy(predictions(), RatingBook(tmp_path / "r.jsonl"), codes)


def test_comments_keep_their_words_and_lose_what_breaks_files(open_study: Open) -> None:
    study = open_study()
    study.rate("R1", study.progress("R1").code, 1, '<b>"größer", 心臓\x00\ud800\n=1+1 ')
    assert study.book.ratings()[0].comment == '<b>"größer", 心臓\n=1+1'


def test_ratings_flow_through_csv_and_agreement_unchanged(open_study: Open, tmp_path: Path) -> None:
    study = open_study()
    for rater in RATERS:
        rate_all(study, rater)
    write_csv(tmp_path / "ratings.csv", study.book.ratings())
    assert read_ratings([tmp_path / "ratings.csv"])[0] == study.book.ratings()
    [panel] = agree([study.book.path], resamples=20).panels
    [overall] = [c for c in panel.comparisons if c.slice == "overall"]
    assert (panel.counts["answers"], overall.measures["raw_agreement"].value) == (40, 1.0)


def start(tmp_path: Path, rater: str) -> subprocess.Popen[str]:
    """Start a process that rates everything as `rater`."""
    source = Path(__file__)
    code = RATE_ALL.replace(
        "from tests_predictions import predictions",
        f"import runpy; predictions = runpy.run_path({str(source)!r})['predictions']",
    )
    command = [sys.executable, "-c", code, str(tmp_path / "ratings.jsonl"), rater]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.integration
def test_processes_that_rate_at_once_lose_and_double_nothing(open_study: Open, tmp_path: Path) -> None:
    processes = [start(tmp_path, rater) for rater in ("R1", "R1", "R2")]
    confirmed = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    study = open_study()
    assert sorted(confirmed[0] + confirmed[1]) == sorted(study.rows["R1"])
    assert len(study.book.ratings()) == len(study.rows["R1"]) + len(study.rows["R2"])


@pytest.mark.integration
def test_a_killed_process_loses_no_rating_that_it_confirmed(open_study: Open, tmp_path: Path) -> None:
    process = start(tmp_path, "R1")
    assert process.stdout is not None
    confirmed = [process.stdout.readline().strip() for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    # Not `communicate`, which passes over what the reader has taken from the pipe already.
    confirmed += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.wait(timeout=60)
    study = open_study()
    done = study.progress("R1").done
    assert list(study.rows["R1"])[: len(confirmed)] == confirmed
    assert len(confirmed) <= done <= len(confirmed) + 1
    assert len(rate_all(study, "R1")) == len(study.rows["R1"]) - done

# SPDX-License-Identifier: Apache-2.0
"""Ratings by people: what is read, what is refused with file and line, and sheets that hide who answered."""

from __future__ import annotations

import csv
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.evaluation.raters import CONTROLS, EMPTY, IDENTITY, Defaults, read_ratings, write_csv
from pefomed_recipes.evaluation.rating_files import describe_ratings, import_ratings, merge_sheets
from pefomed_recipes.evaluation.rating_sheets import SHEET_COLUMNS, export_sheet, merge_sheet, read_systems
from pefomed_recipes.rate import rate_app
from pefomed_recipes.records import Prediction, Rating, append_records, read_records, write_records

RATING = Rating("i1", "m", "R1", "report", "paper-report", 3)


def _systems(folder: Path, items: int = 40, systems: tuple[str, ...] = ("alpha", "beta")) -> list[Path]:
    """Write reports of several systems; each answer says whose it is, so that a test can tell."""
    paths = []
    for system in systems:
        answers = [
            Prediction(
                f"item{at}", "report", "", [f"reference {at}"], f"{system} on {at}", image_id=f"x{at}", model=system
            )
            for at in range(items)
        ]
        paths.append(folder / f"{system}.jsonl")
        write_records(paths[-1], answers)
    return paths


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _fill(sheet: Path) -> None:
    """Rate as an attentive rater would: alpha's answers 3, beta's 1, the reference 4, nothing 0."""
    rows = _rows(sheet)
    for row in rows:
        said = row["candidate"].split(" ")[0]
        row["score"] = {"alpha": "3", "beta": "1", "reference": "4", "": "0"}[said]
    _write_rows(sheet, rows)


def test_ratings_survive_csv_and_back(tmp_path: Path) -> None:
    ratings = [
        replace(RATING, comment='=HYPERLINK("x"); "quoted",\nsecond line, Größe'),
        replace(RATING, item_id="i2", score=None, cannot_judge=True, seconds=3.25, comment="'=1"),
        replace(RATING, item_id="-3", repeat=1, rated_at="2026-01-31T14:00:00+00:00", comment="'tis"),
    ]
    write_csv(tmp_path / "ratings.csv", ratings)
    assert read_ratings([tmp_path / "ratings.csv"]) == (ratings, [])
    assert import_ratings([tmp_path / "ratings.csv"], tmp_path / "ratings.jsonl")[-1].startswith("appended 3")
    assert read_records(tmp_path / "ratings.jsonl", Rating) == ratings


def test_no_cell_of_an_exported_table_runs_as_a_formula(tmp_path: Path) -> None:
    write_csv(tmp_path / "ratings.csv", [replace(RATING, comment=text) for text in ("=1+1", "+1", "-1", "@SUM(1)")])
    assert all(row["comment"][0] == "'" for row in _rows(tmp_path / "ratings.csv"))


def test_a_table_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    """Semicolons, a byte order mark, CRLF, whole numbers with a decimal point, and blank lines."""
    text = "\ufeffitem_id;rater_id;score;system\r\ni1;1;3.0;m\r\n\r\ni2;1;0;m\r\n"
    (tmp_path / "ratings.csv").write_bytes(text.encode())
    ratings, _ = read_ratings([tmp_path / "ratings.csv"], defaults=Defaults(task="report"))
    assert [(r.item_id, r.rater_id, r.score, r.rubric) for r in ratings] == [
        ("i1", "1", 3, "paper-report"),
        ("i2", "1", 0, "paper-report"),
    ]


def test_one_rater_a_column_is_read(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("study,0,1,2\ns1,4,x,3\ns2,,0,1\n", encoding="utf-8")
    defaults = Defaults("report", "", "m", {"study": "item_id"})
    ratings, notes = read_ratings([tmp_path / "wide.csv"], defaults=defaults)
    assert [(r.item_id, r.rater_id, r.score, r.cannot_judge) for r in ratings] == [
        ("s1", "0", 4, False),
        ("s1", "1", None, True),
        ("s1", "2", 3, False),
        ("s2", "1", 0, False),
        ("s2", "2", 1, False),
    ]
    assert notes == [f"{tmp_path / 'wide.csv'}: 1 cells are blank: not rated"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"score": 5}, "score 5, expected a whole number from 0 to 4 (paper-report)"),
        ({"score": -1}, "score -1, expected"),
        ({"score": 3.5}, "score 3.5, expected"),
        ({"score": True}, "score True, expected"),
        ({"score": "high"}, "score 'high', expected"),
        ({"score": float("nan")}, "score nan, expected"),
        ({"score": 2, "task": "vqa", "rubric": "paper-vqa"}, "from 0 to 1 (paper-vqa)"),
        ({"score": None}, "no score"),
        ({"cannot_judge": True}, "both a score and cannot_judge"),
        ({"cannot_judge": "maybe"}, "cannot_judge 'maybe', expected true or false"),
        ({"rubric": "paper-reports"}, "rubric 'paper-reports', expected one of"),
        ({"task": "essay"}, "task 'essay', expected one of"),
        ({"rater_id": " "}, "rater_id is missing"),
        ({"item_id": ["i1"]}, "item_id is missing"),
        ({"seconds": -2}, "seconds -2, expected a number from 0"),
        ({"rated_at": "yesterday"}, "rated_at 'yesterday', expected a time in ISO 8601"),
        ({"repeat": "often"}, "repeat 'often', expected a whole number"),
        ({"sytem": "m"}, "unknown column 'sytem' (did you mean system?)"),
    ],
)
def test_a_bad_rating_is_named_with_its_line(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    row = {"item_id": "i1", "system": "m", "rater_id": "R1", "task": "report", "rubric": "paper-report", "score": 3}
    good = json.dumps(row | {"item_id": "i0"})
    (tmp_path / "ratings.jsonl").write_text(f"{good}\n{json.dumps(row | change)}\n", encoding="utf-8")
    with pytest.raises(PeFoMedError) as found:
        read_ratings([tmp_path / "ratings.jsonl"])
    assert "ratings.jsonl, line 2: " in str(found.value)
    assert problem in str(found.value)


def test_all_problems_of_all_files_are_listed_at_once(tmp_path: Path) -> None:
    [answers] = _systems(tmp_path, items=2, systems=("alpha",))
    (tmp_path / "latin.csv").write_bytes("item_id,rater_id,score\ni1,Ren\xe9,3\n".encode("latin-1"))
    (tmp_path / "ragged.csv").write_text('item_id,rater_id,score\n"item0",R9\nitem0,R9,9\n', encoding="utf-8")
    ratings = [
        replace(RATING, item_id="item0", system="alpha"),
        replace(RATING, item_id="item0", system="alpha"),
        replace(RATING, item_id="itm1", system="alpha"),
        replace(RATING, item_id="item1", system="alhpa"),
        replace(RATING, item_id="item1", system="alpha", task="caption"),
    ]
    write_records(tmp_path / "ratings.jsonl", ratings)
    with (tmp_path / "ratings.jsonl").open("a", encoding="utf-8") as out:
        out.write("[1]\nno json\n")
    files = [tmp_path / name for name in ("latin.csv", "ragged.csv", "ratings.jsonl", "nowhere.csv")]
    with pytest.raises(PeFoMedError) as found:
        read_ratings(files, read_systems([answers]), Defaults(system="alpha"))
    problems = str(found.value)
    for problem in (
        "latin.csv, line 2: not UTF-8",
        "ragged.csv, line 2: 2 cells, expected 3",
        "ragged.csv, line 3: score '9', expected a whole number from 0 to 4",
        "ratings.jsonl, line 2: 'R1' rated item 'item0' of 'alpha' already",
        "ratings.jsonl, line 3: unknown item_id 'itm1' (did you mean item1?)",
        "ratings.jsonl, line 4: unknown system 'alhpa' (did you mean alpha?)",
        "ratings.jsonl, line 5: task 'caption', but the prediction's is 'report'",
        "ratings.jsonl, line 6: found list, expected a JSON object",
        "ratings.jsonl, line 7: not JSON",
        "nowhere.csv: no such file",
    ):
        assert problem in problems
    assert problems.startswith("10 problems")


def test_a_row_with_a_bad_score_has_its_ids_checked_too(tmp_path: Path) -> None:
    [answers] = _systems(tmp_path, items=2, systems=("alpha",))
    rows = "item_id,rater_id,score,system\nitem0,R1,9,beta\nnobody,R1,1,alpha\n"
    (tmp_path / "ratings.csv").write_text(rows, encoding="utf-8")
    with pytest.raises(PeFoMedError) as found:
        read_ratings([tmp_path / "ratings.csv"], read_systems([answers]))
    for problem in ("line 2: score '9'", "line 2: unknown system 'beta'", "line 3: unknown item_id 'nobody'"):
        assert problem in str(found.value)


@pytest.mark.parametrize("text", ["", "item_id,rater_id,score\n", "{}\n"])
def test_a_file_without_ratings_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / ("ratings.jsonl" if text.startswith("{") else "ratings.csv")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PeFoMedError):
        read_ratings([path])


def test_a_half_line_that_a_killed_writer_left_is_said_and_costs_no_other_rating(tmp_path: Path) -> None:
    path = tmp_path / "ratings.jsonl"
    append_records(path, [RATING])
    with path.open("ab") as out:
        out.write(b'{"item_id": "i2", "sys')
    ratings, notes = read_ratings([path])
    assert (ratings, notes) == ([RATING], [f"{path}, line 2: a half line at the end, left out"])
    append_records(path, [replace(RATING, item_id="i3")])
    assert [r.item_id for r in read_ratings([path])[0]] == ["i1", "i3"]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ratings.jsonl"
    append_records(path, [RATING])
    path.write_bytes(path.read_bytes().rstrip())
    append_records(path, [replace(RATING, item_id="i2")])
    assert [r.item_id for r in read_ratings([path])[0]] == ["i1", "i2"]


def test_many_writers_lose_no_rating(tmp_path: Path) -> None:
    path = tmp_path / "ratings.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: append_records(path, [replace(RATING, item_id=f"i{at}")]), range(200)))
    assert {r.item_id for r in read_ratings([path])[0]} == {f"i{at}" for at in range(200)}


def test_a_sheet_hides_who_answered_and_its_order_is_the_raters_own(tmp_path: Path) -> None:
    paths = _systems(tmp_path)
    sheets = []
    for name, rater, files in (("a", "R1", paths), ("b", "R1", paths[::-1]), ("c", "R2", paths)):
        rows = export_sheet(read_systems(files), rater, tmp_path / f"{name}.csv", tmp_path / f"{name}.json")
        assert rows == 80 + 7 + 2  # 8 % repeats, 3 % controls
        sheets.append((tmp_path / f"{name}.csv").read_bytes())
    assert sheets[0] == sheets[1]
    rows, other = _rows(tmp_path / "a.csv"), _rows(tmp_path / "c.csv")
    assert tuple(rows[0]) == SHEET_COLUMNS
    assert [row["candidate"] for row in rows] != [row["candidate"] for row in other]
    assert not {row["row"] for row in rows} & {row["row"] for row in other}
    assert "item" not in "".join(row["row"] + row["image"] for row in rows)
    said = [row["candidate"] for row in rows]
    counts = Counter(said)
    assert sum(n == 2 for n in counts.values()) == 7
    assert all(at > 41 > said.index(text) for at, text in enumerate(said) if said.index(text) < at)
    key = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    systems = Counter(row["system"] for row in key["rows"].values())
    assert (systems[IDENTITY], systems[EMPTY]) == (1, 1)
    assert all(key["rows"][row["row"]]["repeat"] == (said.index(row["candidate"]) < at) for at, row in enumerate(rows))


def test_all_raters_get_the_same_items_under_a_limit(tmp_path: Path) -> None:
    items = []
    for rater in ("R1", "R2"):
        predictions = read_systems(_systems(tmp_path))
        export_sheet(predictions, rater, tmp_path / "s.csv", tmp_path / "s.json", limit=10)
        key = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
        items.append(
            {(row["item_id"], row["system"]) for row in key["rows"].values() if row["system"] not in CONTROLS}
        )
    assert items[0] == items[1]
    assert len(items[0]) == 20


def test_a_merged_sheet_gives_each_rating_its_item_and_system_back(tmp_path: Path) -> None:
    export_sheet(read_systems(_systems(tmp_path)), "R1", tmp_path / "s.csv", tmp_path / "s.key.json")
    _fill(tmp_path / "s.csv")
    said = merge_sheets([tmp_path / "s.csv"], [tmp_path / "s.key.json"], tmp_path / "ratings.jsonl")
    assert said == [f"appended 89 ratings to {tmp_path / 'ratings.jsonl'}"]
    ratings, _ = read_ratings(
        [tmp_path / "ratings.jsonl"], read_systems([tmp_path / "alpha.jsonl", tmp_path / "beta.jsonl"])
    )
    assert {(r.system, r.score) for r in ratings} == {("alpha", 3), ("beta", 1), (IDENTITY, 4), (EMPTY, 0)}
    assert len({(r.item_id, r.system) for r in ratings if r.system not in CONTROLS}) == 80
    assert sum(r.repeat for r in ratings) == 7
    assert "R1" in describe_ratings(ratings)
    assert "7 of 7" in describe_ratings(ratings)
    assert "2 of 2" in describe_ratings(ratings)


def test_rows_left_blank_are_counted_and_marks_are_kept(tmp_path: Path) -> None:
    export_sheet(read_systems(_systems(tmp_path)), "R1", tmp_path / "s.csv", tmp_path / "s.key.json")
    rows = _rows(tmp_path / "s.csv")
    rows[0]["score"], rows[1]["cannot_judge"], rows[1]["comment"] = "2", "x", "cut off"
    _write_rows(tmp_path / "s.csv", rows)
    ratings, notes = merge_sheet(tmp_path / "s.csv", tmp_path / "s.key.json")
    assert [(r.score, r.cannot_judge, r.comment) for r in ratings] == [(2, False, ""), (None, True, "cut off")]
    assert notes == [f"{tmp_path / 's.csv'}: 87 of 89 rows are blank: not rated"]


def test_a_sheet_that_does_not_fit_its_key_is_refused_with_all_problems(tmp_path: Path) -> None:
    export_sheet(read_systems(_systems(tmp_path)), "R1", tmp_path / "s.csv", tmp_path / "s.key.json")
    _fill(tmp_path / "s.csv")
    rows = _rows(tmp_path / "s.csv")
    rows[0]["score"] = "7"
    rows[1]["row"] = "stranger"
    rows[3] = rows[2]
    rows[4] |= {"score": "", "comment": "see above"}
    _write_rows(tmp_path / "s.csv", rows)
    with pytest.raises(PeFoMedError) as found:
        merge_sheets([tmp_path / "s.csv"], [tmp_path / "s.key.json"], tmp_path / "ratings.jsonl")
    for problem in (
        "line 2: score '7'",
        "line 3: row 'stranger' is not in the key",
        "line 5: row '",
        "line 6: no score",
        "2 rows of the key are missing",
    ):
        assert problem in str(found.value)
    assert not (tmp_path / "ratings.jsonl").exists()


def test_a_sheet_is_not_merged_twice(tmp_path: Path) -> None:
    export_sheet(read_systems(_systems(tmp_path)), "R1", tmp_path / "s.csv", tmp_path / "s.key.json")
    _fill(tmp_path / "s.csv")
    merge_sheets([tmp_path / "s.csv"], [tmp_path / "s.key.json"], tmp_path / "ratings.jsonl")
    before = (tmp_path / "ratings.jsonl").read_bytes()
    with pytest.raises(PeFoMedError, match="rated item 'item.*already"):
        merge_sheets([tmp_path / "s.csv"], [tmp_path / "s.key.json"], tmp_path / "ratings.jsonl")
    with pytest.raises(PeFoMedError, match="already"):
        import_ratings([tmp_path / "ratings.jsonl"], tmp_path / "ratings.jsonl")
    assert (tmp_path / "ratings.jsonl").read_bytes() == before


def test_the_same_answers_twice_are_refused(tmp_path: Path) -> None:
    [path] = _systems(tmp_path, items=2, systems=("alpha",))
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    with pytest.raises(PeFoMedError, match="systems differ by"):
        read_systems([path, tmp_path / "copy.jsonl"])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"out": "s.txt"}, "expected a sheet that ends in .csv"),
        ({"rubric": "likert"}, "rubric 'likert'"),
        ({"rater": " "}, "the rater's code is blank"),
    ],
)
def test_a_sheet_needs_a_rater_a_rubric_and_fit_names(tmp_path: Path, change: dict[str, str], found: str) -> None:
    options = {"out": "s.csv", "rater": "R1", "rubric": ""} | change
    predictions = read_systems(_systems(tmp_path, items=2))
    with pytest.raises(ConfigError, match=found):
        export_sheet(
            predictions, options["rater"], tmp_path / options["out"], tmp_path / "k.json", rubric=options["rubric"]
        )


def test_a_sheet_of_credentialed_data_says_so(tmp_path: Path) -> None:
    [path] = _systems(tmp_path, items=3, systems=("alpha",))
    write_records(path, [replace(item, credentialed=True) for item in read_records(path, Prediction)])
    made = CliRunner().invoke(rate_app, ["export", str(path), "--rater", "R1", "--out", str(tmp_path / "s.csv")])
    assert made.exit_code == 0
    assert "credentialed data: only for raters who have access" in made.output


def test_the_commands_go_from_sheet_to_checked_ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _systems(tmp_path)
    run = CliRunner().invoke
    made = run(rate_app, ["export", "alpha.jsonl", "beta.jsonl", "--rater", "R1", "--out", "s.csv"])
    assert made.exit_code == 0, made.output
    _fill(Path("s.csv"))
    assert run(rate_app, ["merge", "s.csv", "--out", "ratings.jsonl"]).exit_code == 0
    checked = run(rate_app, ["check", "ratings.jsonl", "--predictions", "alpha.jsonl", "--predictions", "beta.jsonl"])
    assert checked.exit_code == 0
    assert "| report | R1" in checked.output
    assert run(rate_app, ["import", "ratings.jsonl", "--out", "ratings.csv"]).exit_code == 0
    assert len(_rows(Path("ratings.csv"))) == 89
    refused = run(rate_app, ["check", "ratings.csv", "--predictions", "alpha.jsonl"])
    assert refused.exit_code == 1

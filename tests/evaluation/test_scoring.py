# SPDX-License-Identifier: Apache-2.0
"""From files to results: what is written, what is refused, and that the same input gives the same output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.evaluation.predictions import read_train_samples
from pefomed_recipes.evaluation.results import Results, read_results
from pefomed_recipes.evaluation.scoring import score
from pefomed_recipes.evaluation.tables import headline
from pefomed_recipes.records import Prediction, Sample, read_records, write_records


def _score(run: Path, out: Path | None = None) -> Results:
    return score(
        run / "predictions.jsonl",
        controls={"blank_image": run / "blank.jsonl", "shuffle": run / "shuffle.jsonl"},
        train_samples=run / "train.jsonl",
        out=out,
    )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def test_results_are_written_and_read_back_equal(vqa_run: Path) -> None:
    results = _score(vqa_run, vqa_run / "out" / "results.json")
    stored = read_results(vqa_run / "out" / "results.json")
    assert stored.headline.score.numerator == results.headline.score.numerator == 27
    assert stored.headline.score.denominator == 36
    assert (stored.task, stored.sources, stored.models) == ("vqa", ["handwritten"], ["tiny"])
    assert stored.counts == results.counts
    assert [row.score.value for row in stored.rows] == pytest.approx([row.score.value for row in results.rows])
    assert stored.headline.differences["blank_image"].interval is not None
    assert stored.files["predictions"].records == 36
    assert len(stored.files["control blank_image"].sha256) == 64
    assert {"python", "numpy", "statsmodels"} <= set(stored.packages)
    assert "27 of 36" in (vqa_run / "out" / "results.md").read_text(encoding="utf-8")


def test_same_input_gives_the_same_bytes_except_for_the_date(vqa_run: Path) -> None:
    texts = []
    for name in ("one.json", "two.json"):
        _score(vqa_run, vqa_run / name)
        texts.append([line for line in _lines(vqa_run / name) if not line.startswith('  "date"')])
    assert texts[0] == texts[1]


def test_scores_do_not_depend_on_the_order_of_the_lines(vqa_run: Path) -> None:
    rows = _score(vqa_run).rows
    for name in ("predictions.jsonl", "blank.jsonl"):
        lines = _lines(vqa_run / name)
        (vqa_run / name).write_text("".join(lines[::-1] if name == "blank.jsonl" else lines[7:] + lines[:7]))
    assert _score(vqa_run).rows == rows


def test_items_without_an_image_are_said_to_be_taken_as_independent(vqa_run: Path) -> None:
    items = read_records(vqa_run / "predictions.jsonl", Prediction)
    for item in items:
        item.image_id = ""
    write_records(vqa_run / "predictions.jsonl", items)
    results = _score(vqa_run)
    assert results.headline.clusters == 36
    assert "36 items name no image" in results.warnings[0]


def test_answers_under_a_control_are_no_headline(vqa_run: Path) -> None:
    results = score(vqa_run / "blank.jsonl", train_samples=vqa_run / "train.jsonl")
    assert "made under the control blank_image" in results.missing[0]
    assert "not shown" in headline(results) and "--control blank=FILE" in headline(results)


def test_one_file_of_two_models_is_refused(vqa_run: Path) -> None:
    _rewrite(vqa_run / "predictions.jsonl", model="base", adapter="mine@01")
    with pytest.raises(PeFoMedError, match="the answers of 2 models are mixed, 'mine@01 on base' and 'tiny'"):
        _score(vqa_run)


def test_results_tell_data_answers_and_prompts_from_others(vqa_run: Path) -> None:
    first = _score(vqa_run).fingerprints
    assert (first.prompts, first.distinct_prompts) == ("", 0)
    items = read_records(vqa_run / "predictions.jsonl", Prediction)
    changed = [replace(item, prediction="x", prompt_sha256=item.instruction) for item in items]
    write_records(vqa_run / "predictions.jsonl", changed[::-1])
    second = _score(vqa_run, vqa_run / "results.json").fingerprints
    assert second.data == first.data and second.predictions != first.predictions
    assert len(second.prompts) == 64 and second.distinct_prompts == 3
    assert read_results(vqa_run / "results.json").fingerprints == second


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("role", ["train_samples", "validation_samples"])
def test_baselines_are_never_chosen_on_the_scored_items(vqa_run: Path, role: str, with_ids: bool) -> None:
    items = read_records(vqa_run / "predictions.jsonl", Prediction)
    keys = ("id", "instruction", "answers") if with_ids else ("instruction", "answers")
    rows = [{key: getattr(item, key) for key in keys} for item in items[: 20 if with_ids else 36]]
    (vqa_run / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(PeFoMedError, match="test.jsonl: holds the scored items themselves"):
        score(vqa_run / "predictions.jsonl", **{role: vqa_run / "test.jsonl"})  # type: ignore[arg-type]


def test_half_a_surrogate_pair_is_told_with_its_line(vqa_run: Path) -> None:
    _rewrite(vqa_run / "predictions.jsonl", organ="\ud83d")
    with pytest.raises(PeFoMedError, match="predictions.jsonl, line 2: a text holds half a surrogate pair"):
        _score(vqa_run, vqa_run / "results.json")


@pytest.mark.parametrize("place", ["predictions.jsonl/results.json", "folder.json"])
def test_an_out_that_cannot_be_written_is_one_sentence(vqa_run: Path, place: str) -> None:
    (vqa_run / "folder.json").mkdir()
    with pytest.raises(PeFoMedError, match="cannot be written"):
        _score(vqa_run, vqa_run / place)


def test_control_is_matched_by_id(vqa_run: Path) -> None:
    overall = _score(vqa_run).headline
    assert overall.controls["blank_image"].numerator == 12  # yes is right for each image's first question
    assert overall.baselines["majority_answer"].numerator == 24  # yes and chest, but left instead of right
    assert overall.differences["blank_image"].value == pytest.approx((27 - 12) / 36)


@pytest.mark.parametrize(
    ("task", "reference", "metrics", "unit"),
    [
        ("refer", "{<10><10><50><50>}", {"mean_iou", "accuracy_at_iou_0.5"}, "Mean IoU"),
        ("report", "a b c d e", {"bleu_4", "fact_f1"}, "BLEU-4"),
        ("caption", "a b c d e", {"bleu_4", "fact_f1"}, "BLEU-4"),
    ],
)
def test_the_file_says_which_task_is_scored(
    tmp_path: Path, task: str, reference: str, metrics: set[str], unit: str
) -> None:
    items = [Prediction(str(at), task, "", [reference], reference if at else "?", study_id=str(at)) for at in range(2)]
    write_records(tmp_path / "predictions.jsonl", items)
    results = score(tmp_path / "predictions.jsonl", out=tmp_path / "results.json")
    assert (results.task, results.headline.score.value) == (task, pytest.approx(0.5, abs=0.5))
    assert metrics <= {row.metric for row in results.rows}
    assert f"{unit}: not shown." in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert read_results(tmp_path / "results.json").headline.score.value == pytest.approx(results.headline.score.value)


def test_missing_controls_and_training_samples_are_said(vqa_run: Path) -> None:
    results = score(vqa_run / "predictions.jsonl")
    assert [text.split(" (")[0] for text in results.missing] == ["majority answer", "blank image", "shuffled images"]
    assert [one.name for one in results.companions if one.is_there] == []
    assert _score(vqa_run).missing == []


def test_train_samples_are_read_as_records_too(vqa_run: Path) -> None:
    samples = read_train_samples(vqa_run / "train.jsonl", "vqa")
    write_records(vqa_run / "records.jsonl", samples)
    assert read_train_samples(vqa_run / "records.jsonl", "vqa") == samples
    assert (samples[0].instruction, samples[0].answers, samples[0].question_types) == (
        "Is there a mass?",
        ["yes"],
        ["PRES"],
    )


def test_train_file_keeps_the_task_and_the_training_split(tmp_path: Path) -> None:
    lines = [
        {"question": "How many?", "answer": 2, "id": "a"},
        {"question": "How many?", "answer": "3", "split": "test"},
        {"caption": "An axial CT."},
        {"report": "Clear lungs.", "instruction": "Write a report."},
        {"phrase": "mass", "box": [1, 2, 30, 40]},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert [sample.answers for sample in read_train_samples(path, "vqa")] == [["2"]]
    assert read_train_samples(path, "caption")[0].answers == ["An axial CT."]
    assert read_train_samples(path, "report")[0].instruction == "Write a report."
    assert read_train_samples(path, "refer") == [Sample("", "refer", [], "mass", ["{<1><2><30><40>}"])]


def _rewrite(path: Path, **changes: object) -> None:
    """Change keys of the second line."""
    lines = _lines(path)
    lines[1] = json.dumps(json.loads(lines[1]) | changes) + "\n"
    path.write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "0-0"}, "line 2: id '0-0' occurs again, first in line 1"),
        ({"id": ""}, "line 2: id '', expected a text"),
        ({"id": ["x"]}, r"line 2: id \['x'\], expected a text"),
        ({"task": "refer", "answers": ["{<0><0><1><1>}"]}, "the tasks refer, vqa are mixed"),
        ({"task": "vqu"}, "line 2: task 'vqu', expected one of"),
        ({"control": "blank_image"}, "with and without a control are mixed"),
        ({"split": "train"}, "of several splits are mixed"),
        ({"answers": "right"}, "line 2: answers, expected one or more reference texts"),
        ({"answers": []}, "line 2: answers, expected one or more reference texts"),
        ({"answers": ["right", " "]}, "none blank"),
        ({"prediction": None}, "line 2: prediction, expected a text"),
        ({"prediction": ["left"]}, "line 2: prediction, expected a text"),
        ({"p_yes": 1.5}, "line 2: p_yes, expected a number 0..1 or null"),
        ({"p_yes": float("nan")}, "line 2: p_yes, expected a number 0..1 or null"),
        ({"answer_type": "yes/no"}, "answer_type 'yes/no', expected OPEN, CLOSED or nothing"),
        ({"question_types": "POS"}, "question_types, expected a list"),
        ({"predicton": "x"}, r"line 2: unknown key 'predicton' \(did you mean prediction\?\)"),
    ],
)
def test_malformed_predictions_are_named(vqa_run: Path, changes: dict[str, object], message: str) -> None:
    _rewrite(vqa_run / "predictions.jsonl", **changes)
    with pytest.raises(PeFoMedError, match=message):
        _score(vqa_run, vqa_run / "results.json")
    assert not (vqa_run / "results.json").exists()
    assert not (vqa_run / "results.md").exists()


def test_lines_with_the_same_problem_are_told_together_without_patient_text(vqa_run: Path) -> None:
    items = read_records(vqa_run / "predictions.jsonl", Prediction)
    for item in items[:9]:
        item.answers = ["a secret finding", ""]
    write_records(vqa_run / "predictions.jsonl", items)
    with pytest.raises(PeFoMedError) as error:
        _score(vqa_run)
    assert "lines 1, 2, 3, 4, 5, 6, 7, 8 and 1 more: answers, expected one or more" in str(error.value)
    assert "secret" not in str(error.value)


def test_all_problems_of_all_files_come_in_one_error(vqa_run: Path) -> None:
    predictions, blank, train = (vqa_run / f"{name}.jsonl" for name in ("predictions", "blank", "train"))
    content = predictions.read_bytes()
    bad = b'{"id": "\xff"}\n[1]\n{torn\n{"id": "x", "task": "vqa"}\n'
    predictions.write_bytes(content + bad + content.splitlines()[0])
    blank.write_text("".join(_lines(blank)[3:]), encoding="utf-8")
    train.write_text('{"question": "Mass?"}\n', encoding="utf-8")
    table = vqa_run / "slices.csv"
    table.write_text("id,hospital\n0-0,A\n0-0,A\nunknown,B\n", encoding="utf-8")
    with pytest.raises(PeFoMedError) as error:
        score(predictions, controls={"blank_image": blank}, train_samples=train, slices=table)
    lines_told = str(error.value).splitlines()
    assert lines_told[0] == f"{len(lines_told) - 1} problems"
    assert [line.removeprefix(f"  {vqa_run}/") for line in lines_told[1:]] == [
        "predictions.jsonl, line 37: not UTF-8; save the file as UTF-8",
        "predictions.jsonl, line 38: found list, expected a JSON object",
        "predictions.jsonl, line 39: not JSON (Expecting property name enclosed in double quotes); expected one "
        "object a line",
        "predictions.jsonl, line 40: without instruction, answers, prediction",
        "predictions.jsonl, line 41: id '0-0' occurs again, first in line 1",
        "blank.jsonl: 3 ids are missing: 0-0, 0-1, 0-2",
        "train.jsonl, line 1: no answer; expected question and answer, caption, report, or phrase and box",
        "slices.csv, line 3: id '0-0' occurs again",
        "slices.csv, line 4: the id is not in the predictions",
        "slices.csv: 35 ids are missing: 0-1, 0-2, 1-0 and 32 more",
    ]


def test_predictions_of_another_data_set_are_refused(vqa_run: Path) -> None:
    lines = [{**json.loads(line), "source": "slake"} for line in _lines(vqa_run / "train.jsonl")]
    (vqa_run / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(PeFoMedError, match="its samples are of slake, the predictions of handwritten"):
        _score(vqa_run)
    items = [replace(item, id=f"other {item.id}") for item in read_records(vqa_run / "blank.jsonl", Prediction)]
    write_records(vqa_run / "blank.jsonl", items)
    with pytest.raises(PeFoMedError, match="36 ids are missing: 0-0, 0-1, 0-2 and 33 more"):
        score(vqa_run / "predictions.jsonl", controls={"blank_image": vqa_run / "blank.jsonl"})


def test_malformed_files_are_refused(vqa_run: Path) -> None:
    path = vqa_run / "predictions.jsonl"
    for content, message in [(b"", "no prediction in it"), (b"\xff\xfe1\x00\n\x00", "line 1: not UTF-8")]:
        path.write_bytes(content)
        with pytest.raises(PeFoMedError, match=message):
            score(path)
    path.unlink()
    with pytest.raises(PeFoMedError, match="no such file"):
        score(path)


def test_empty_predictions_are_counted_and_never_correct(vqa_run: Path) -> None:
    items = [replace(item, prediction="  ") for item in read_records(vqa_run / "predictions.jsonl", Prediction)]
    write_records(vqa_run / "predictions.jsonl", items)
    results = _score(vqa_run)
    assert results.counts["empty_predictions"] == 36
    assert {row.score.value for row in results.rows if row.score.value is not None} == {0.0}


def test_a_users_table_gives_slices(vqa_run: Path) -> None:
    items = read_records(vqa_run / "predictions.jsonl", Prediction)
    table = vqa_run / "slices.csv"
    lines = [f"{item.id},{'A' if at < 30 else ''}" for at, item in enumerate(items)]
    table.write_text("\n".join(["\ufeffid,hospital", *reversed(lines)]), encoding="utf-8")
    results = score(vqa_run / "predictions.jsonl", slices=table)
    [row] = [row for row in results.rows if row.slice == "hospital"]
    assert (row.value, row.items) == ("A", 30)  # an empty cell is in no slice
    assert results.files["slices"].records == 36


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,hospital\n", "line 1: expected a header with the column id and others"),
        ("id\n", "line 1: expected a header with the column id and others"),
        ("id,a,a\n", "line 1: expected a header with the column id and others"),
        ("id,a\n0-0,x,y\n", "line 2: expected 2 cells"),
        ("", "line 1: expected a header"),
    ],
)
def test_a_table_of_another_form_is_refused(vqa_run: Path, content: str, message: str) -> None:
    (vqa_run / "slices.csv").write_text(content, encoding="utf-8")
    with pytest.raises(PeFoMedError, match=message):
        score(vqa_run / "predictions.jsonl", slices=vqa_run / "slices.csv")


@pytest.mark.parametrize(
    ("names", "message"),
    [(["llavamed"], r"compat 'llavamed' \(did you mean llava-med\?\)"), (["pefomed"], "is for vqa")],
)
def test_a_protocol_must_be_known_and_for_the_task(tmp_path: Path, names: list[str], message: str) -> None:
    write_records(tmp_path / "p.jsonl", [Prediction("1", "report", "", ["Clear."], "Clear.")])
    with pytest.raises(ConfigError, match=message):
        score(tmp_path / "p.jsonl", compat=names)


def test_control_must_hold_the_same_items(vqa_run: Path) -> None:
    path = vqa_run / "blank.jsonl"
    good = _lines(path)
    path.write_text("".join(good[5:]), encoding="utf-8")
    with pytest.raises(PeFoMedError, match="5 ids are missing: 0-0, 0-1, 0-2 and 2 more"):
        _score(vqa_run)
    path.write_text("".join(good), encoding="utf-8")
    _rewrite(path, id="other")
    with pytest.raises(PeFoMedError, match="1 ids are missing: 0-1\n.*1 ids are not in the predictions: other"):
        _score(vqa_run)
    path.write_text("".join(good), encoding="utf-8")
    _rewrite(path, answers=["left"])
    with pytest.raises(PeFoMedError, match="1 ids have another task, question or reference"):
        _score(vqa_run)
    path.write_text("".join(good), encoding="utf-8")
    with pytest.raises(PeFoMedError, match="made under the control 'blank_image', not 'shuffled_images'"):
        score(vqa_run / "predictions.jsonl", controls={"shuffle": path})


def test_train_file_must_fit(vqa_run: Path) -> None:
    path = vqa_run / "train.jsonl"
    for content, message in [
        ("", "found no training sample, expected the predictions' task vqa"),
        ('{"report": "Clear."}\n', "found training samples of report, expected the predictions' task vqa"),
        ('{"question": "Mass?"}\n', "line 1: no answer"),
        ('{"question": "Mass?", "answer": ""}\n', "line 1: answers, expected"),
        ('{"phrase": "mass", "box": [0, 0, 0.5, 0.5]}\n', "line 1: box, expected"),
    ]:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(PeFoMedError, match=message):
            _score(vqa_run)


def test_output_must_be_a_json_file(vqa_run: Path) -> None:
    with pytest.raises(ConfigError, match="ends in .json"):
        _score(vqa_run, vqa_run / "results.md")


def test_results_of_another_schema_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": "pefomed-results/0"}', encoding="utf-8")
    with pytest.raises(PeFoMedError, match="schema 'pefomed-results/0', expected 'pefomed-results/1'"):
        read_results(tmp_path / "results.json")


def _launch(repo: Path, run_python: Callable[..., CompletedProcess[str]], *arguments: object) -> CompletedProcess[str]:
    return run_python(repo / "recipes" / "score.py", *arguments)


@pytest.mark.integration
def test_command_prints_the_table_and_writes_the_results(
    vqa_run: Path, repo: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    process = _launch(
        repo,
        run_python,
        *(vqa_run / "predictions.jsonl", "--control", f"blank_image={vqa_run / 'blank.jsonl'}"),
        *("--control", f"shuffle={vqa_run / 'shuffle.jsonl'}"),
        *("--train", vqa_run / "train.jsonl", "--out", vqa_run / "results.json"),
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == (vqa_run / "results.md").read_text(encoding="utf-8")
    assert "wrote" in process.stderr
    assert read_results(vqa_run / "results.json").headline.score.numerator == 27


@pytest.mark.integration
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--control", "blank_image"], 2, "expected NAME=PATH"),
        (["--control", "blank=missing.jsonl"], 1, "missing.jsonl: no such file"),
        (["--control", "blnk=missing.jsonl"], 2, "unknown control 'blnk' (did you mean blank?)"),
        (["--out", "results.txt"], 2, "ends in .json"),
    ],
)
def test_command_ends_with_one_line_on_a_mistake(
    vqa_run: Path,
    repo: Path,
    run_python: Callable[..., CompletedProcess[str]],
    options: list[str],
    code: int,
    message: str,
) -> None:
    process = _launch(repo, run_python, vqa_run / "predictions.jsonl", *options)
    assert process.returncode == code
    assert process.stdout == ""
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.integration
def test_scoring_imports_no_model_library(vqa_run: Path, run_python: Callable[..., CompletedProcess[str]]) -> None:
    code = (
        "import sys\n"
        "from pefomed_recipes.evaluation.scoring import score\n"
        "assert not {'statsmodels', 'scipy', 'sacrebleu'} & set(sys.modules), 'imported before it is needed'\n"
        "score(sys.argv[1], train_samples=sys.argv[2])\n"
        "assert 'statsmodels' in sys.modules\n"
        "print(sorted({'torch', 'datasets', 'transformers'} & set(sys.modules)))\n"
    )
    process = run_python("-c", code, vqa_run / "predictions.jsonl", vqa_run / "train.jsonl")
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "[]"

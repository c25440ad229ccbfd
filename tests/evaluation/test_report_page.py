# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one page that shows no number alone, names what is wrong, and keeps to itself what it must."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pefomed_recipes import cli
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.evaluation.agreeing import AgreementResults, agree, write_agreement
from pefomed_recipes.evaluation.page.finding import Finding
from pefomed_recipes.evaluation.page.rendering import write_report
from pefomed_recipes.evaluation.page.typed import from_stored
from pefomed_recipes.evaluation.scoring import score
from pefomed_recipes.records import CONTROLS, Prediction, Rating, append_records, write_records

from .page_runs import (
    IMAGES,
    SECRET,
    Page,
    WordJudge,
    found_in,
    judge_into,
    mix_up_sides,
    page_predictions,
    score_into,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything: results, a judge that passes its gate, ratings, agreement, samples and images."""
    folder = tmp_path_factory.mktemp("run")
    items = page_predictions()
    score_into(folder, items)
    judge_into(folder, WordJudge(), items)
    ratings = [
        Rating(
            item.id, item.system, rater, "vqa", "paper-vqa", int(item.prediction in item.answers) ^ (at % every == 3)
        )
        for rater, every in (("R1", 29), ("R2", 31))
        for at, item in enumerate(items[:80])
    ]
    append_records(folder / "ratings.jsonl", ratings)
    agreement = agree([folder / name for name in ("ratings.jsonl", "verdicts.jsonl", "predictions.jsonl")])
    write_agreement(folder / "agreement.json", agreement, "")
    (folder / "data").mkdir()
    for at in range(IMAGES):
        Image.new("L", (400, 300), at * 4).save(folder / "data" / f"{at}.png")
    samples = [{"id": item.id, "image": f"{at // 4}.png"} for at, item in enumerate(items)]
    (folder / "data" / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    (folder / "stage2").mkdir()
    training = {
        "settings": {"base": "/secret/place/base", "dataset": "handwritten", "task": "vqa", "test_template": "plain"},
        "trainable_parameters": 1234567,
        "code_commit": "abc",
    }
    (folder / "stage2" / "run.json").write_text(json.dumps(training))
    return folder


@pytest.fixture(scope="module")
def page(whole_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("page") / "page.html"
    write_report([whole_run], out, samples=whole_run / "data" / "test.jsonl", show_text=True)
    return Page.read(out)


def test_equal_files_give_equal_bytes_wherever_they_lie(whole_run: Path, tmp_path: Path) -> None:
    pages = []
    for place in (tmp_path / "here", tmp_path / "elsewhere" / "deeper"):
        shutil.copytree(whole_run, place)
        options = {"samples": place / "data" / "test.jsonl", "show_text": True}
        write_report([place], tmp_path / f"{place.name}.html", **options)
        pages.append([(tmp_path / f"{place.name}{end}").read_bytes() for end in (".html", ".md", ".json")])
    assert pages[0] == pages[1]
    assert b"secret/place" not in b"".join(pages[0])
    assert str(tmp_path).encode() not in b"".join(pages[0])


def test_the_page_needs_nothing_from_outside(page: Page) -> None:
    addresses = [a[name] for _, a in page.tags for name in ("src", "href", "xlink:href", "data") if name in a]
    assert addresses
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in addresses)
    assert not page.of("script", "link", "iframe", "object", "form")
    [policy] = [m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_the_page_can_be_used_without_eyes_or_mouse(page: Page) -> None:
    assert page.of("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.of("img"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.of("a")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in zip(levels, levels[1:], strict=False))
    assert all(head.get("scope") in ("col", "row") for head in page.of("th"))
    moved_sideways = [a for _, a in page.tags if a.get("class") == "scroll"]
    assert moved_sideways
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in moved_sideways)
    assert all(svg.get("aria-hidden") == "true" for svg in page.of("svg") if "x" not in svg)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_from_its_ground_in_light_dark_and_print(repo: Path) -> None:
    style = (repo / "recipes" / "evaluation" / "page" / "page.css").read_text(encoding="utf-8")
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(schemes) == 3
    for colours in schemes:
        for ground in ("paper", "wash"):
            for name in ("ink", "soft", "accent", "bad", "warn", "good"):
                high, low = sorted((_luminance(colours[name]), _luminance(colours[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground, colours)


def test_a_healthy_run_has_no_problem_and_all_its_parts(whole_run: Path, page: Page) -> None:
    found = found_in(whole_run)
    levels = {name: finding.level for name, finding in found.items()}
    assert "problem" not in levels.values()
    checked = ("not_above_majority_answer", "not_above_blank_image", "open_far_below_closed", "sides_at_chance")
    assert {levels[name] for name in (*checked, "exact_match_far_from_judge", "unparsed", "empty")} == {"clear"}
    assert levels["below_its_base"] == "unchecked"
    sections = ("result", "findings", "slices", "confidence", "judge", "agreement", "items", "protocol")
    assert [a["id"] for a in page.of("section")] == list(sections)
    for part in ("Reliability.", "passed the gate", "Most disputed", "1,234,567", "not defined: no such questions"):
        assert part in page.text


@pytest.mark.parametrize("control", [True, False])
def test_no_number_stands_without_its_control(tmp_path: Path, control: bool) -> None:
    items = page_predictions(20)
    score_into(tmp_path, items, control=control)
    judge_into(tmp_path, WordJudge(), items)
    report = write_report([tmp_path], tmp_path / "page.html")
    texts = [Page.read(tmp_path / "page.html").text, (tmp_path / "page.md").read_text(encoding="utf-8")]
    assert all(("90.0" in text) == control for text in texts)
    assert ("WASM: mean score" in texts[0]) == control
    assert (report.headline is not None) == control
    missing = [f for f in report.findings if f.name == "missing"]
    told = " ".join(finding.command for finding in missing)
    assert [f"--control {name}" in told for name in ("blank", "shuffle", "mirror")] == [
        not control,
        not control,
        False,
    ]


def test_predictions_that_changed_since_they_were_scored_are_named_and_not_used(tmp_path: Path) -> None:
    items = page_predictions(12)
    score_into(tmp_path, items)
    write_records(tmp_path / "predictions.jsonl", items[::-1])
    report = write_report([tmp_path], tmp_path / "page.html")
    assert [f.title for f in report.findings if f.name == "changed_file"] == [
        "predictions.jsonl is not the file that was scored"
    ]
    assert not report.items.worst


def test_the_worst_and_the_most_disputed_answers_come_first(whole_run: Path) -> None:
    items = write_report([whole_run], whole_run / "page.html").items
    assert items.all_worst == 24
    assert all(int(item.id.split("-")[0].removeprefix("image")) % 10 == 7 for item in items.worst)
    assert items.worst[0].why == ["wrong", "confidence 0.90", "right on a blank image"]
    first = items.disputed[0]
    scores = {text.rpartition(":")[0]: text.rpartition(": ")[2] for text in first.why}
    assert {"our rules", "words-1", "rater R1", "rater R2"} <= set(scores)
    assert {"0", "1"} <= {text[0] for text in scores.values()}


@pytest.mark.parametrize("show_text", [False, True])
@pytest.mark.parametrize("credentialed", [False, True])
def test_texts_and_images_are_shown_only_when_asked_for_and_never_of_credentialed_data(
    tmp_path: Path, whole_run: Path, show_text: bool, credentialed: bool
) -> None:
    score_into(tmp_path, [replace(item, credentialed=credentialed) for item in page_predictions()])
    samples = whole_run / "data" / "test.jsonl" if show_text else None
    write_report([tmp_path], tmp_path / "page.html", samples=samples, show_text=show_text)
    made = [(tmp_path / f"page{end}").read_text(encoding="utf-8") for end in (".html", ".md", ".json")]
    shown = show_text and not credentialed
    assert (SECRET in "".join(made)) == shown
    assert len(Page.read(tmp_path / "page.html").of("img")) == (12 if shown else 0)
    assert ("12 items below are of credentialed data" in made[0]) == credentialed


def test_markup_in_answers_stays_text(tmp_path: Path) -> None:
    score_into(tmp_path, [replace(item, prediction="<script>alert(1)</script>") for item in page_predictions(12)])
    write_report([tmp_path], tmp_path / "page.html", show_text=True)
    page = Page.read(tmp_path / "page.html")
    assert not page.of("script")
    assert "<script>alert(1)</script>" in page.text


def test_a_report_of_texts_shows_metrics_instead_of_answers(tmp_path: Path) -> None:
    items = [
        Prediction(
            f"r{at}",
            "report",
            "",
            ["The heart is large. No effusion."],
            "The heart is large." if at % 2 else "",
            image_id=f"image {at}",
            source="handwritten",
            model="base",
            sentence_support=[0.4, -1.25] if at == 3 else None,
        )
        for at in range(12)
    ]
    write_records(tmp_path / "predictions.jsonl", items)
    for name in ("blank", "shuffle"):
        said = [replace(i, prediction="A.", control=CONTROLS[name]) for i in items]
        write_records(tmp_path / f"{name}.jsonl", said)
    (tmp_path / "train.jsonl").write_text('{"report": "Nothing is seen."}\n{"report": "The heart is large."}\n')
    score(
        tmp_path / "predictions.jsonl",
        controls={name: tmp_path / f"{name}.jsonl" for name in ("blank", "shuffle")},
        train_samples=tmp_path / "train.jsonl",
        out=tmp_path / "results.json",
    )
    report = write_report([tmp_path], tmp_path / "page.html")
    page = Page.read(tmp_path / "page.html")
    assert "BLEU-4" in page.text
    assert "Constant text" in page.text
    assert [item.why[0] for item in report.items.worst[:6]] == ["ROUGE-L F1 0.00"] * 6
    assert {item.id: item.why for item in report.items.worst}["r3"][1].endswith("1 (-1.2 nats)")


def test_the_json_is_typed_and_holds_fingerprints_findings_and_commands(whole_run: Path) -> None:
    write_report([whole_run], whole_run / "page.html")
    stored = json.loads((whole_run / "page.json").read_text(encoding="utf-8"))
    assert stored["schema"] == "pefomed-report/1"
    assert stored["headline"]["score"]["value"] == pytest.approx(0.9)
    assert set(stored["headline"]["baselines"]) == {"majority_answer"}
    assert {"predictions", "control blank_image", "train"} <= set(stored["scored"])
    assert all(len(record["sha256"]) == 64 for record in [*stored["scored"].values(), *stored["files"]])
    assert "stage2/run.json" in {record["name"] for record in stored["files"]}
    assert [from_stored(Finding, finding).level for finding in stored["findings"]].count("problem") == 0
    assert any(
        command.startswith("pefomed score predictions.jsonl --control blank=") for command in stored["commands"]
    )


def test_stored_records_are_read_back_equal_and_wrong_ones_are_named(whole_run: Path) -> None:
    stored = json.loads((whole_run / "agreement.json").read_text(encoding="utf-8"))
    read = from_stored(AgreementResults, stored)
    assert json.loads(json.dumps(asdict(read))) == stored
    for change, said in (
        ({"date": 3}, "date: found int, expected str"),
        ({"dates": ""}, "unknown key 'dates'"),
        ({"panels": {}}, "panels: found dict, expected list"),
    ):
        with pytest.raises(ValueError, match=said):
            from_stored(AgreementResults, {**stored, **change})
    with pytest.raises(ValueError, match="resampling"):
        from_stored(AgreementResults, {**stored, "resampling": {"seed": 0}})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("notes.json", "{}", "expected results, predictions"),
        ("old.json", '{"schema": "pefomed-results/0"}', "score the predictions again"),
        ("judge.json", '{"schema": "pefomed-judge/1", "judge": 1}', "make it again"),
        ("missing.json", None, "no such file or folder"),
    ],
)
def test_a_named_file_that_cannot_be_used_is_told_and_nothing_is_written(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    score_into(tmp_path, page_predictions(12))
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(PeFoMedError, match=said):
        write_report([tmp_path / "results.json", tmp_path / name], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    score_into(tmp_path, page_predictions(12))
    with pytest.raises(PeFoMedError, match="cannot be written"):
        write_report([tmp_path], tmp_path / "train.jsonl" / "page.html")
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (tmp_path / "results.json").write_text(json.dumps({**stored, "sources": ["\ud800"]}), encoding="utf-8")
    with pytest.raises(PeFoMedError, match="half a surrogate pair"):
        write_report([tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_folder_without_results_and_a_wrong_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PeFoMedError, match="pefomed score --out"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        write_report([tmp_path], tmp_path / "page.pdf")


def test_the_command_writes_the_page_into_the_run_and_tells_problems(tmp_path: Path) -> None:
    score_into(tmp_path, [mix_up_sides(item) for item in page_predictions()])
    for _ in range(2):  # the second time, the first report lies in the folder
        result = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
        assert result.exit_code == 0, result.output
    assert "problem: Left and right are at chance." in result.stderr
    assert all((tmp_path / f"report{end}").is_file() for end in (".html", ".md", ".json"))

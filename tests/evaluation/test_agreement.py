# SPDX-License-Identifier: Apache-2.0
"""Agreement of raters, judges and metrics: the questions that the page answers, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from pefomed_recipes.cli import app
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.evaluation.agreeing import AgreementResults, PanelResults, agree
from pefomed_recipes.evaluation.agreement import (
    HUMAN_HUMAN,
    JUDGE_HUMAN,
    METRIC_HUMAN,
    METRIC_JUDGE,
    Comparison,
)
from pefomed_recipes.evaluation.agreement_tables import agreement_page, findings
from pefomed_recipes.evaluation.panels import build_panels
from pefomed_recipes.evaluation.replacement import alternative_annotator
from pefomed_recipes.records import Prediction, Rating, Verdict, append_records, write_records

Write = Callable[..., list[Path]]
Study = Callable[..., PanelResults]


def _write_study(
    folder: Path,
    items: int = 160,
    raters: int = 3,
    rater: float = 0.6,
    judge: float = 0.6,
    shift: float = 0.0,
    drift: float = 0.0,
    samples: int = 3,
) -> list[Path]:
    """Write reports whose truth is known, raters and a judge that err by `rater` and `judge` points, and metrics."""
    rng = np.random.default_rng(0)
    words = np.array("heart lungs clear effusion small left right opacity normal mild".split())

    def score(truth: int, error: float) -> int:
        return int(np.clip(np.rint(truth + rng.normal(0, error)), 0, 4))

    predictions, ratings, verdicts = [], [], []
    for at in range(items):
        reference, truth = rng.choice(words, 10), int(rng.integers(0, 5))
        said = np.where(rng.random(10) < 0.2 * truth, reference, rng.choice(words, 10))
        where = {"organ": ("CHEST", "HEAD")[at % 2], "image_id": f"x{at // 2}", "model": "m"}
        item = (f"i{at}", "m")
        predictions.append(Prediction(item[0], "report", "", [" ".join(reference)], " ".join(said), **where))
        for name in range(raters):
            for repeat in range(2 if at % 8 == 0 else 1):
                given = score(truth, rater)
                ratings.append(Rating(*item, f"R{name}", "report", "paper-report", given, repeat=repeat))
        for month, moved in (("01", 0.0), ("02", drift)):
            base = truth + rng.normal(0, judge) + shift + moved
            for sample in range(samples):
                given = int(np.clip(np.rint(base + rng.normal(0, 0.1)), 0, 4))
                run = f"2026-{month}-01T00:00:00+00:00"
                verdicts.append(Verdict(*item, "J", "report", "paper-report", "0" * 64, given, sample, run))
    paths = [folder / f"{name}.jsonl" for name in ("ratings", "verdicts", "predictions")]
    for path, records in zip(paths, (ratings, verdicts, predictions), strict=True):
        write_records(path, records)
    return paths


@pytest.fixture
def write_study(tmp_path: Path) -> Write:
    """`write_study(...)` writes a study to `tmp_path`."""
    return partial(_write_study, tmp_path)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """`study(...)` is what is found in such a study, looked for once. Read only."""
    return cache(lambda **settings: _study(_write_study(tmp_path_factory.mktemp("study"), **settings)))


def _study(paths: list[Path]) -> PanelResults:
    [panel] = agree(paths, resamples=150).panels
    return panel


def _comparison(panel: PanelResults, kind: str, first: str = "", value: str = "") -> Comparison:
    return next(c for c in panel.comparisons if (c.kind, c.value) == (kind, value) and first in ("", c.first))


def test_ceiling_comes_first_then_judge_then_metrics(study: Study) -> None:
    panel = study()
    kinds = list(dict.fromkeys(c.kind for c in panel.comparisons if c.slice == "overall"))
    assert kinds == [HUMAN_HUMAN, JUDGE_HUMAN, METRIC_HUMAN, METRIC_JUDGE]
    ceiling = _comparison(panel, HUMAN_HUMAN)
    assert (ceiling.answers, ceiling.clusters, ceiling.pairs) == (160, 80, 3)
    assert sum(ceiling.prevalence["raters"]) == pytest.approx(1)
    alpha, kappa = ceiling.measures["alpha_interval"].value, ceiling.measures["kappa_quadratic"].value
    assert alpha == pytest.approx(kappa, abs=0.02)
    judge = _comparison(panel, JUDGE_HUMAN)
    assert np.array(judge.confusion).sum() == 480
    bleu = _comparison(panel, METRIC_HUMAN, "sentence_bleu")
    assert bleu.measures["kappa"].reason == "the metric does not score on the raters' scale"
    assert 0 < bleu.measures["tau_b"].value < judge.measures["tau_b"].value
    text = list(findings(panel))
    assert text[0].startswith("Ceiling: two raters agree")
    assert "Nearest metric to raters" in text[3]


def test_each_slice_has_ceiling_judge_and_metrics(study: Study) -> None:
    panel = study()
    for organ in ("CHEST", "HEAD"):
        for kind in (HUMAN_HUMAN, JUDGE_HUMAN, METRIC_HUMAN, METRIC_JUDGE):
            found = _comparison(panel, kind, value=organ)
            assert (found.slice, found.answers) == ("organ", 80)
        assert _comparison(panel, JUDGE_HUMAN, value=organ).measures["kappa_quadratic"].low is not None


@pytest.mark.parametrize(
    ("judge", "items", "result"), [(0.4, 160, "shown"), (2.5, 160, "inferior"), (0.7, 20, "not shown")]
)
def test_a_judge_is_held_against_the_ceiling(study: Study, judge: float, items: int, result: str) -> None:
    panel = study(judge=judge, items=items)
    [test] = panel.non_inferiority
    assert test.result == result
    assert test.difference.value == pytest.approx(test.judge_human - test.human_human)
    assert any(
        {"shown": "as well as", "inferior": "less than", "not shown": "not shown"}[result] in s
        for s in findings(panel)
    )


def test_ratings_needed_follow_from_error_margin_and_power(write_study: Write) -> None:
    paths = write_study(judge=1.5, items=200)
    needed = [agree(paths, margin=margin, resamples=150).panels[0].non_inferiority[0] for margin in (0.02, 0.04)]
    assert needed[0].answers_needed / needed[1].answers_needed == pytest.approx(4, rel=0.02)
    assert needed[0].ratings_needed == 3 * needed[0].answers_needed
    width = needed[0].difference.high - needed[0].difference.low
    error = width / (2 * 1.96)
    assert needed[0].answers_needed == pytest.approx(200 * ((1.645 + 0.842) * error / 0.02) ** 2, rel=0.25)
    assert needed[0].answers_needed_as_observed is None  # worse than the margin: no number of ratings shows it


def test_alternative_annotator_by_hand() -> None:
    """Three raters, two levels. The judge is always with the majority; R2 is against it in 20 of 40 answers."""
    truth = np.arange(40) % 2
    scores = {"R0": truth, "R1": truth, "R2": np.where(np.arange(40) < 20, 1 - truth, truth)}
    ratings = [
        Rating(f"i{at:02}", "m", name, "vqa", "paper-vqa", int(given[at]))
        for name, given in scores.items()
        for at in range(40)
    ]
    verdicts = [Verdict(f"i{at:02}", "m", "J", "vqa", "paper-vqa", "0" * 64, int(truth[at])) for at in range(40)]
    [panel] = build_panels(ratings, verdicts, [], {})
    [found] = alternative_annotator(panel, epsilon=0.2)
    assert found.advantage == {"R0": 1.0, "R1": 1.0, "R2": 1.0}
    # R0 and R1 are as near as the judge everywhere: the difference is 0 - 0.2 in all answers, no variance, p = 0.
    # R2 loses in 20 of 40 and ties in 20: mean -0.5.
    raw = stats.ttest_1samp(np.where(np.arange(40) < 20, -1.0, 0.0), 0.2, alternative="less").pvalue
    assert found.p_values["R2"] == pytest.approx(raw * (1 + 1 / 2 + 1 / 3))
    assert (found.winning_rate, found.passes, found.mean_advantage) == (1.0, True, 1.0)
    [strict] = alternative_annotator(panel, epsilon=0.0)
    assert (strict.winning_rate, strict.passes) == (pytest.approx(1 / 3), False)


def test_alternative_annotator_needs_three_raters(study: Study) -> None:
    [found] = study(raters=2).alternative_annotator
    assert (found.passes, found.reason) == (None, "fewer than three raters")


def test_a_bad_judge_fails_the_alternative_annotator_test(study: Study) -> None:
    [found] = study(judge=2.5, items=160).alternative_annotator
    assert (found.passes, found.winning_rate) == (False, 0.0)


def test_a_steady_judge_is_more_stable_than_raters(study: Study) -> None:
    by = {line.by: line for line in study().retests}
    assert by["raters"].answers == 20  # every eighth, rated twice
    assert by["J"].answers == 160
    assert by["J"].more_stable is True
    assert by["J"].minus_raters.value == pytest.approx(by["J"].raw_agreement.value - by["raters"].raw_agreement.value)


def test_without_repeats_nothing_is_said_about_stability(write_study: Write) -> None:
    paths = write_study(samples=1)
    lines = [line for line in paths[0].read_text(encoding="utf-8").splitlines(keepends=True) if '"repeat": 0' in line]
    paths[0].write_text("".join(lines), encoding="utf-8")
    assert _study(paths).retests == []


@pytest.mark.parametrize(("drift", "drifted"), [(0.0, False), (0.5, True)])
def test_drift_between_runs_is_found(study: Study, drift: float, drifted: bool) -> None:
    [found] = study(drift=drift, judge=0.3).drifts
    assert (found.answers, found.drifted, found.changed) == (160, drifted, False)
    assert (found.mean_change.value > 0.2) == drifted  # the later run scores higher


def test_a_bias_towards_high_scores_is_measured(study: Study) -> None:
    panel = study(shift=1.0)
    bias = _comparison(panel, JUDGE_HUMAN).measures["bias"]
    assert 0.4 < bias.low < bias.high < 1.0  # the scale ends at 4
    assert any("J scores higher than raters" in sentence for sentence in findings(panel))


def test_a_metric_that_moves_under_paraphrase_is_caught(tmp_path: Path) -> None:
    said = [("no effusion", "there is no fluid"), ("heart is large", "cardiomegaly"), ("clear lungs", "clear lungs")]
    items, verdicts, ratings = [], [], []
    for at, texts in enumerate(said):
        for text, control in zip(texts, ("", "paraphrase"), strict=True):
            item = Prediction(f"i{at}", "report", "", [texts[0]], text, image_id=f"x{at}", model="m", control=control)
            items.append(item)
            verdicts.append(Verdict(item.id, item.system, "J", "report", "paper-report", "0" * 64, 4 - (at == 1)))
            ratings.append(
                Rating(item.id, item.system, "R", "report", "paper-report", 4 - (at == 0 and control != ""))
            )
    paths = [tmp_path / f"{name}.jsonl" for name in "pcvr"]
    write_records(paths[0], [item for item in items if not item.control])
    write_records(paths[1], [item for item in items if item.control])
    write_records(paths[2], verdicts)
    write_records(paths[3], ratings)
    changes = {line.by: line for line in _study(paths).paraphrases}
    assert changes["J"].change.value == 0
    assert changes["raters"].change.value == pytest.approx(1 / 4 / 3)
    assert changes["rouge_l_f1"].change.value > 0.5
    assert {line.answers for line in changes.values()} == {3}


def test_gap_between_exact_match_and_judge_is_there_by_question_type(tmp_path: Path) -> None:
    """Right answers in other words: the judge sees them, exact match does not, and only for one question type."""
    items, verdicts = [], []
    for at in range(40):
        kind = ("PRES", "ORGAN")[at % 2]
        said = "lung" if kind == "PRES" or at % 4 == 1 else "pulmonary tissue"
        items.append(
            Prediction(f"i{at}", "vqa", "Which?", ["lung"], said, "OPEN", [kind], image_id=f"x{at}", model="m")
        )
        verdicts.append(Verdict(f"i{at}", "m", "J", "vqa", "paper-vqa", "0" * 64, 1))
    paths = [tmp_path / "p.jsonl", tmp_path / "v.jsonl"]
    write_records(paths[0], items)
    write_records(paths[1], verdicts)
    panel = _study(paths)
    gaps = {c.value: c.measures["bias"].value for c in panel.comparisons if c.first == "exact_match" and c.value}
    assert gaps == {"PRES": 0, "ORGAN": -0.5}
    assert "By slice: bias" in agreement_page(agree(paths, resamples=50))


def test_metrics_of_others_are_read(write_study: Write, tmp_path: Path) -> None:
    paths = write_study(items=20)
    rows = [{"item_id": f"i{at}", "system": "m", "radgraph": at / 20, "green": None} for at in range(20)]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    [panel] = agree(paths, scores=[tmp_path / "scores.jsonl"], resamples=20).panels
    assert _comparison(panel, METRIC_HUMAN, "radgraph").answers == 20
    assert "green" not in {c.first for c in panel.comparisons}


def test_ties_unread_replies_and_controls_of_a_judge_are_no_scores(write_study: Write) -> None:
    paths = write_study(items=10, samples=1)
    verdict = Verdict("i0", "m", "K", "report", "paper-report", "0" * 64, 1)
    more = [
        verdict,
        replace(verdict, sample=1, score=2),
        replace(verdict, item_id="i1", score=None, reason="two scores in the reply"),
        replace(verdict, item_id="i2", score=4),
        replace(verdict, item_id="i2", system="control:empty", score=0),
    ]
    append_records(paths[1], more)
    panel = _study(paths)
    assert (panel.tied["K"], panel.unread["K"]) == (1, 1)
    assert next(row for row in panel.wasm if row.by == "K").counts == [0, 0, 0, 0, 1]
    page = agreement_page(agree(paths, resamples=20))
    assert "K: 1 verdicts without a score" in page
    assert "K: the samples of 1 answers tie" in page


def test_raters_are_described_and_their_controls_checked(tmp_path: Path) -> None:
    ratings = [
        Rating(f"i{at}", "m", name, "vqa", "paper-vqa", int(name == "R0")) for name in ("R0", "R1") for at in (1, 2)
    ]
    ratings += [
        Rating("i1", "control:identity", "R0", "vqa", "paper-vqa", 1),
        Rating("i2", "control:empty", "R0", "vqa", "paper-vqa", 1),
        Rating("i3", "m", "R1", "vqa", "paper-vqa", None, True),
    ]
    write_records(tmp_path / "r.jsonl", ratings)
    first, second = _study([tmp_path / "r.jsonl"]).raters
    assert (first.rater, first.rated, first.controls_right, first.controls) == ("R0", 2, 1, 2)
    assert (second.cannot_judge, second.bias.value) == (1, -1)


@pytest.mark.integration
def test_same_input_gives_the_same_bytes_except_for_the_date(write_study: Write, tmp_path: Path) -> None:
    paths = write_study(items=30)
    texts = []
    for name, files in (("one", paths), ("two", paths[::-1])):
        out = tmp_path / name / "agreement.json"
        done = CliRunner().invoke(app, ["agree", *map(str, files), "--out", str(out)])
        assert done.exit_code == 0, done.output
        stored = json.loads(out.read_text(encoding="utf-8"))
        assert stored.pop("date")
        assert stored.pop("files")
        texts.append(json.dumps(stored))
        assert (tmp_path / name / "agreement.md").read_text(encoding="utf-8") in done.output
    assert texts[0] == texts[1]


def test_nothing_undefined_looks_like_a_number(write_study: Write) -> None:
    """One rater who gave one score to everything: no ceiling, no kappa, no correlation."""
    paths = write_study(items=12, raters=1, samples=1)
    lines = [json.loads(line) | {"score": 2} for line in paths[0].read_text(encoding="utf-8").splitlines()]
    paths[0].write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    results = agree(paths, resamples=50)
    page = agreement_page(results)
    assert "No ceiling" in page
    assert "nan" not in page.lower().replace("nano", "")
    assert all(_has_reason(estimate) for estimate in _estimates(results))


def _estimates(results: AgreementResults) -> list[dict[str, object]]:
    found = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if set(value) == {"value", "low", "high", "reason"}:
                found.append(value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                walk(inner)

    walk(asdict(results))
    assert found
    return found


def _has_reason(estimate: dict[str, object]) -> bool:
    return estimate["low"] is not None or bool(estimate["reason"])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"item_id": "i0", "system": "m", "judge": "J"', "not JSON"),
        ('{"item_id": "i0", "judge": "J", "scor": 1}', "unknown key 'scor'"),
        ('{"item_id": 0, "judge": "J"}', "item_id, expected a text"),
    ],
)
def test_a_bad_verdict_is_named_with_its_line(write_study: Write, line: str, problem: str) -> None:
    paths = write_study(items=4)
    with paths[1].open("a", encoding="utf-8") as out:
        out.write(f"{line}\n")
    with pytest.raises(PeFoMedError, match=f"verdicts.jsonl, line 25: {problem}"):
        agree(paths)


def test_all_problems_of_verdicts_are_listed_at_once(write_study: Write) -> None:
    paths = write_study(items=4)
    rows = [json.loads(line) for line in paths[1].read_text(encoding="utf-8").splitlines()]
    rows[0]["score"] = 5
    rows[2] = rows[1]
    rows[3]["item_id"] = "elsewhere"
    rows[4]["rubric"] = "likert"
    paths[1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(PeFoMedError) as found:
        agree(paths)
    for line, problem in ((1, "score 5"), (3, "this sample"), (4, "no prediction"), (5, "rubric 'likert'")):
        assert f"verdicts.jsonl, line {line}: {problem}" in str(found.value)


def test_predictions_alone_agree_with_nobody(write_study: Write) -> None:
    with pytest.raises(PeFoMedError, match="no ratings and no verdicts"):
        agree(write_study(items=4)[2:])


@pytest.mark.parametrize("options", [{"margin": 0.0}, {"margin": 1.5}, {"epsilon": -0.1}])
def test_margins_are_shares(write_study: Write, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected shares"):
        agree(write_study(items=4), **options)


def test_a_file_of_another_kind_is_refused(write_study: Write, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"text": "?"}\n', encoding="utf-8")
    with pytest.raises(PeFoMedError, match="other.jsonl: expected ratings"):
        agree([*write_study(items=4), tmp_path / "other.jsonl"])

# SPDX-License-Identifier: Apache-2.0
"""The model card holds no number that is not in a file beside it, and answers what a stranger asks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

import pefomed_hub
from pefomed_hub.evidence import Evidence, find_evidence
from pefomed_hub.manifest import SCHEMA, Base, Check, Manifest, Part, is_credentialed, run_of
from pefomed_hub.model_card import render_card
from pefomed_recipes.errors import PeFoMedError
from pefomed_recipes.evaluation.calibration import adapter_digest
from pefomed_recipes.evaluation.page.typed import from_stored
from pefomed_recipes.evaluation.tables import METRIC_TITLES

from .evidence import run_record, write_evidence

COMMITTED = ("quickstart", "quickstart_random_tower", "quickstart_report", "quickstart_refer")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")
# What stands on a card by name and not as a measurement.
NAMES = (
    "SHA-256",
    "pefomed stage1",
    "pefomed stage2",
    "arxiv.org/abs/2401.02797",
    "arxiv:2401.02797",
    *sorted(METRIC_TITLES.values(), key=len)[::-1],
)
# A metric and an interval of 95 % are what they are, whatever was measured.
FIXED = ("95",)


def manifest_of(kind: str = "adapter", **changes: Any) -> Manifest:
    """A manifest with two runs behind it."""
    parts = [Part("vision tower", "someone/tower", "mit"), Part("language model", "someone/llama", "llama2")]
    runs = [
        run_of(name, run_record(task, None, Path("runs") / name), 42)
        for name, task in (("stage1", "caption"), ("stage2", "vqa"))
    ]
    values: dict[str, Any] = {
        "repo": "ada/lung-adapter",
        "kind": kind,
        "base": None if kind == "base" else Base("ada/base", "1a" * 20, {}, parts),
        "dtype": "float32",
        "template": "paper",
        "licence": "apache-2.0",
        "credentialed": is_credentialed(runs),
        "runs": runs,
        "seconds": 123.0,
        "incomplete_history": False,
        "code_commit": "c0ffee",
        "packages": {},
        "peft_type": "LORA",
        "check": Check(2, 3.2e-7, 1e-4, 0.0021),
        "parts": parts if kind == "base" else [],
    }
    return Manifest(**values | changes)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Scores with calibration, a judge that passed its gate, and two raters."""
    adapter = tmp_path_factory.mktemp("card") / "stage2"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    folder = write_evidence(adapter, everything=True)
    return find_evidence([adapter, folder], adapter_digest(adapter))


def committed_run(repo: Path, name: str) -> Evidence:
    """The results of a run that the repository holds."""
    path = repo / "recipes" / "results" / f"{name}--test.json"
    [adapter] = json.loads(path.read_text(encoding="utf-8"))["adapters"]
    return find_evidence([path], adapter.rpartition("@")[2])


@pytest.fixture(params=[*COMMITTED, "everything"])
def evidence(request: pytest.FixtureRequest, repo: Path, whole_run: Evidence) -> Evidence:
    """What was measured of several models."""
    return whole_run if request.param == "everything" else committed_run(repo, request.param)


def leaves(value: Any) -> Iterator[Any]:
    """All single values in nested lists and dicts."""
    if isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def stored(manifest: Manifest, evidence: Evidence) -> list[Any]:
    """What the manifest and the result files hold."""
    groups = (evidence.results, evidence.calibrations, evidence.judges, evidence.agreements)
    return [asdict(manifest), *(asdict(one) for group in groups for one in group.values())]


def forms(number: float) -> set[str]:
    """The ways in which a card may write a number: as it is, as a percentage, rounded."""
    size = abs(number)
    written = {f"{size:,}", str(size), f"{100 * size:.0f}", f"{100 * size:.1f}", f"{size:,.0f}", f"{size:.1e}"}
    return written | {f"{size:.{digits}f}" for digits in (2, 3, 4)}


def strays(card: str, files: list[Any]) -> list[str]:
    """The numbers of a card that no file holds; code and names are no numbers."""
    text = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    values = list(leaves(files))
    words = {value for value in values if isinstance(value, str) and any(map(str.isdigit, value))}
    for word in (*NAMES, *sorted(words, key=len, reverse=True)):
        text = text.replace(word, "")
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    known = set(FIXED).union(*map(forms, numbers))
    return [found for found in NUMBER.findall(text) if found.rstrip(",") not in known]


def moved(value: Any, key: str = "") -> Any:
    """The same with every number replaced by another one."""
    if isinstance(value, dict):
        return {name: moved(inner, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [moved(inner, key) for inner in value]
    if isinstance(value, bool) or key == "confidence":
        return value
    return value + 7919 if isinstance(value, int) else value * 0.9137 if isinstance(value, float) else value


def test_every_number_on_a_card_is_in_a_file_beside_it(evidence: Evidence) -> None:
    manifest = manifest_of()
    card = render_card(manifest, evidence)
    assert len(NUMBER.findall(card)) > 50
    assert strays(card, stored(manifest, evidence)) == []


def test_other_numbers_in_the_files_give_other_numbers_on_the_card(evidence: Evidence) -> None:
    manifest = from_stored(Manifest, moved(asdict(manifest_of())))
    groups = {
        group: {name: from_stored(type(one), moved(asdict(one))) for name, one in members.items()}
        for group, members in vars(evidence).items()
        if group != "sources"
    }
    changed = Evidence(**groups)
    assert strays(render_card(manifest, changed), stored(manifest, changed)) == []


def test_a_planted_number_is_found(evidence: Evidence) -> None:
    manifest = manifest_of()
    card = render_card(manifest, evidence) + "\nAccuracy 98.76 % in our clinic.\n"
    assert strays(card, stored(manifest, evidence)) == ["98.76"]


def test_the_template_holds_no_number_of_its_own() -> None:
    template = (Path(pefomed_hub.__file__).parent / "cards" / "card.md.jinja").read_text(encoding="utf-8")
    text = re.sub(r"```.*?```|{{.*?}}|{%.*?%}", "", template, flags=re.DOTALL)
    for name in NAMES:
        text = text.replace(name, "")
    assert NUMBER.findall(text) == []


def front_matter(card: str) -> dict[str, Any]:
    """What the Hub reads of a card."""
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_finds_the_scores_of_the_result_file(repo: Path) -> None:
    evidence = committed_run(repo, "quickstart")
    read = front_matter(render_card(manifest_of(), evidence))
    [results] = evidence.results.values()
    [entry] = read["model-index"][0]["results"]
    assert entry["task"]["type"] == "visual-question-answering" and entry["dataset"]["name"] == "phantoms"
    by_name = {metric["name"]: metric["value"] for metric in entry["metrics"]}
    assert by_name["Accuracy"] == results.headline.score.value and set(by_name) >= {"Accuracy, open"}
    assert read["base_model"] == "ada/base" and read["base_model_relation"] == "adapter"
    assert read["license"] == "apache-2.0" and read["library_name"] == "peft"
    assert read["pipeline_tag"] == "image-text-to-text" and {"medical", "vqa"} <= set(read["tags"])


@pytest.mark.parametrize("kind", ["adapter", "merged", "base"])
def test_a_stranger_finds_an_answer_to_each_question(kind: str, whole_run: Evidence) -> None:
    card = render_card(manifest_of(kind), Evidence() if kind == "base" else whole_run)
    sections = re.findall(r"^## (.*)$", card, flags=re.MULTILINE)
    questions = ["What it is", "How good it is", "May I use it?", "From what", "How to load it", "How it was checked"]
    assert sections == questions
    assert "Not a medical device" in card.partition("## ")[0]
    for part in ("`someone/tower`: licence mit", "`someone/llama`: licence llama2"):
        assert part in card
    assert 'from_pretrained("ada/lung-adapter", trust_remote_code=True)' in card
    assert ("PeftModel.from_pretrained(base" in card) == (kind == "adapter")
    assert ("Not measured." in card) == (kind == "base")
    assert "\n\n\n" not in card and "None" not in card


def test_baseline_control_rule_and_cost_stand_beside_the_score(repo: Path) -> None:
    card = render_card(manifest_of(), committed_run(repo, "quickstart_random_tower"))
    good = card.partition("## How good it is")[2].partition("## May I use it?")[0]
    assert "Majority answer" in good and "Blank image" in good and "`pefomed-strict-vqa-1" in good
    assert "An open question is right only if the normalised reply equals" in good
    assert "Better than giving the most frequent training answer" in good
    assert re.search(r"\*\*Not shown to be better than .*\*\* in: Accuracy, left or right, closed", good)
    assert "say nothing about real medical images" in good
    assert "**Training cost in all:** 123 s" in card and "CC0-1.0" in card


def test_calibration_judge_and_raters_are_shown_where_they_were_measured(whole_run: Evidence) -> None:
    card = render_card(manifest_of(), whole_run)
    assert "expected calibration error" in card and "validation questions" in card
    [judge] = whole_run.judges.values()
    assert "exact-judge" in card and (f"mean of {judge.judgement.mean:.3f}" in card) == judge.trustworthy
    assert "People among themselves: quadratically weighted kappa 1.000" in card
    [row] = [row for row in card.splitlines() if row.startswith("- Scored by raters")]
    assert "0.806" in row
    nothing = render_card(manifest_of(), Evidence(results=whole_run.results))
    assert "No judge model scored the answers." in nothing and "No person has rated the answers." in nothing


def test_the_scores_of_a_judge_that_failed_its_gate_are_not_shown(whole_run: Evidence) -> None:
    [judge] = whole_run.judges.values()
    failed = from_stored(type(judge), asdict(judge) | {"trustworthy": False})
    card = render_card(manifest_of(), Evidence(whole_run.results, judges={"judged.json": failed}))
    assert "is not to be believed" in card and "gave a mean" not in card
    rated = Evidence(whole_run.results, judges={"judged.json": failed}, agreements=whole_run.agreements)
    card = render_card(manifest_of(), rated)
    assert "Scored by raters" in card and "Scored by exact-judge" not in card
    assert re.search(r"exact-judge( \(not trustworthy\))? with people: quadratically weighted kappa", card)


def test_no_score_is_shown_while_its_baseline_or_control_is_missing(repo: Path) -> None:
    evidence = committed_run(repo, "quickstart")
    [results] = evidence.results.values()
    results.missing = ["a blank-image control"]
    card = render_card(manifest_of(), evidence)
    assert "**Accuracy: not shown.** It says nothing without a blank-image control" in card
    assert "model-index" not in card and f"{100 * results.headline.score.value:.1f} %" not in card


def test_what_is_not_known_is_said_to_be_not_known() -> None:
    card = render_card(manifest_of(runs=[], incomplete_history=True, seconds=0.0, licence="", check=None), Evidence())
    assert "**Not measured.**" in card and "No record of the training is here." in card
    assert "the publisher named none" in card and "Training cost" not in card
    later = render_card(manifest_of(incomplete_history=True), Evidence())
    assert "without the earlier runs, whose records are not here" in later


@pytest.mark.parametrize(("said", "warned"), [(True, True), (False, False), (None, False)])
def test_credentialed_data_are_named(said: bool | None, warned: bool) -> None:
    card = render_card(manifest_of(credentialed=said), Evidence())
    assert ("Trained on credentialed data" in card) == warned
    assert ("was not recorded" in card) == (said is None)


def test_results_of_another_adapter_are_refused_by_name_and_passed_over_in_a_folder(repo: Path) -> None:
    path = repo / "recipes" / "results" / "quickstart--test.json"
    with pytest.raises(PeFoMedError, match="it is about stage2@.* expected the adapter @0000"):
        find_evidence([path], "0000")
    assert find_evidence([path.parent], "0000") == Evidence()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{}", "no result file of this version"),
        ("not JSON", "no result file of this version"),
        ('{"schema": "pefomed-results/1"}', "make it again with this version"),
    ],
)
def test_a_named_file_that_is_no_result_is_refused(tmp_path: Path, content: str, error: str) -> None:
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(PeFoMedError, match=error):
        find_evidence([tmp_path / "results.json"], "0000")


def test_a_card_is_rendered_without_torch(run_python: Callable[..., Any]) -> None:
    code = "import sys, pefomed_hub.model_card; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert run_python("-c", code).stdout.split() == ["False", "False"]


def test_the_schema_stands_first_in_a_manifest(tmp_path: Path) -> None:
    from pefomed_hub.manifest import MANIFEST, changed_files, list_files, read_manifest, write_manifest

    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "b.txt").write_text("b", encoding="utf-8")
    manifest = manifest_of(files=list_files(tmp_path))
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert next(iter(json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8")))) == "schema"
    assert changed_files(tmp_path, manifest) == {}
    (tmp_path / "a.txt").write_text("A", encoding="utf-8")
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.txt").write_text("c", encoding="utf-8")
    assert changed_files(tmp_path, manifest) == {"a.txt": "changed", "b.txt": "missing", "c.txt": "not listed"}
    (tmp_path / MANIFEST).write_text(json.dumps({"schema": SCHEMA + "x"}), encoding="utf-8")
    with pytest.raises(PeFoMedError, match="export it with this version"):
        read_manifest(tmp_path)

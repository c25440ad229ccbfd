# SPDX-License-Identifier: Apache-2.0
"""The model card, rendered from the manifest and the result files alone.

Every number on it is one of theirs: the template holds none, and nobody can add a text of their own. What was not
measured is said to be not measured. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pefomed_recipes.evaluation.agreeing import AgreementResults
from pefomed_recipes.evaluation.agreement import HUMAN_HUMAN, JUDGE_HUMAN, PRIMARY
from pefomed_recipes.evaluation.coefficients import Estimate
from pefomed_recipes.evaluation.page.wording import TASK_TITLES, interval_text, percent, points, title_of
from pefomed_recipes.evaluation.panels import RATERS
from pefomed_recipes.evaluation.results import Difference, Results, Row, Score
from pefomed_recipes.evaluation.tables import headline, markdown_table

from .evidence import Evidence
from .manifest import MANIFEST, Manifest, Run

CARDS = Path(__file__).with_name("cards")
PAPER_TAG = "arxiv:2401.02797"
PIPELINE = "image-text-to-text"
# The Hub's names of the tasks that results are about.
HUB_TASKS = {"vqa": "visual-question-answering", "report": PIPELINE, "caption": "image-to-text", "refer": PIPELINE}
RELATIONS = {"adapter": "adapter", "merged": "finetune"}
SHOWN_SLICES = ("overall", "answer_type", "laterality", "consistency")
# What the model is compared with, as it stands in a sentence.
RIVALS = {
    "majority_answer": "giving the most frequent training answer to each question",
    "constant_text": "always giving one and the same text",
    "blank_image": "its own answers to a blank image",
    "shuffled_images": "its own answers to the wrong images",
    "mirrored_images": "its own answers to mirrored images",
}
# What a reader looks for first among the settings of a run, in this order.
SETTINGS_SHOWN = (
    "learning_rate",
    "lora_r",
    "lora_alpha",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)


def render_card(manifest: Manifest, evidence: Evidence) -> str:
    """Return the text of `README.md`: the metadata that the Hub reads, and a page for people."""
    environment = Environment(
        loader=FileSystemLoader(CARDS), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "count": lambda number: f"{number:,}",
        "seconds": lambda number: f"{number:,.0f} s",
        "loss": lambda number: "not measured" if number is None else f"{number:.4f}",
        "measure": measure,
        "estimate": estimate_text,
        "task": lambda name: TASK_TITLES.get(name, title_of(name)),
    }
    text = environment.get_template("card.md.jinja").render(
        card=manifest,
        name=manifest.repo.rpartition("/")[2],
        metadata=metadata(manifest, evidence).to_yaml(),
        manifest_file=MANIFEST,
        tasks=tasks_of(manifest, evidence),
        results=evidence.results,
        judges=list(evidence.judges.values()),
        panels=[panel for agreement in evidence.agreements.values() for panel in panels_of(agreement, evidence)],
        calibrations=list(evidence.calibrations.values()),
        headline=headline,
        score_table=score_table,
        verdicts=verdicts,
        data_table=data_table,
        settings=settings_of,
        signatures=signatures,
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def metadata(manifest: Manifest, evidence: Evidence) -> ModelCardData:
    """Return what stands at the top of the card, for the Hub's own search, badges and tables."""
    base = manifest.base.id if manifest.base else None
    tags = ["medical", "radiology", "pefomed", PAPER_TAG, *tasks_of(manifest, evidence)]
    results = list(evaluations(evidence)) or None
    return ModelCardData(
        license=manifest.licence or None,
        library_name="peft" if manifest.kind == "adapter" else "transformers",
        pipeline_tag=PIPELINE,
        base_model=base,
        base_model_relation=RELATIONS.get(manifest.kind) if base else None,
        tags=tags,
        model_name=manifest.repo.rpartition("/")[2] if results else None,
        eval_results=results,
        ignore_metadata_errors=False,
    )


def evaluations(evidence: Evidence) -> Iterable[EvalResult]:
    """Yield the entries of `model-index`: shares of all items and by type of answer, none that must not be shown."""
    for results in evidence.results.values():
        if results.missing:
            continue
        for row in results.rows:
            if row.slice in ("overall", "answer_type") and row.score.value is not None:
                dataset = ", ".join(results.sources) or "not named"
                yield EvalResult(
                    task_type=HUB_TASKS[results.task],
                    dataset_type=dataset,
                    dataset_name=dataset,
                    metric_type=row.metric,
                    metric_value=row.score.value,
                    metric_name=row_title(row),
                )


def tasks_of(manifest: Manifest, evidence: Evidence) -> list[str]:
    """Return the tasks that the last run trained and those that were measured."""
    trained = [str(run.settings.get("task", "")) for run in manifest.runs[-1:]]
    return [task for task in dict.fromkeys([*trained, *(r.task for r in evidence.results.values())]) if task]


def score_table(results: Results) -> str:
    """Return the scores by type of answer with all that they must be compared with; all others are in the `.md`."""
    rows = [row for row in results.rows if row.slice in SHOWN_SLICES and row.items]
    rows = [row for row in rows if row.slice != "answer_type" or row.metric == results.headline.metric]
    others = list(dict.fromkeys(name for row in rows for name in (*row.baselines, *row.controls)))
    header = ["Score", "n", "This model", interval_title(results), *map(title_of, others)]
    lines = [
        [
            row_title(row),
            f"{row.items:,}",
            percent(row.score),
            interval_text(row.score.cluster_interval or row.score.interval),
            *(comparison({**row.baselines, **row.controls}.get(name), row.differences.get(name)) for name in others),
        ]
        for row in rows
    ]
    return markdown_table(header, lines, left=1)


def interval_title(results: Results) -> str:
    """Return the heading of intervals, with the confidence that they were made for."""
    return f"{100 * results.resampling.confidence:.0f} % interval"


def comparison(other: Score | None, difference: Difference | None) -> str:
    """Return another system's score, and the model's minus this one in points."""
    if other is None:
        return "-"
    return percent(other) + (f"; {points(difference)}" if difference is not None else "")


def row_title(row: Row) -> str:
    """Return what a score is of."""
    return ", ".join(part for part in (title_of(row.metric), row.value, row.answer_type) if part)


def verdicts(results: Results) -> Iterable[str]:
    """Yield, for everything that the headline is compared with, what its interval allows to say, and where the same
    cannot be said of a part of the items."""
    for name, difference in results.headline.differences.items():
        rival, interval = RIVALS.get(name, title_of(name).lower()), difference.interval
        if interval is None:
            yield f"Against {rival}: nothing can be said ({difference.reason or 'no interval'})."
        elif interval.low > 0:
            yield f"Better than {rival}: the whole interval of the difference lies above zero."
        elif interval.high < 0:
            yield f"**Worse than {rival}**: the whole interval of the difference lies below zero."
        else:
            yield f"**Not shown to be better than {rival}**: the interval of the difference holds zero."
        intervals = {row_title(row): row.differences[name].interval for row in results.rows if name in row.differences}
        unclear = [title for title, one in intervals.items() if one is not None and one.low <= 0]
        if interval is not None and interval.low > 0 and unclear:
            yield f"**Not shown to be better than {rival}** in: {'; '.join(unclear)}."


def signatures(results: Results) -> dict[str, list[str]]:
    """Return each rule with the scores made by it: the rows' own signature, else protocol and answer normaliser."""
    rules: dict[str, list[str]] = {}
    for row in results.rows:
        titles = rules.setdefault(row.signature or f"{results.protocol}, {results.normalizer}", [])
        if (title := title_of(row.metric)) not in titles:
            titles.append(title)
    return rules


def data_table(runs: Iterable[Run]) -> str:
    """Return what each run trained on and was validated on."""
    lines = [
        [
            run.name,
            split,
            ", ".join(data.get("sources") or ()) or str(run.settings.get("dataset", "not recorded")),
            f"{data.get('samples', 0):,}",
            f"{data.get('images', 0):,}",
            ", ".join(data.get("licences") or ()) or "not recorded",
        ]
        for run in runs
        for split, data in run.data.items()
    ]
    return markdown_table(["Run", "Split", "Data", "Samples", "Images", "Licence"], lines, left=3)


def settings_of(run: Run) -> str:
    """Return the settings of a run that a reader looks for first."""
    shown = [f"{name} {run.settings[name]}" for name in SETTINGS_SHOWN if name in run.settings]
    return ", ".join([f"seed {run.seed}", *shown])


def panels_of(agreement: AgreementResults, evidence: Evidence) -> Iterable[Mapping[str, Any]]:
    """Yield, for each scale that people or judges scored on, how they scored this model and agreed over all answers.

    Of judges, only those are quoted that passed their gate; how well the others agree with people is still told.
    """
    trusted = {RATERS, *(report.judge for report in evidence.judges.values() if report.trustworthy)}
    own = {adapter for results in evidence.results.values() for adapter in results.adapters}
    for panel in agreement.panels:
        compared = [one for one in panel.comparisons if one.slice == "overall" and PRIMARY in one.measures]
        yield {
            "task": panel.task,
            "top": panel.top,
            "wasm": [row for row in panel.wasm if row.slice == "overall" and row.by in trusted and row.system in own],
            "raters": [one.measures[PRIMARY] for one in compared if one.kind == HUMAN_HUMAN],
            "judges": {one.first: one.measures[PRIMARY] for one in compared if one.kind == JUDGE_HUMAN},
        }


def measure(score: Score) -> str:
    """Return a number that is no percentage, with its interval."""
    if score.value is None:
        return f"not defined ({score.reason})"
    interval = score.cluster_interval
    return f"{score.value:.3f}" + (f" ({interval.low:.3f} to {interval.high:.3f})" if interval else "")


def estimate_text(estimate: Estimate) -> str:
    """Return a coefficient or a mean with its interval."""
    if estimate.value is None:
        return f"not defined ({estimate.reason})"
    has_interval = estimate.low is not None and estimate.high is not None
    return f"{estimate.value:.3f}" + (f" ({estimate.low:.3f} to {estimate.high:.3f})" if has_interval else "")

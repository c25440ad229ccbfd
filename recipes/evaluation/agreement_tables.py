# SPDX-License-Identifier: Apache-2.0
"""Agreement as a Markdown page, in the order a reader asks: the ceiling, the judges, the metrics, then the details."""

from __future__ import annotations

from collections.abc import Iterable

from .agreeing import FEW_ANSWERS, AgreementResults, PanelResults
from .agreement import HUMAN_HUMAN, JUDGE_HUMAN, METRIC_HUMAN, NOT_ON_SCALE, PRIMARY
from .agreement_sections import (
    TITLES,
    UNDEFINED,
    agreement_cell,
    among_raters_table,
    bias_cell,
    confusion_tables,
    level_table,
    name_of,
    overall_table,
    prediction_powered_table,
    rater_table,
    replacement_section,
    shown,
    slice_table,
    stability_section,
    wasm_rows_table,
)
from .replacement import NonInferiority


def agreement_page(results: AgreementResults) -> str:
    """Return the whole page; every number comes from `results`."""
    parts = ["# Agreement of raters, judges and metrics"]
    for panel in results.panels:
        parts += list(_panel(panel))
    parts += ["## How to read this", "\n".join(_notes(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _panel(panel: PanelResults) -> Iterable[str]:
    counts = ", ".join(f"{name} {count:,}" for name, count in panel.counts.items())
    yield f"## {panel.task}, scores 0 to {panel.top} ({', '.join(panel.rubrics)})"
    yield f"{counts[:1].upper()}{counts[1:]}."
    yield "\n".join(f"- {sentence}" for sentence in findings(panel))
    overall = [c for c in panel.comparisons if c.slice == "overall"]
    if overall:
        yield "### Who agrees with whom"
        yield overall_table(overall)
        yield level_table(overall, panel.top)
    yield from confusion_tables(overall, panel.top)
    if panel.raters:
        yield "### Raters"
        yield rater_table(panel)
        yield among_raters_table(overall)
    yield from replacement_section(panel)
    yield from stability_section(panel)
    sliced = [c for c in panel.comparisons if c.slice != "overall"]
    if sliced:
        yield "### By slice: quadratic kappa, and tau-b of metrics that are not on the scale"
        yield slice_table(sliced, agreement_cell)
        biased = [c for c in sliced if "bias" in c.measures and c.measures["bias"].reason != NOT_ON_SCALE]
        if biased:
            yield "### By slice: bias, first minus second, points"
            yield slice_table(biased, bias_cell)
    if panel.wasm:
        yield "### WASM"
        yield wasm_rows_table(panel)
        yield prediction_powered_table(panel)


def findings(panel: PanelResults) -> Iterable[str]:
    """Return the answers in sentences: the ceiling, each judge against it, the nearest metric, and steadiness."""
    overall = [c for c in panel.comparisons if c.slice == "overall"]
    ceiling = next((c for c in overall if c.kind == HUMAN_HUMAN), None)
    if ceiling is None:
        yield "No ceiling: fewer than two raters, so nobody knows how well people agree here."
    else:
        yield f"Ceiling: two raters agree with a quadratic kappa of {shown(ceiling.measures[PRIMARY])}."
    for test in panel.non_inferiority:
        yield _non_inferiority_sentence(test)
    for comparison in overall:
        bias = comparison.measures.get("bias")
        if comparison.kind == JUDGE_HUMAN and bias is not None and bias.low is not None and bias.high is not None:
            leaning = "higher than" if bias.low > 0 else "lower than" if bias.high < 0 else "on average like"
            yield f"{comparison.first} scores {leaning} raters: {shown(bias, signed=True)} points."
    metrics = [c for c in overall if c.kind == METRIC_HUMAN and c.measures["tau_b"].value is not None]
    if metrics:
        best = max(metrics, key=lambda c: c.measures["tau_b"].value or -1)
        others = [c for c in overall if c.kind in (HUMAN_HUMAN, JUDGE_HUMAN)]
        beside = ", ".join(f"{name_of(c)} {shown(c.measures['tau_b'])}" for c in others)
        yield (
            f"Nearest metric to raters: {best.first}, tau-b {shown(best.measures['tau_b'])}"
            + (f" (beside it {beside})." if beside else ".")
        )
    for line in panel.retests:
        if line.minus_raters is not None:
            points = shown(line.minus_raters, 100, 1)
            what = "is more stable than raters" if line.more_stable else "was not shown to be more stable than raters"
            yield f"{line.by} {what}: the same score again {points} points more often."
    for drift in panel.drifts:
        if drift.drifted or drift.changed:
            what = "drifted" if drift.drifted else "did not drift, though its name or rubric changed"
            yield f"{drift.judge} {what}: {drift.run} minus {drift.first_run} is {shown(drift.mean_change)} points."


def _non_inferiority_sentence(test: NonInferiority) -> str:
    if test.difference.value is None or test.bound is None:
        return f"{test.judge} against the ceiling: {UNDEFINED} ({test.difference.reason})."
    verdict = {
        "shown": "agrees with raters as well as they do with each other",
        "not shown": "was not shown to agree with raters as well as they do with each other",
        "inferior": "agrees with raters less than they do with each other",
    }[test.result]
    needed = f"{test.answers_needed:,} answers with {test.raters} raters ({test.ratings_needed:,} ratings)"
    return (
        f"{test.judge} {verdict}, at a margin of {test.margin:g}: kappa {test.judge_human:.3f} beside "
        f"{test.human_human:.3f}, difference {shown(test.difference, signed=True)}, one-sided 95 % bound "
        f"{test.bound:+.3f}. To show it with power 80 % where the judge is as good as raters takes {needed}."
    )


def _notes(results: AgreementResults) -> Iterable[str]:
    resampling = results.resampling
    yield (
        f"- Intervals in brackets: 95 %, {resampling.resamples:,} resamples of whole clusters, seed "
        f"{resampling.seed}, cluster = {resampling.cluster}; of the prediction-powered estimate, normal."
    )
    yield "- Every number of a pair of kinds is the mean over pairs of parties, weighed by the answers both scored."
    yield "- Raw agreement is high by itself where nearly all answers have one score: read it beside the shares."
    yield "- Bias: first minus second, in points of the scale; above 0 the first is the milder."
    yield "- WASM = sum of k * n_k / sum of n_k is derived, not printed in the paper; quoted is the mean over answers."
    yield f"- \\* fewer than {FEW_ANSWERS} answers: read with care. An answer of several types counts in each."
    for panel in results.panels:
        for comparison in panel.comparisons:
            if comparison.slice == "overall":
                reasons = {e.reason for name, e in comparison.measures.items() if e.value is None and name in TITLES}
                yield from (f"- {name_of(comparison)}: {UNDEFINED}, {reason}." for reason in sorted(reasons))
        yield from (f"- {name}: {count:,} verdicts without a score." for name, count in panel.unread.items() if count)
        yield from (f"- {name}: the samples of {n:,} answers tie: no score." for name, n in panel.tied.items() if n)
    yield from (f"- {note}." for note in results.notes)
    for record in results.files:
        yield f"- `{record.name}`, {record.records:,} lines, SHA-256 `{record.sha256[:16]}`."
    yield f"- Made {results.date[:10]} with " + ", ".join(f"{k} {v}" for k, v in results.packages.items()) + "."

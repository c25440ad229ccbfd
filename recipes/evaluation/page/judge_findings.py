# SPDX-License-Identifier: Apache-2.0
"""What judges and raters say against a model's score, or against a judge: gate, drift, and exact match beside them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..coefficients import Floats
from ..intervals import ClusterBootstrap, ItemScores
from ..panels import Panel
from ..results import SMALL_SLICE
from .commands import Commands
from .finding import Finding
from .inputs import ReportInputs
from .wording import CODES, capitalised

FAR = 0.10  # difference of shares that is called far
LARGEST = 3  # slices that are named


def judge_findings(inputs: ReportInputs, commands: Commands) -> Iterable[Finding]:
    """Yield what the checks of judges and raters say."""
    for report in inputs.judges:
        if not report.trustworthy:
            evidence = f"{capitalised(report.gate.verdict)}. Its scores are not to be quoted."
            title = f"The judge {report.judge} is not trustworthy"
            yield Finding("judge_gate", "problem", title, evidence, commands.judge("ANOTHER"))
        else:
            evidence = f"It passed all {len(report.gate.checks)} checks on {report.gate.items:,} items."
            yield Finding("judge_gate", "clear", f"The judge {report.judge} passed its gate", evidence)
        if report.drift.warning:
            evidence = capitalised(report.drift.warning) + "."
            yield Finding("judge_drift", "problem", f"The judge {report.judge} has drifted", evidence, commands.rate())
        for warning in report.judgement.warnings:
            bounds = [
                f"{_or_none(row.lowest)} and {_or_none(row.highest)} for {row.system}"
                for row in report.wasm
                if row.slice == "overall" and row.unrated
            ]
            said = "With all answers without a score at the bottom, and at the top, the mean would be "
            said = f"{said}{'; '.join(bounds)}." if bounds else "Every answer has a score all the same."
            yield Finding("judge_replies", "caution", f"{report.judge}: {warning}", said)
    if inputs.results.task == "vqa" and not inputs.results.missing:
        yield from _exact_match_and_judges(inputs, commands)


def _or_none(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"


def _exact_match_and_judges(inputs: ReportInputs, commands: Commands) -> Iterable[Finding]:
    name, question = "exact_match_far_from_judge", "Is exact match far from what a judge says?"
    failed = {report.judge for report in inputs.judges if not report.trustworthy}
    known = {report.judge for report in inputs.judges}
    asked = False
    for panel in inputs.panels:
        for judge, scores in panel.judges.items():
            asked = True
            plain = judge.partition(" (")[0]
            if plain in failed or plain not in known:
                why = "is not trustworthy" if plain in failed else "has no gate among the files (its .json is missing)"
                yield Finding(name, "unchecked", question, f"{judge} {why}.", commands.judge("ANOTHER"))
                continue
            yield _gap(name, panel, judge, scores / panel.top, commands)
        if panel.raters:
            yield _gap("exact_match_far_from_raters", panel, "raters", panel.human_mean / panel.top, commands)
    if not asked:
        reason = "No verdicts on the scored predictions are among the files."
        if not inputs.predictions:
            reason = "The scored predictions are not among the files, so that no verdict can be held against them."
        yield Finding(name, "unchecked", question, reason, commands.judge())


def _gap(name: str, panel: Panel, who: str, scores: Floats, commands: Commands) -> Finding:
    """Exact match of the same answers beside the share of the scale that a party gave them."""
    exact = panel.metrics["exact_match"]
    items = np.flatnonzero(np.isfinite(exact) & np.isfinite(scores))
    if not len(items):
        return Finding(name, "unchecked", f"Is exact match far from {who}?", "No answer has both.")
    bootstrap = ClusterBootstrap([panel.clusters[at] for at in items])
    gap = scores[items] - exact[items]
    interval = bootstrap.interval(ItemScores.of(list(gap)))
    evidence = (
        f"Of {len(items):,} answers, {who} {_share(scores[items])} and exact match {_share(exact[items])}: "
        f"{100 * gap.mean():+.1f} points"
    )
    evidence += f" ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})." if interval else "."
    far = abs(gap.mean()) >= FAR and interval is not None and not interval.low <= 0 <= interval.high
    slices = []
    for (slice_name, value), positions in panel.slices.items():
        chosen = np.intersect1d(positions, items)
        if slice_name != "system" and SMALL_SLICE <= len(chosen) < len(items):
            difference = float((scores[chosen] - exact[chosen]).mean())
            slices.append((abs(difference), f"{CODES.get(value, value)} {100 * difference:+.1f}"))
    largest = [text for size, text in sorted(slices, key=lambda one: (-one[0], one[1]))[:LARGEST] if size > 0]
    if largest:
        evidence += f" Most in: {', '.join(largest)}."
    if far:
        return Finding(name, "problem", f"Exact match is far from {who}", evidence, commands.rate())
    return Finding(name, "clear", f"Exact match is near {who}", evidence)


def _share(values: Floats) -> str:
    return f"{100 * values.mean():.1f} %"

# SPDX-License-Identifier: Apache-2.0
"""One run of a judge over prediction files: the gate first, then drift, then the verdicts and what they add up to."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...chat_api import Endpoint, Estimate, estimate, is_in_house
from ...errors import ConfigError, PeFoMedError
from ...ledger import Ledger, refuse_unwritable
from ...records import Prediction, Verdict, write_records
from ...staging import whole_file
from ..coefficients import Draws
from ..panels import build_panels
from ..rating_sheets import read_systems
from ..wasm import Wasm, wasm_table
from .drift import Drift, sentinels, watch
from .gate import Gate, gate_asks, pass_gate
from .judging import (
    Ask,
    ChatJudge,
    Judge,
    Judgement,
    answer_asks,
    answers_of,
    judge_answers,
    refuse_credentialed,
)
from .rubrics import Rubric

NOT_TRUSTWORTHY = "not trustworthy"


@dataclass(frozen=True)
class JudgeReport:
    """All of a run. `trustworthy` is false where the gate was failed: the scores are then not to be quoted."""

    judge: str
    run: str
    rubric: str
    rubric_sha256: str
    trustworthy: bool
    gate: Gate
    drift: Drift
    judgement: Judgement
    wasm: list[Wasm]

    @property
    def warnings(self) -> list[str]:
        """What a reader must know, the gravest first."""
        failed = [f"{NOT_TRUSTWORTHY} ({self.gate.verdict})"]
        drift = [self.drift.warning] if self.drift.warning else []
        return (failed if not self.trustworthy else []) + drift + self.judgement.warnings


def check_options(out: Path, url: str, local: str) -> None:
    """Refuse what cannot end well before a model is loaded or a request is made.

    Raises:
        ConfigError: `out` does not end in `.jsonl` or cannot be written, or two judges are named.
    """
    if local and url:
        raise ConfigError("found --local and --url; expected one judge")
    if out.suffix != ".jsonl":
        raise ConfigError(f"--out: found {out}, expected a name that ends in .jsonl; the report goes beside it")
    for path in (out, out.with_suffix(".json"), out.with_suffix(".md")):
        refuse_unwritable(path)


def read_answers(paths: Sequence[str | os.PathLike[str]]) -> list[Prediction]:
    """Return the predictions to be judged, of one task.

    Raises:
        PeFoMedError: a file cannot be read, or they are of several tasks, or of one that has its own measure.
    """
    predictions = read_systems(paths)
    tasks = {prediction.task for prediction in predictions}
    if len(tasks) > 1 or "refer" in tasks:
        raise PeFoMedError(
            f"found predictions of the task {' and '.join(sorted(tasks))}; expected one of vqa, caption and report "
            "(boxes are measured by pefomed score)"
        )
    return predictions


def chat_judge(
    endpoint: Endpoint,
    ledger: Ledger,
    predictions: Sequence[Prediction],
    max_cost: float | None = None,
    temperature: float = 0.0,
) -> ChatJudge:
    """Return the judge behind an endpoint, after making sure that these predictions may be sent there.

    Raises:
        ConfigError: the endpoint or its model is not named.
        PeFoMedError: predictions are credentialed, and the endpoint is outside of the house.
    """
    if not endpoint.url or not endpoint.model:
        raise ConfigError("name a judge: --url and --model of an endpoint, or --local and a model on this machine")
    if not is_in_house(endpoint.url):
        refuse_credentialed(predictions, endpoint.url)
    return ChatJudge(endpoint, ledger, max_cost, temperature)


def expected_cost(
    judge: ChatJudge, rubric: Rubric, predictions: Sequence[Prediction], *, samples: int, gate_items: int
) -> Estimate:
    """Return what a run would ask and cost: gate, sentinels and answers."""
    answers = answers_of(predictions)
    kept = judge.estimate([*gate_asks(answers, items=gate_items), *answer_asks(answers, samples)], rubric)
    fresh = [judge.request(Ask(answer), rubric) for answer in sentinels(predictions[0].task)[0]]
    anew = estimate(fresh, judge.endpoint, Ledger(os.devnull))
    return Estimate(*(getattr(kept, f.name) + getattr(anew, f.name) for f in fields(Estimate)))


def run_judge(
    judge: Judge,
    rubric: Rubric,
    predictions: Sequence[Prediction],
    out: str | os.PathLike[str],
    *,
    samples: int = 3,
    gate_items: int = 40,
    dry_run: bool = False,
) -> JudgeReport | None:
    """Judge predictions; write the verdicts to `out` (JSON lines), the report beside it as `.json` and `.md`.

    Args:
        samples: verdicts on each answer.
        gate_items: items whose references make the gate's known answers.
        dry_run: only say on stderr what it would cost, and return nothing.

    Raises:
        ConfigError: `out` does not end in `.jsonl`, or cannot be written.
        PeFoMedError: it would cost more than the judge may spend.
    """
    out = Path(out)
    check_options(out, "", "")
    run = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    answers = answers_of(predictions)
    if isinstance(judge, ChatJudge):
        cost = expected_cost(judge, rubric, predictions, samples=samples, gate_items=gate_items)
        print(cost, file=sys.stderr)
        if judge.max_cost is not None and cost.cost > judge.max_cost:
            raise PeFoMedError(f"nothing was asked: the cost is above --max-cost {judge.max_cost:g}")
    if dry_run:
        return None
    gate = pass_gate(judge, rubric, answers, items=gate_items)
    drift = watch(judge, rubric, predictions[0].task, run, out.with_name(f"{out.stem}.drift.jsonl"))
    verdicts, judgement = judge_answers(judge, rubric, answers, samples=samples, run=run)
    for verdict in verdicts:
        verdict.trusted = gate.passed
    report = JudgeReport(
        judge=judge.name,
        run=run,
        rubric=rubric.name,
        rubric_sha256=rubric.sha256,
        trustworthy=gate.passed,
        gate=gate,
        drift=drift,
        judgement=judgement,
        wasm=_wasm(verdicts, predictions),
    )
    write_records(out, verdicts)
    with whole_file(out.with_suffix(".md")) as staged:
        staged.write_text(as_markdown(report), encoding="utf-8")
    with whole_file(out.with_suffix(".json")) as staged:
        staged.write_text(json.dumps(_stored(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {out}, {out.with_suffix('.json')} and {out.with_suffix('.md')}", file=sys.stderr)
    return report


def _wasm(verdicts: Sequence[Verdict], predictions: Sequence[Prediction]) -> list[Wasm]:
    panels = build_panels([], verdicts, predictions, {}) if verdicts else []
    return [row for panel in panels for row in wasm_table(panel, Draws(panel.clusters))]


def _stored(report: JudgeReport) -> dict[str, Any]:
    return {"schema": "pefomed-judge/1", **asdict(report), "warnings": report.warnings}


def as_markdown(report: JudgeReport) -> str:
    """Return the report as Markdown: what is wrong first, then scores, then the gate and the replies."""
    judgement = report.judgement
    lines = [f"# {report.judge}, rubric {report.rubric}", ""]
    lines += [f"**{warning}**\n" for warning in report.warnings]
    mark = "" if report.trustworthy else f" ({NOT_TRUSTWORTHY})"
    lines += [f"| system | WASM{mark} | 95 % interval | % of the top | answers | without a score | bounds |"]
    lines += ["| --- | --: | --: | --: | --: | --: | --: |"]
    for row in report.wasm:
        if row.slice == "overall":
            low_high = "" if row.wasm.low is None else f"{row.wasm.low:.2f} to {row.wasm.high:.2f}"
            percent = "" if row.percent is None else f"{row.percent:.1f}"
            value = row.wasm.reason if row.wasm.value is None else f"{row.wasm.value:.2f}"
            bounds = f"0.00 to {judgement.top:.2f}" if row.unrated else "-"
            if row.unrated and row.lowest is not None and row.highest is not None:
                bounds = f"{row.lowest:.2f} to {row.highest:.2f}"
            counts = f"{row.answers:,} | {row.unrated:,}"
            lines.append(f"| {row.system} | {value} | {low_high} | {percent} | {counts} | {bounds} |")
    lines += ["", f"WASM is the mean score, 0 to {judgement.top}, over answers of the median of their samples.", ""]
    lines += [
        f"Bounds: what it would be if all answers without a score had 0, or {judgement.top}; their replies could not "
        "be read, tie, or never came.",
        "",
    ]
    lines += [
        "## Gate",
        "",
        "| check | must | items | value | limit | passed |",
        "| --- | --- | --: | --: | --: | --- |",
    ]
    words = {True: "yes", False: "**no**", None: "**not measured**"}
    for check in report.gate.checks:
        shown = "" if check.value is None else f"{check.value:.3f}"
        lines.append(
            f"| {check.name.replace('_', ' ')} | {_MUST[check.kind]} | {check.items:,} | {shown} | {check.limit:g} | "
            f"{words[check.passed]} |"
        )
    lines += ["", "## Replies", ""]
    lines.append(
        f"{judgement.answers:,} answers x {judgement.samples} samples: {judgement.scored:,} scores, "
        f"{judgement.unread:,} replies that could not be read, {judgement.failed:,} requests without a reply."
    )
    lines += [f"- {reason}: {count:,}" for reason, count in sorted(judgement.reasons.items())]
    if judgement.unanimous is not None and judgement.spread is not None:
        kappa = "not defined" if judgement.retest_kappa is None else f"{judgement.retest_kappa:.2f}"
        lines.append(
            f"Samples of an answer all agree in {100 * judgement.unanimous:.1f} %, their standard deviation is "
            f"{judgement.spread:.2f} on average, kappa between the first two {kappa}."
        )
    if report.drift.centre is not None and report.drift.limit is not None:
        lines.append(
            f"Sentinels: mean {report.drift.runs[-1].mean:.2f} in this run, {report.drift.centre:.2f} within "
            f"{report.drift.limit:.2f} expected from {len(report.drift.runs) - 1} earlier."
        )
    return "\n".join(lines) + "\n"


_MUST = {
    "separates": "area under the curve at least the limit",
    "lowers": "drop, its interval above the limit",
    "does not move": "shift within the limit",
    "readable": "unread share within the limit",
}

# SPDX-License-Identifier: Apache-2.0
"""The known ways in which a model or an evaluation fails, each looked for, with evidence and what to run next.

A check says `problem` or `caution` when it finds its signature, `clear` when it does not, and `unchecked` with the
reason when what it needs is not there: silence would look like a good result.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..companions import MIRRORED, SHORT
from ..results import SMALL_SLICE, Results, Row
from ..tables import METRIC_TITLES
from .commands import Commands
from .finding import LEVELS, Finding, Level
from .inputs import ReportInputs
from .judge_findings import judge_findings
from .wording import interval_text, percent, points, quoted_interval, title_of

OPEN_BELOW_CLOSED = 0.20  # difference in accuracy that is called far
UNPARSED = 0.05  # share of closed questions
EMPTY = 0.02  # share of all answers
WIDE = 0.10  # width of the headline's interval
ECE = 0.10


def find_all(inputs: ReportInputs) -> list[Finding]:
    """Return what every check says, the gravest first, else in the order of the checks."""
    results, commands = inputs.results, Commands(inputs)
    found = list(_incomplete(inputs, commands))
    if not results.missing:
        found += _not_above_the_trivial(results, commands)
        found.append(_below_its_base(inputs, commands))
        if results.task == "vqa":
            found.append(_open_below_closed(results, commands))
            found.append(_sides_at_chance(results, commands))
    found += judge_findings(inputs, commands)
    found.append(_unparsed(results, commands))
    found.append(_empty(results, commands))
    if not results.missing:
        found.append(_wide(results, commands))
        if results.task == "vqa":
            found.append(_confidence(inputs, commands))
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _incomplete(inputs: ReportInputs, commands: Commands) -> Iterable[Finding]:
    lacking = inputs.results.lacks("headline")
    for one in lacking:
        evidence = f"It says nothing without {title_of(one.name).lower()} ({one.purpose})."
        command = commands.control(one.name) if one.name in SHORT else commands.score()
        yield Finding("missing", "problem", f"No {title_of(one.name).lower()}: no number is shown", evidence, command)
    for missing in inputs.results.missing[: len(inputs.results.missing) - len(lacking)]:
        yield Finding("missing", "problem", "No number is shown", f"It says nothing without {missing}.")
    for name in inputs.changed:
        yield Finding(
            "changed_file",
            "problem",
            f"{name} is not the file that was scored",
            "Its SHA-256 differs from the one in the results; the items below are left out where it would be needed.",
            commands.score(),
        )
    for warning in inputs.results.warnings:
        yield Finding("warning", "caution", warning[:1].upper() + warning[1:], "A warning of the scoring.")


def _not_above_the_trivial(results: Results, commands: Commands) -> Iterable[Finding]:
    """The headline, and its parts, against each baseline and each control but mirrored images, which may be equal."""
    parts = [row for row in results.rows if row.differences and row.slice != "laterality"]
    parts = [row for row in parts if row.metric == results.headline.metric]
    for name in results.headline.differences:
        if name == MIRRORED:
            continue
        below = [row for row in parts if _includes_zero(row, name)]
        difference = results.headline.differences[name]
        other = {**results.headline.baselines, **results.headline.controls}[name]
        evidence = f"Model {percent(results.headline.score)}, {title_of(name).lower()} {percent(other)}"
        if difference.value is None or difference.interval is None:
            reason = difference.reason or results.headline.score.reason or "there is no interval"
            yield Finding(
                f"not_above_{name}", "unchecked", f"Is the model above: {title_of(name).lower()}?", f"{reason}."
            )
            continue
        evidence += f": difference {points(difference)} points."
        if results.headline in below:
            title = f"Not shown to be better than: {title_of(name).lower()}"
            if name == "blank_image":
                evidence += " The answers do not depend on the image in a way that helps."
            yield Finding(f"not_above_{name}", "problem", title, evidence, commands.doctor())
        elif below:
            of = "; ".join(f"{row.answer_type} questions {points(row.differences[name])} points" for row in below)
            title = f"In part not shown to be better than: {title_of(name).lower()}"
            yield Finding(f"not_above_{name}", "caution", title, f"{evidence} But {of}.", commands.doctor())
        else:
            yield Finding(f"not_above_{name}", "clear", f"Better than: {title_of(name).lower()}", evidence)


def _includes_zero(row: Row, name: str) -> bool:
    difference = row.differences.get(name)
    return bool(difference and difference.interval and difference.interval.low <= 0)


def _open_below_closed(results: Results, commands: Commands) -> Finding:
    name, metric = "open_far_below_closed", results.headline.metric
    rows = {row.answer_type: row for row in results.rows if row.slice == "answer_type" and row.metric == metric}
    opened, closed = rows.get("open"), rows.get("closed")
    if not (opened and closed) or opened.score.value is None or closed.score.value is None:
        return Finding(
            name, "unchecked", "Are open questions far below closed ones?", "One of the two kinds is not there."
        )
    f1 = next((row for row in results.rows if row.metric == "token_f1" and row.answer_type == "open"), None)
    evidence = (
        f"Open {percent(opened.score)} ({interval_text(quoted_interval(opened))}), "
        f"closed {percent(closed.score)} ({interval_text(quoted_interval(closed))})."
    )
    if opened.baselines and closed.baselines:
        [(baseline, low), *_], high = opened.baselines.items(), next(iter(closed.baselines.values()))
        evidence += f" {title_of(baseline)}: {percent(low)} and {percent(high)}."
    low_interval, high_interval = quoted_interval(opened), quoted_interval(closed)
    far = closed.score.value - opened.score.value >= OPEN_BELOW_CLOSED
    apart = bool(low_interval and high_interval and low_interval.high < high_interval.low)
    if not (far and apart):
        return Finding(name, "clear", "Open questions are not far below closed ones", evidence)
    if f1 and f1.score.value is not None:
        evidence += f" Token F1 of open answers is {percent(f1.score)}: what it has above the accuracy is wording."
    return Finding(name, "problem", "Open questions are far below closed ones", evidence, commands.judge())


def _below_its_base(inputs: ReportInputs, commands: Commands) -> Finding:
    """A model after stage 1 alone can be worse than the base that it started from; so can any other."""
    results, training = inputs.results, inputs.training
    name, question = "below_its_base", "Is the model below the base that it started from?"
    if not results.adapters:
        return Finding(name, "unchecked", question, "These are results of a base model itself.")
    stage1 = training is not None and training.task == "caption" and results.task != "caption"
    who = "The model after stage 1 alone" if stage1 else "The model"
    bases = [
        (file, other)
        for file, other in inputs.others.items()
        if not other.adapters and other.task == results.task and other.counts["items"] == results.counts["items"]
    ]
    if not bases:
        reason = "No results of the base on the same items are among the files; give them as a second file."
        if training is None:
            reason += (
                " There is no run.json of the adapter either, so that nobody knows whether it is of stage 1 alone."
            )
        level: Level = "caution" if stage1 else "unchecked"
        title = "A model after stage 1 alone, and not held against its base" if stage1 else question
        return Finding(name, level, title, reason, commands.base(training))
    file, base = bases[0]
    ours, theirs = results.headline, base.headline
    evidence = (
        f"Model {percent(ours.score)} ({interval_text(quoted_interval(ours))}), base {percent(theirs.score)} "
        f"({interval_text(quoted_interval(theirs))}), in {file}."
    )
    if ours.score.value is None or theirs.score.value is None:
        return Finding(name, "unchecked", question, "One of the two numbers is not defined.")
    if ours.score.value < theirs.score.value:
        next_run = commands.stage2() if stage1 else commands.compare(base)
        return Finding(name, "problem", f"{who} is below its base", evidence, next_run)
    return Finding(name, "clear", f"{who} is not below its base", evidence)


def _sides_at_chance(results: Results, commands: Commands) -> Finding:
    name, question = "sides_at_chance", "Are left and right told apart?"
    row = next((row for row in results.rows if row.slice == "laterality"), None)
    interval = quoted_interval(row) if row else None
    if row is None or row.score.value is None or interval is None:
        reason = row.score.reason if row and row.score.reason else "no closed question asks for a side"
        return Finding(name, "unchecked", question, f"{reason[:1].upper()}{reason[1:]}.")
    evidence = f"{percent(row.score)} ({interval_text(interval)}) of {row.items:,} such questions; chance is 50.0 %."
    mirrored = row.controls.get(MIRRORED)
    if mirrored and mirrored.value is not None:
        evidence += f" On mirrored images {percent(mirrored)}, where a model that sees sides falls far below chance."
    if interval.low > 0.5 and results.lacks("laterality"):
        evidence = "Not known without answers to mirrored images: a model that sees sides must change them."
        return Finding(name, "caution", question, evidence, commands.control(MIRRORED))
    if interval.low > 0.5:
        return Finding(name, "clear", "Left and right are told apart", evidence)
    level: Level = "caution" if row.is_small else "problem"
    title = "Left and right are at chance"
    if row.is_small:
        title = f"Too few questions to say that left and right are told apart ({row.items})"
    return Finding(name, level, title, evidence, commands.doctor() if mirrored else commands.control(MIRRORED))


def _unparsed(results: Results, commands: Commands) -> Finding:
    rows = [row for row in results.rows if row.metric == results.headline.metric and row.answer_type == "closed"]
    row = next((row for row in rows if row.slice == "answer_type"), results.headline)
    share = row.score.unparsed / row.items if row.items else 0.0
    evidence = (
        f"{row.score.unparsed:,} of {row.items:,} replies follow no form that the rules can read; they are wrong."
    )
    if share > UNPARSED:
        return Finding("unparsed", "problem", "Many replies could not be read", evidence, commands.short_answers())
    return Finding("unparsed", "clear", "Nearly all replies could be read", evidence)


def _empty(results: Results, commands: Commands) -> Finding:
    empty, items = results.counts.get("empty_predictions", 0), results.counts["items"]
    evidence = f"{empty:,} of {items:,} predictions are empty; an empty one is never right."
    if empty > EMPTY * items:
        return Finding("empty", "problem", "Many predictions are empty", evidence, commands.doctor())
    return Finding("empty", "clear", "Nearly no prediction is empty", evidence)


def _wide(results: Results, commands: Commands) -> Finding:
    row, interval = results.headline, quoted_interval(results.headline)
    if interval is None:
        return Finding("wide", "unchecked", "Is the headline's interval wide?", f"{row.score.reason or 'none'}.")
    width = interval.high - interval.low
    named = [row for row in results.rows if row.slice not in ("overall", "answer_type")]
    small = sum(row.is_small for row in named)
    evidence = (
        f"{METRIC_TITLES.get(row.metric, title_of(row.metric))} {interval_text(interval)}: {100 * width:.1f} points."
    )
    if small:
        evidence += f" {small} of {len(named)} slices have fewer than {SMALL_SLICE} items and are greyed."
    if width <= WIDE:
        return Finding("wide", "clear", "The headline's interval is narrow enough to rank systems", evidence)
    needed = row.clusters * (width / WIDE) ** 2
    evidence += f" About {needed:,.0f} images instead of {row.clusters:,} would make it {100 * WIDE:.0f}."
    return Finding("wide", "caution", "The headline's interval is wide", evidence, commands.predict("without --limit"))


def _confidence(inputs: ReportInputs, commands: Commands) -> Finding:
    calibration = inputs.results.calibration
    if calibration is None or calibration.ece.value is None:
        reason = "The predictions hold no p_yes of closed questions."
        return Finding("confidence", "unchecked", "Can the confidence be trusted?", reason, commands.probabilities())
    evidence = (
        f"On average, confidence and share of right answers differ by {calibration.ece.value:.3f} (ECE), over "
        f"{calibration.items:,} questions at temperature {calibration.temperature:.2f}."
    )
    if calibration.ece.value > ECE:
        title = "The model's confidence cannot be trusted"
        return Finding("confidence", "caution", title, evidence, commands.calibrate())
    return Finding("confidence", "clear", "Confidence and accuracy agree", evidence)

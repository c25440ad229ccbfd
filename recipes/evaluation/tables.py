# SPDX-License-Identifier: Apache-2.0
"""Results as Markdown: the headline with its baselines and controls, the table by slice, laterality apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .results import Difference, Interval, Results, Row, Score

SMALL_SLICE = 30
UNDEFINED = "n/a"
METRIC_TITLES = {
    "accuracy": "Accuracy",
    "mean_iou": "Mean IoU",
    "accuracy_at_iou_0.5": "Accuracy at IoU 0.5",
    "fact_f1": "Factual F1",
    "fact_precision": "Factual precision",
    "fact_recall": "Factual recall",
    "bleu": "BLEU",
}


def markdown_report(results: Results) -> str:
    """Return the whole page; every number comes from `results` and is a percentage, differences are points."""
    of = ", ".join(results.sources) or "source not named"
    parts = [f"# Results: {results.task} ({of})", headline(results)]
    parts += [f"Warning: {warning}." for warning in results.warnings]
    laterality = [row for row in results.rows if row.slice == "laterality"]
    parts.append(_slice_table(results, [row for row in results.rows if row.slice != "laterality"]))
    if laterality:
        parts += ["## Laterality (closed POS questions answered by left or right)", _slice_table(results, laterality)]
    compared = [row for row in results.rows if row.differences]
    if compared:
        parts += ["## Model minus baseline or control, points", _difference_table(compared)]
    parts.append("\n".join(_notes(results)))
    return "\n\n".join(parts) + "\n"


def headline(results: Results) -> str:
    """Return one paragraph: the primary metric with its intervals, beside every baseline and control."""
    row = results.headline
    title = METRIC_TITLES[row.metric]
    if row.score.value is None:
        return f"**{title}: {UNDEFINED}** ({row.score.reason})."
    details = []
    if row.score.interval:
        details.append(f"{row.score.numerator:,.0f} of {row.score.denominator:,.0f}")
        details.append(f"Wilson 95 % {_interval(row.score.interval)}")
    if row.score.cluster_interval:
        details.append(f"over {row.clusters:,} clusters {_interval(row.score.cluster_interval)}")
    sentences = [f"**{title} {_percent(row.score)} %**" + (f" ({'; '.join(details)})" if details else "") + "."]
    for name, other in {**row.baselines, **row.controls}.items():
        if other.value is None:
            sentences.append(f"{_title(name)}: {UNDEFINED} ({other.reason}).")
        else:
            difference = _difference(row.differences.get(name))
            sentences.append(f"{_title(name)} {_percent(other)} %: difference {difference} points.")
    return " ".join(sentences)


def _slice_table(results: Results, rows: Sequence[Row]) -> str:
    baselines = list(dict.fromkeys(name for row in rows for name in row.baselines))
    controls = list(dict.fromkeys(name for row in rows for name in row.controls))
    first = ["Question type", "Answers"] if results.task == "vqa" else ["Metric"]
    header = [*first, "n", "Model", "95 % interval", *map(_title, (*baselines, *controls)), "Unparsed"]
    lines = []
    for row in rows:
        label = (
            [row.value or "all", row.answer_type or "all"] if results.task == "vqa" else [METRIC_TITLES[row.metric]]
        )
        lines.append(
            [
                *label,
                f"{row.items:,}" + ("*" if row.items < SMALL_SLICE else ""),
                _percent(row.score),
                _interval(row.score.interval or row.score.cluster_interval),
                *(_percent(row.baselines.get(name)) for name in baselines),
                *(_percent(row.controls.get(name)) for name in controls),
                f"{row.score.unparsed:,}",
            ]
        )
    return _table(header, lines, left=len(first))


def _difference_table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.differences))
    lines = []
    for row in rows:
        label = ", ".join(part for part in (METRIC_TITLES[row.metric], row.value, row.answer_type) if part)
        lines.append([label, *(_difference(row.differences.get(name)) for name in names)])
    return _table(["", *map(_title, names)], lines, left=1)


def _notes(results: Results) -> Iterable[str]:
    counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in results.counts.items())
    yield f"- Counts: {counts}."
    yield f"- Protocol {results.protocol}, {results.normalizer}. Unparsed replies count as wrong."
    resampling = results.resampling
    yield (
        f"- Intervals: 95 %; Wilson for shares of items; else, and for all differences (paired), a bootstrap with "
        f"{resampling.resamples:,} resamples, seed {resampling.seed}, cluster = {resampling.cluster}."
    )
    if results.task == "vqa":
        yield "- An item with several question types counts in each of them."
    if any(row.items < SMALL_SLICE for row in results.rows):
        yield f"- \\* fewer than {SMALL_SLICE} items: read with care."
    for row in results.rows:
        name = ", ".join(part for part in (METRIC_TITLES[row.metric], row.value, row.answer_type) if part)
        if row.score.value is None:
            yield f"- {name}: {UNDEFINED}, {row.score.reason}."
        if row.signature:
            yield f"- {METRIC_TITLES[row.metric]} signature: `{row.signature}`."
    for role, record in results.files.items():
        yield f"- {_title(role)}: `{record.name}`, {record.records:,} records, SHA-256 `{record.sha256[:16]}`."
    if results.models:
        yield f"- Model: {', '.join(results.models + results.adapters)}."
    yield f"- Scored {results.date[:10]} with " + ", ".join(f"{k} {v}" for k, v in results.packages.items()) + "."


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> str:
    """Return a Markdown table with aligned columns; the first `left` columns are texts, the rest numbers."""
    widths = [max(3, *(len(cells[at]) for cells in (header, *lines))) for at in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if at < left else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, lines)])


def _percent(score: Score | None) -> str:
    return UNDEFINED if score is None or score.value is None else f"{100 * score.value:.1f}"


def _interval(interval: Interval | None) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}" if interval else "-"


def _difference(difference: Difference | None) -> str:
    if difference is None or difference.value is None:
        return UNDEFINED
    value, interval = f"{100 * difference.value:+.1f}", difference.interval
    return f"{value} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})" if interval else value


def _title(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]

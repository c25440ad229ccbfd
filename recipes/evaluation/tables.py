# SPDX-License-Identifier: Apache-2.0
"""Results as Markdown: the headline with its baselines and controls, the table by slice, laterality apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .results import SMALL_SLICE, Calibration, Difference, HistoricProtocol, Interval, Results, Row, Score

UNDEFINED = "n/a"
METRIC_TITLES = {
    "accuracy": "Accuracy",
    "exact_match": "Exact match",
    "token_f1": "Token F1",
    "token_precision": "Token precision",
    "token_recall": "Token recall",
    "all_right": "All right",
    "consistent_replies": "Consistent replies",
    "lucky_answers": "Lucky answers (less is better)",
    "mean_iou": "Mean IoU",
    "accuracy_at_iou_0.5": "Accuracy at IoU 0.5",
    "fact_f1": "Factual F1",
    "fact_precision": "Factual precision",
    "fact_recall": "Factual recall",
    **{f"bleu_{order}": f"BLEU-{order}" for order in range(1, 5)},
    "rouge_l": "ROUGE-L (beta 1.2)",
    "rouge_l_f1": "ROUGE-L F1",
    "cider_d": "CIDEr-D, of 1,000 (COCO's CIDEr)",
    "cider": "CIDEr, of 1,000 (not clipped)",
    "meteor": "METEOR 1.5",
    "bertscore_f1": "BERTScore F1",
    "unsupported_sentences": "Unsupported sentences (less is better)",
    "radeval_radcliq_v1": "RadEval RadCliQ-v1, times 100 (less is better)",
}
MAIN_SLICES = ("overall", "answer_type", "question_type")


def markdown_report(results: Results) -> str:
    """Return the whole page; every number comes from `results` and is a percentage, differences are points.

    While a baseline or control is missing that no number can be read without, the page shows none of them.
    """
    of = ", ".join(results.sources) or "source not named"
    parts = [f"# Results: {results.task} ({of})", headline(results)]
    parts += [f"Warning: {warning}." for warning in results.warnings]
    if not results.missing:
        parts += _tables(results)
    parts.append("\n".join(_notes(results)))
    return "\n\n".join(parts) + "\n"


def _tables(results: Results) -> Iterable[str]:
    primary = [row for row in results.rows if row.metric == results.headline.metric] if results.task == "vqa" else []
    rest = [row for row in results.rows if row not in primary]
    if results.task == "vqa":
        yield _slice_table(results, [row for row in primary if row.slice in MAIN_SLICES])
    by_name: dict[str, list[Row]] = {}
    for row in (*primary, *rest):
        if row not in primary or row.slice not in MAIN_SLICES:
            by_name.setdefault(_table_name(row), []).append(row)
    for name, rows in by_name.items():
        if name:
            yield f"## {name}"
        if rows[0].slice == "laterality" and (lacking := results.lacks("laterality")):
            yield (
                "Not shown: sides say nothing without "
                + "; nor without ".join(
                    f"{one.name.replace('_', ' ')} ({one.purpose}): {one.command}" for one in lacking
                )
                + "."
            )
            continue
        yield _slice_table(results, rows)
    hidden = ("laterality",) if results.lacks("laterality") else ()
    compared = [row for row in results.rows if row.differences and row.slice not in hidden]
    if compared:
        yield "## Model minus baseline or control, points"
        yield _difference_table(compared)
    if results.calibration:
        yield "## Calibration of closed questions"
        yield _calibration(results.calibration)
    for protocol in results.historic:
        yield f"## Historic protocol `{protocol.name}`: not comparable with the tables above"
        yield _historic_table(protocol)
        yield "\n".join(f"- {quirk}." for quirk in protocol.quirks)


def _table_name(row: Row) -> str:
    if row.slice == "laterality":
        return "Laterality (closed POS questions answered by left or right)"
    if row.slice == "consistency":
        return "Consistency: the same asked in other words, or its opposite"
    if row.slice in ("overall", "answer_type"):
        return "Other metrics" if row.metric.startswith(("exact", "token")) else ""
    return f"By {row.slice.replace('_', ' ')}"


def headline(results: Results) -> str:
    """Return one paragraph: the primary metric with its intervals, beside every baseline and control.

    The number is not shown while one of them is missing that it cannot be read without.
    """
    row = results.headline
    title = METRIC_TITLES.get(row.metric, _title(row.metric))
    if results.missing:
        return f"**{title}: not shown.** It says nothing without " + "; nor without ".join(results.missing) + "."
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
    # Only the columns that tell the rows apart.
    label_of = {
        "Metric": lambda row: METRIC_TITLES.get(row.metric, _title(row.metric)),
        "Question type": lambda row: row.value or "all",
        "Answers": lambda row: row.answer_type or "all",
    }
    first = ["Question type", "Answers"] if rows[0].slice in (*MAIN_SLICES, "laterality") else ["Slice"]
    label_of["Slice"] = label_of["Question type"]
    if len({row.metric for row in rows}) > 1 or results.task != "vqa":
        first = ["Metric", *(["Answers"] if results.task == "vqa" else [])]
        first += ["Slice"] if any(row.value for row in rows) else []
    header = [*first, "n", "Model", "95 % interval", *map(_title, (*baselines, *controls)), "Unparsed"]
    lines = [
        [
            *(label_of[name](row) for name in first),
            f"{row.items:,}" + ("*" if row.is_small else ""),
            _percent(row.score),
            _interval(row.score.interval or row.score.cluster_interval),
            *(_percent(row.baselines.get(name)) for name in baselines),
            *(_percent(row.controls.get(name)) for name in controls),
            f"{row.score.unparsed:,}",
        ]
        for row in rows
    ]
    return markdown_table(header, lines, left=len(first))


def _difference_table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.differences))
    lines = [[_row_name(row), *(_difference(row.differences.get(name)) for name in names)] for row in rows]
    return markdown_table(["", *map(_title, names)], lines, left=1)


def _row_name(row: Row) -> str:
    title = METRIC_TITLES.get(row.metric, _title(row.metric))
    return ", ".join(part for part in (title, row.value, row.answer_type) if part)


def _calibration(calibration: Calibration) -> str:
    """Return one paragraph; these numbers are no percentages but for the shares of questions."""

    def number(score: Score) -> str:
        interval = score.cluster_interval
        return f"{score.value:.3f}" + (f" ({interval.low:.3f} to {interval.high:.3f})" if interval else "")

    text = (
        f"{calibration.items:,} questions with p(yes), temperature {calibration.temperature:.2f}: ECE "
        f"{number(calibration.ece)}, Brier score {number(calibration.brier)}, area under the risk-coverage curve "
        f"{calibration.aurc:.3f}; less is better."
    )
    if calibration.threshold is None or calibration.answered is None:
        return text
    right = UNDEFINED if calibration.answered_accuracy is None else f"{100 * calibration.answered_accuracy:.1f} %"
    return (
        f"{text} At or above the threshold {calibration.threshold:.3f} it answers {100 * calibration.answered:.1f} % "
        f"of them, {right} of these right."
    )


def _historic_table(protocol: HistoricProtocol) -> str:
    systems = list(dict.fromkeys(system for number in protocol.numbers for system in number.values))
    lines = [
        [
            number.name,
            f"{number.items:,}" + ("*" if number.items < SMALL_SLICE else ""),
            *(UNDEFINED if (value := number.values.get(name)) is None else f"{value:.2f}" for name in systems),
        ]
        for number in protocol.numbers
    ]
    return markdown_table(["Number", "n", *map(_title, systems)], lines, left=1)


def _notes(results: Results) -> Iterable[str]:
    counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in results.counts.items())
    yield f"- Counts: {counts}."
    for one in results.companions:
        state = "is there" if one.is_there else f"missing; {one.command}" if one.needed else "not given"
        of = f", needed for the {one.needed}" if one.needed else ""
        yield f"- {_title(one.name)} ({one.purpose}{of}): {state}."
    yield f"- Protocol {results.protocol}, {results.normalizer}. Unparsed replies count as wrong."
    if not results.missing:
        yield from _notes_on_numbers(results)
    marks = results.fingerprints
    if marks.data:
        of_prompts = f"`{marks.prompts[:16]}` ({marks.distinct_prompts:,} differ)" if marks.prompts else "none named"
        yield (
            f"- Fingerprints (SHA-256): items `{marks.data[:16]}`, answers `{marks.predictions[:16]}`, prompts "
            f"{of_prompts}."
        )
    for role, record in results.files.items():
        yield f"- {_title(role)}: `{record.name}`, {record.records:,} records, SHA-256 `{record.sha256[:16]}`."
    if results.models:
        yield f"- Model: {', '.join(results.models + results.adapters)}."
    yield f"- Scored {results.date[:10]} with " + ", ".join(f"{k} {v}" for k, v in results.packages.items()) + "."


def _notes_on_numbers(results: Results) -> Iterable[str]:
    resampling = results.resampling
    yield (
        f"- Intervals: 95 %; Wilson for shares of items; else, and for all differences (paired), a bootstrap with "
        f"{resampling.resamples:,} resamples, seed {resampling.seed}, cluster = {resampling.cluster}."
    )
    if results.task == "vqa":
        yield "- An item with several question types counts in each of them."
    if results.counts.get("derived_answer_types"):
        yield f"- {results.counts['derived_answer_types']:,} answer types were worked out from the answer."
    if any(row.is_small for row in results.rows):
        yield f"- \\* fewer than {SMALL_SLICE} items: read with care."
    for row in results.rows:
        if row.score.value is None:
            yield f"- {_row_name(row)}: {UNDEFINED}, {row.score.reason}."
        if row.signature:
            yield f"- {METRIC_TITLES.get(row.metric, _title(row.metric))} signature: `{row.signature}`."


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> str:
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

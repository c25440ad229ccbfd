# SPDX-License-Identifier: Apache-2.0
"""The tables of the agreement page, each from the records that hold its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .agreeing import FEW_ANSWERS, PanelResults
from .agreement import HUMAN_HUMAN, JUDGE_HUMAN, METRIC_HUMAN, METRIC_JUDGE, NOT_ON_SCALE, PRIMARY, Comparison
from .coefficients import Estimate
from .tables import markdown_table

UNDEFINED = "n/a"
KINDS = (HUMAN_HUMAN, JUDGE_HUMAN, METRIC_HUMAN, METRIC_JUDGE)
TITLES = {
    "raw_agreement": "Raw agreement",
    "kappa": "Kappa",
    "kappa_linear": "Kappa, linear",
    "kappa_quadratic": "Kappa, quadratic",
    "tau_b": "Tau-b",
    "spearman": "Spearman",
    "bias": "Bias, points",
}
AMONG_RATERS = {
    "alpha_nominal": "Krippendorff's alpha, nominal",
    "alpha_ordinal": "Krippendorff's alpha, ordinal",
    "alpha_interval": "Krippendorff's alpha, interval",
    "icc_single": "ICC(A,1), one rater",
    "icc_average": "ICC(A,k), the mean of all raters",
}


def overall_table(overall: Sequence[Comparison]) -> str:
    """Return one row a comparison over all answers: ceiling, judges, metrics; a column a measure."""
    lines = [
        [name_of(c), f"{c.answers:,}", *(shown(c.measures.get(name), signed=name == "bias") for name in TITLES)]
        for kind in KINDS
        for c in overall
        if c.kind == kind
    ]
    return markdown_table(["", "Answers", *TITLES.values()], lines, left=1)


def level_table(overall: Sequence[Comparison], top: int) -> str:
    """Return how often each party gave each score."""
    parties: dict[str, list[float]] = {}
    for comparison in overall:
        for name, shares in comparison.prevalence.items():
            parties.setdefault(name, shares)
    lines = [[name, *(f"{100 * share:.1f}" for share in shares)] for name, shares in parties.items()]
    header = ["Share of each score, %", *map(str, range(top + 1))]
    return markdown_table(header, lines, left=1) if lines else ""


def confusion_tables(overall: Sequence[Comparison], top: int) -> Iterable[str]:
    """Return the counts of each judge's scores against the raters'."""
    for comparison in overall:
        if comparison.kind == JUDGE_HUMAN and comparison.confusion:
            yield f"Scores of {comparison.first} (rows) against each rater's (columns), counts:"
            lines = [[str(level), *map("{:,}".format, row)] for level, row in enumerate(comparison.confusion)]
            yield markdown_table(["", *map(str, range(top + 1))], lines, left=1)


def rater_table(panel: PanelResults) -> str:
    """Return one row a rater."""
    lines = [
        [
            rater.rater,
            f"{rater.rated:,}",
            UNDEFINED if rater.mean is None else f"{rater.mean:.2f}",
            shown(rater.bias, signed=True),
            f"{rater.cannot_judge:,}",
            f"{rater.controls_right} of {rater.controls}",
        ]
        for rater in panel.raters
    ]
    header = ["Rater", "Rated", "Mean", "Bias against the others", "Cannot judge", "Controls right"]
    return markdown_table(header, lines, left=1)


def among_raters_table(overall: Sequence[Comparison]) -> str:
    """Return the coefficients of all raters together, or nothing with fewer than two."""
    ceiling = next((c for c in overall if c.kind == HUMAN_HUMAN), None)
    if ceiling is None:
        return ""
    lines = [[title, shown(ceiling.measures[name])] for name, title in AMONG_RATERS.items()]
    return markdown_table(["All raters together", "95 % interval"], lines, left=1)


def replacement_section(panel: PanelResults) -> Iterable[str]:
    """Return the alternative-annotator test of each judge."""
    if not panel.alternative_annotator:
        return
    yield "### Can a judge stand in for a rater? (alternative-annotator test)"
    lines = [
        [
            test.judge,
            UNDEFINED if test.winning_rate is None else f"{test.winning_rate:.2f}",
            UNDEFINED if test.mean_advantage is None else f"{test.mean_advantage:.2f}",
            test.reason or ("passes" if test.passes else "fails"),
            ", ".join(f"{name} {p:.2g}" for name, p in test.p_values.items()) or UNDEFINED,
        ]
        for test in panel.alternative_annotator
    ]
    epsilon = panel.alternative_annotator[0].epsilon
    yield markdown_table(
        ["Judge", "Winning rate", "Advantage", f"At epsilon {epsilon:g}", "Adjusted p"], lines, left=1
    )


def stability_section(panel: PanelResults) -> Iterable[str]:
    """Return test and retest, change under paraphrase, and drift, as far as there are any."""
    if panel.retests:
        yield "### Test and retest: the same answer scored again"
        lines = [
            [
                line.by,
                f"{line.answers:,}",
                shown(line.raw_agreement),
                shown(line.kappa_quadratic),
                shown(line.minus_raters, signed=True) if line.minus_raters else "-",
            ]
            for line in panel.retests
        ]
        header = ["", "Answers", "Raw agreement", "Kappa, quadratic", "Raw agreement minus the raters'"]
        yield markdown_table(header, lines, left=1)
    if panel.paraphrases:
        yield "### The same answer in other words: mean change, % of the scale"
        lines = [[line.by, line.kind, f"{line.answers:,}", shown(line.change, 100, 1)] for line in panel.paraphrases]
        yield markdown_table(["", "Kind", "Answers", "Change"], lines, left=2)
    if panel.drifts:
        yield "### Drift: later runs of a judge minus its first"
        lines = [
            [
                drift.judge,
                drift.run,
                f"{drift.answers:,}",
                shown(drift.mean_change, signed=True),
                shown(drift.kappa_quadratic),
                UNDEFINED if drift.share_changed is None else f"{100 * drift.share_changed:.1f}",
                UNDEFINED if drift.drifted is None else "drifted" if drift.drifted else "no drift shown",
            ]
            for drift in panel.drifts
        ]
        header = ["Judge", "Run", "Answers", "Change, points", "Kappa, quadratic", "Scores changed, %", ""]
        yield markdown_table(header, lines, left=2)


def slice_table(sliced: Sequence[Comparison], cell: Callable[[Comparison], str]) -> str:
    """Return one row a slice and one column a comparison, filled by `cell`."""
    columns = list(dict.fromkeys(name_of(c) for kind in KINDS for c in sliced if c.kind == kind))
    rows: dict[tuple[str, str], dict[str, Comparison]] = {}
    for comparison in sliced:
        rows.setdefault((comparison.slice, comparison.value), {})[name_of(comparison)] = comparison
    lines = []
    for (name, value), found in rows.items():
        answers = max(c.answers for c in found.values())
        shown = [cell(found[column]) if column in found else UNDEFINED for column in columns]
        lines.append([name.replace("_", " "), value, f"{answers:,}" + ("*" if answers < FEW_ANSWERS else ""), *shown])
    return markdown_table(["Slice", "", "Answers", *columns], lines, left=2)


def agreement_cell(comparison: Comparison) -> str:
    """Return the quadratic kappa, or tau-b where the metric is not on the scale."""
    kappa = comparison.measures[PRIMARY]
    return shown(comparison.measures["tau_b"] if kappa.reason == NOT_ON_SCALE else kappa, digits=2)


def bias_cell(comparison: Comparison) -> str:
    """Return the mean of first minus second."""
    return shown(comparison.measures["bias"], digits=2, signed=True)


def wasm_rows_table(panel: PanelResults) -> str:
    """Return WASM by system, slice and party."""
    lines = [
        [
            row.system,
            row.value or "all",
            row.by,
            f"{row.answers:,}" + ("*" if row.answers < FEW_ANSWERS else ""),
            f"{row.rated:,}",
            " ".join(map("{:,}".format, row.counts)),
            shown(row.wasm, digits=2),
            UNDEFINED if row.percent is None else f"{row.percent:.1f}",
            UNDEFINED if row.pooled is None else f"{row.pooled:.2f}",
            f"{row.lowest:.2f} to {row.highest:.2f}" if row.unrated and row.lowest is not None else "-",
        ]
        for row in panel.wasm
    ]
    counts = f"Counts of 0 to {panel.top}"
    header = [
        "System",
        "Slice",
        "By",
        "Answers",
        "Scores",
        counts,
        "WASM",
        "%",
        "Pooled",
        "If the unrated were 0 or top",
    ]
    return markdown_table(header, lines, left=3)


def prediction_powered_table(panel: PanelResults) -> str:
    """Return the prediction-powered estimates beside those of raters alone."""
    lines = [
        [
            line.system,
            line.judge,
            f"{line.rated:,} of {line.judged:,}",
            shown(line.estimate),
            shown(line.raters_alone),
        ]
        for line in panel.prediction_powered
    ]
    header = ["System", "Judge", "Rated of judged", "WASM, prediction-powered", "WASM, raters alone"]
    return markdown_table(header, lines, left=2) if lines else ""


def name_of(comparison: Comparison) -> str:
    """Return how a comparison is called in the tables."""
    if comparison.kind == HUMAN_HUMAN:
        return "raters among themselves"
    return f"{comparison.first} with {comparison.second}"


def shown(number: Estimate | None, scale: float = 1, digits: int = 3, *, signed: bool = False) -> str:
    """Return a number with its interval in brackets, where it has one."""
    if number is None or number.value is None:
        return UNDEFINED
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    value = form.format(scale * number.value)
    if number.low is None or number.high is None:
        return value
    return f"{value} [{form.format(scale * number.low)}, {form.format(scale * number.high)}]"

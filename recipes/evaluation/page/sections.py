# SPDX-License-Identifier: Apache-2.0
"""The tables of the page: which rows of the results stand together, and agreement as a map of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..agreeing import FEW_ANSWERS, AgreementResults, PanelResults
from ..agreement import HUMAN_HUMAN, JUDGE_HUMAN, METRIC_HUMAN, METRIC_JUDGE, NOT_ON_SCALE, PRIMARY, Comparison
from ..agreement_tables import findings as agreement_sentences
from ..coefficients import Estimate
from ..results import Results, Row, Score
from ..wasm import Wasm
from .wording import CODES, capitalised, title_of

MARKS = ("bar", "square", "triangle", "diamond", "cross")  # of what stands beside the model, told apart without colour
STRONGEST = 45  # % of colour in the agreement map: text on it stays readable, light and dark
KINDS = (HUMAN_HUMAN, JUDGE_HUMAN, METRIC_HUMAN, METRIC_JUDGE)


@dataclass
class RowTable:
    """Rows that stand together, and what their labels need to tell them apart."""

    title: str
    rows: list[Row]
    systems: dict[str, str]
    with_metric: bool
    note: str = ""

    def label(self, row: Row) -> str:
        """Return a row's name within its table."""
        kind = f"{row.answer_type} questions" if row.answer_type and not row.value else row.answer_type
        value = CODES.get(row.value, row.value) if row.slice == "question_type" else row.value
        parts = [title_of(row.metric) if self.with_metric else "", value.replace("_", " "), kind]
        return capitalised(", ".join(filter(None, parts)) or "all items")

    def code(self, row: Row) -> str:
        """Return the code of a question type, as files have it, "" where the label says it."""
        return row.value if row.slice == "question_type" and row.value in CODES else ""

    @property
    def reasons(self) -> list[str]:
        """Why a baseline or control is not defined in a row whose own number is."""
        others = [other for row in self.rows if row.score.value is not None for other in beside(row).values()]
        return list(dict.fromkeys(other.reason for other in others if other.value is None))


def row_tables(results: Results) -> list[RowTable]:
    """Return the results' rows as tables, in the order of a reader's questions."""
    primary = results.headline.metric
    tables: dict[str, list[Row]] = {}
    for row in results.rows:
        main = row.slice in ("overall", "answer_type")
        if main and row.metric == primary and results.task == "vqa":
            name = "Open and closed questions"
        elif main:
            name = "Other metrics" if results.task == "vqa" else "Metrics"
        elif row.slice == "laterality":
            name = "Left or right"
        elif row.slice == "consistency":
            name = "Consistency: the same asked in other words, or its opposite"
        else:
            name = f"By {row.slice.replace('_', ' ')}"
        tables.setdefault(name, []).append(row)
    if others := tables.pop("Other metrics", None):  # finer numbers of the same answers: last
        tables["Other metrics"] = others
    marks = system_marks(results)
    found = []
    for title, rows in tables.items():
        if rows[0].slice == "laterality" and (lacking := results.lacks("laterality")):
            needs = "; ".join(f"{title_of(one.name).lower()} ({one.purpose})" for one in lacking)
            found.append(RowTable(title, [], {}, False, f"Not shown: sides say nothing without {needs}."))
            continue
        several = len({row.metric for row in rows}) > 1 or title == "Other metrics"
        there = {name: mark for name, mark in marks.items() if any(name in (*r.baselines, *r.controls) for r in rows)}
        found.append(RowTable(title, rows, there, several, _note(title, rows)))
    return found


def system_marks(results: Results) -> dict[str, str]:
    """Return the mark of each baseline and control, in the order in which they stand beside the model."""
    names = dict.fromkeys(name for row in results.rows for name in (*row.baselines, *row.controls))
    return dict(zip(names, [*MARKS, *MARKS[-1:] * len(names)], strict=False))


def _note(title: str, rows: Sequence[Row]) -> str:
    methods = {(row.score.cluster_interval or row.score.interval) is row.score.interval for row in rows}
    text = {
        frozenset([True]): "Intervals: Wilson's, which take the items as independent.",
        frozenset([False]): "Intervals: over whole images.",
    }.get(frozenset(methods), "Intervals: over whole images where the row is part of the headline, else Wilson's.")
    if title == "Left or right":
        text += " Closed questions of position whose answer is left or right; an average hides a model that guesses."
    if title == "By question type":
        text += " A question of several types counts in each."
    return text


@dataclass(frozen=True)
class Cell:
    """One place of the agreement map: what is shown, how strong its colour is (0..45), and details, such as the
    interval. `few` says how many answers it has where they are few, else it is 0."""

    text: str
    strength: int = 0
    negative: bool = False
    hint: str = ""
    few: int = 0


@dataclass
class AgreementMap:
    """Agreement by slice (rows) and by who is compared (columns)."""

    columns: list[str]
    rows: list[tuple[str, int, list[Cell]]]


@dataclass
class AgreementView:
    """What the page says about one panel."""

    title: str
    sentences: list[str]
    map: AgreementMap
    by_raters: list[Wasm]


def agreement_views(agreements: Sequence[AgreementResults]) -> list[AgreementView]:
    """Return a view of each panel of each agreement file."""
    return [
        AgreementView(
            f"{panel.task}, scores 0 to {panel.top}",
            list(agreement_sentences(panel)),
            _map(panel),
            [row for row in panel.wasm if row.slice == "overall" and row.by == "raters" and row.rated],
        )
        for results in agreements
        for panel in results.panels
    ]


def _map(panel: PanelResults) -> AgreementMap:
    columns = list(dict.fromkeys(_who(c) for kind in KINDS for c in panel.comparisons if c.kind == kind))
    by_slice: dict[tuple[str, str], dict[str, Comparison]] = {}
    for comparison in panel.comparisons:
        by_slice.setdefault((comparison.slice, comparison.value), {})[_who(comparison)] = comparison
    rows = []
    for (name, value), found in by_slice.items():
        label = "All answers" if name == "overall" else f"{name.replace('_', ' ')}: {CODES.get(value, value)}"
        answers = max(comparison.answers for comparison in found.values())
        rows.append((label, answers, [_cell(found.get(column)) for column in columns]))
    return AgreementMap(columns, rows)


def _who(comparison: Comparison) -> str:
    if comparison.kind == HUMAN_HUMAN:
        return "rater, rater"
    first, second = (name.replace("_", " ") for name in (comparison.first, comparison.second))
    return f"{first}, {'rater' if second == 'raters' else second}"


def _cell(comparison: Comparison | None) -> Cell:
    if comparison is None:
        return Cell("–", hint="not compared")
    kappa = comparison.measures[PRIMARY]
    number: Estimate = comparison.measures["tau_b"] if kappa.reason == NOT_ON_SCALE else kappa
    few = comparison.answers if comparison.answers < FEW_ANSWERS else 0
    if number.value is None:
        return Cell("–", hint=f"not defined: {number.reason}", few=few)
    interval = "" if number.low is None else f"{number.low:.2f} to {number.high:.2f}, "
    return Cell(
        text=f"{number.value:.2f}" + ("" if number is kappa else " τ"),
        strength=round(STRONGEST / (2 if few else 1) * min(1.0, abs(number.value))),  # grey text needs paler ground
        negative=number.value < 0,
        hint=f"{interval}{comparison.answers:,} answers",
        few=few,
    )


def beside(row: Row) -> Mapping[str, Score]:
    """Return the scores of all that stands beside the model."""
    return {**row.baselines, **row.controls}

# SPDX-License-Identifier: Apache-2.0
"""Writes the report of a run: one HTML page that needs nothing else, the same as Markdown, and a typed JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path

import jinja2

from ...errors import ConfigError
from ..agreement_tables import agreement_page
from ..judges.running import as_markdown
from ..results import FileRecord, Row, write_text
from ..tables import markdown_report
from . import plots, wording
from .commands import Commands
from .finding import Finding
from .findings import find_all
from .inputs import ReportInputs, read_inputs
from .items import Items, choose_items
from .sections import agreement_views, beside, row_tables, system_marks

SCHEMA = "pefomed-report/1"


@dataclass
class Report:
    """What the report's JSON holds: its own findings, items and sources; all numbers are in the files of `files`.

    `headline` is the headline's row, null while a baseline or control is missing without which it says nothing.
    """

    task: str
    sources: list[str]
    models: list[str]
    adapters: list[str]
    headline: Row | None
    findings: list[Finding]
    items: Items
    scored: dict[str, FileRecord]
    files: list[FileRecord]
    commands: list[str] = field(default_factory=list)
    packages: dict[str, str] = field(default_factory=dict)
    date: str = ""
    schema: str = SCHEMA


def write_report(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    samples: str | os.PathLike[str] | None = None,
    show_text: bool = False,
) -> Report:
    """Write the report of a run to `out`, ending in `.html`; the same goes beside it as `.md` and `.json`.

    Nothing in it depends on when or where it is made: equal input gives equal bytes.

    Args:
        paths: as of [`read_inputs`].
        samples: the scored samples, JSON lines; their images become thumbnails, unless they are credentialed.
        show_text: show questions, references and answers, unless they are credentialed.

    Raises:
        ConfigError: `out` does not end in `.html`.
        PeFoMedError: a file is missing or malformed; nothing is written then.
    """
    out = Path(out)
    if out.suffix != ".html":
        raise ConfigError(f"out: found {out}, expected a file name that ends in .html")
    inputs = read_inputs(paths)
    items = choose_items(inputs, samples=samples, show_text=show_text)
    report = _report(inputs, items)
    html = render_html(inputs, report, show_text=show_text, with_images=samples is not None)
    write_text(out.with_suffix(".md"), render_markdown(inputs, report))
    write_text(out.with_suffix(".json"), json.dumps(_stored(report), indent=2, ensure_ascii=False) + "\n")
    write_text(out, html)
    return report


def _report(inputs: ReportInputs, items: Items) -> Report:
    results = inputs.results
    return Report(
        task=results.task,
        sources=results.sources,
        models=results.models,
        adapters=results.adapters,
        headline=None if results.missing else results.headline,
        findings=find_all(inputs),
        items=items,
        scored=results.files,
        files=inputs.files,
        commands=Commands(inputs).all(),
        packages=results.packages,
        date=results.date,
    )


def _stored(report: Report) -> dict[str, object]:
    stored = {"schema": report.schema} | asdict(report)
    for item in (*stored["items"]["worst"], *stored["items"]["disputed"]):
        del item["image"]  # its place is the page
    return stored


def render_html(inputs: ReportInputs, report: Report, *, show_text: bool, with_images: bool) -> str:
    """Return the page."""
    calibration, shown = inputs.results.calibration, not inputs.results.missing
    charts = {}
    if calibration and shown:
        charts = {"reliability": plots.reliability(calibration), "risk": plots.risk_coverage(calibration)}
    return _environment().get_template("page.html.jinja").render(
        inputs=inputs,
        results=inputs.results,
        title=wording.TASK_TITLES[inputs.results.task],
        report=report,
        shown=shown,
        tables=row_tables(inputs.results) if shown else [],
        marks=system_marks(inputs.results),
        agreements=agreement_views(inputs.agreements),
        charts=charts,
        drifts=[
            plots.control_chart(judge.drift, judge.judgement.top) if len(judge.drift.runs) > 1 else ""
            for judge in inputs.judges
        ],
        show_text=show_text,
        with_images=with_images,
        style=_file("page.css"),
    )  # fmt: skip


def render_markdown(inputs: ReportInputs, report: Report) -> str:
    """Return the findings, then the tables of the results, of judges and of agreement."""
    found = [f for f in report.findings if f.level in ("problem", "caution")]
    parts = ["# Report", "## Findings"]
    lines = [
        f"- **{f.level}: {f.title}.** {f.evidence}" + (f" Next: `{f.command}`" if f.command else "") for f in found
    ]
    parts.append("\n".join(lines) or "No known signature of failure was found.")
    for title, level in (("Not checked", "unchecked"), ("Checked and clear", "clear")):
        chosen = [f"- {f.title.rstrip('?')}: {f.evidence}" for f in report.findings if f.level == level]
        parts += [f"### {title}", "\n".join(chosen)] if chosen else []
    pages = [markdown_report(inputs.results)]
    if not inputs.results.missing:  # what judges and raters gave is a score as well
        pages += [*map(as_markdown, inputs.judges), *map(agreement_page, inputs.agreements)]
    parts += [re.sub("^#", "##", page, flags=re.M).strip() for page in pages]
    for title, items in (("Worst answers", report.items.worst), ("Most disputed answers", report.items.disputed)):
        if items:
            parts += [f"## {title}", "\n".join(f"- `{item.id}`: {'; '.join(item.why)}" for item in items)]
    parts += ["## How to get this again", "```\n" + "\n".join(report.commands) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_file),
    )
    for function in (
        wording.percent,
        wording.interval_text,
        wording.points,
        wording.points_interval,
        wording.quoted_interval,
        wording.title_of,
        wording.capitalised,
        beside,
    ):
        environment.filters[function.__name__] = function
    environment.filters["not_above"] = "not_above_{}".format
    return environment


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")

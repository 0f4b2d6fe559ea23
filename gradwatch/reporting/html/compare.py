"""The comparison of two runs: one HTML file with both side by side on one colour scale, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradwatch.records import Diagnosis, Snapshot
from gradwatch.reporting.comparison import COLUMNS, Comparison, in_words, settings_apart
from gradwatch.reporting.html.page import render, write_page
from gradwatch.reporting.html.series import charts_of
from gradwatch.reporting.html.verdict import verdict_of
from gradwatch.reporting.reading import Record
from gradwatch.reporting.short_names import short_names

_NAME_WIDTH = 32  # characters of a layer's name; two charts share the width of the page
_SECTIONS = {"apart": "Apart", "flow": "Flow", "updates": "Updates", "course": "Loss", "settings": "Settings"}
Side = tuple[Record, Sequence[Diagnosis], str]  # a run, its causes and its name


def write_comparison(path: str | Path, compared: Comparison, first: Side, second: Side) -> str | Path:
    """Write the comparison of two runs, and return where it is.

    Raises:
        OSError: when the file cannot be written.
    """
    return write_page(path, comparison_html(compared, first, second))


def comparison_html(compared: Comparison, first: Side, second: Side) -> str:
    """Return the comparison of two runs as a page of HTML."""
    sides = {"A": first, "B": second}
    short = {name: _short(record) for name, (record, _, _) in sides.items()}
    verdicts = {
        name: verdict_of(record.snapshots, record.findings, diagnoses, short[name])
        for name, (record, diagnoses, _) in sides.items()
    }
    return render(
        "compare.html.jinja",
        ("charts.js", "compare.js"),
        {name: _charts(record, short[name], compared) for name, (record, _, _) in sides.items()},
        title=f"{first[2]} and {second[2]}",
        sections=list(_SECTIONS.items()),
        compared=compared,
        titles={name: title for name, (_, _, title) in sides.items()},
        verdicts=verdicts,
        short={**short["B"], **short["A"]},
        columns=COLUMNS,
        settings=settings_apart(first[0].settings, second[0].settings),
        in_words=in_words,
    )


def _short(record: Record) -> dict[str, str]:
    layers = record.snapshots[-1].layers if record.snapshots else ()
    return dict(zip(layers, short_names(layers, _NAME_WIDTH), strict=True))


def _charts(record: Record, short: dict[str, str], compared: Comparison) -> dict[str, Any]:
    """Return the numbers of a run's charts; the place where the runs part is marked like a finding."""
    history = record.snapshots or [Snapshot(0, ())]
    charts = charts_of(history, record.findings, short)
    if compared.parts:
        layers = charts["layers"]
        rows = [layers.index(compared.parts.layer)] if compared.parts.layer in layers else []
        charts["parts"] = {
            "step": compared.parts.step,
            "until": None,
            "rows": rows,
            "label": "the runs part",
            "kind": "",
        }
    return charts

"""The report of a run: one HTML file with its verdict, causes, network, charts, layers and settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradwatch.paths import unused_in_words
from gradwatch.records import Diagnosis, Snapshot
from gradwatch.reporting.html.network import Node, marks_of, table_of, tree_of
from gradwatch.reporting.html.page import render, write_page
from gradwatch.reporting.html.series import charts_of
from gradwatch.reporting.html.verdict import cases_of, verdict_of
from gradwatch.reporting.reading import Record
from gradwatch.reporting.short_names import short_names
from gradwatch.reporting.text import clip_text, listed, number, plural

_NAME_WIDTH = 48  # characters of a layer's name
_MOST_OPEN = 40  # rows of the tree that are open at first
_SECTIONS = {
    "findings": "Findings", "flow": "Flow", "network": "Network", "updates": "Updates", "course": "Loss",
    "layers": "Layers", "settings": "Settings",
}  # fmt: skip


def write_report(path: str | Path, record: Record, diagnoses: Sequence[Diagnosis] = (), title: str = "") -> str | Path:
    """Write the report of a run, and return where it is.

    Args:
        path: the file to write, on this machine or a URL that fsspec knows.
        record: of the run.
        diagnoses: its causes.
        title: name of the run.

    Raises:
        OSError: when the file cannot be written.
    """
    return write_page(path, report_html(record, diagnoses, title))


def report_html(record: Record, diagnoses: Sequence[Diagnosis] = (), title: str = "") -> str:
    """Return the report of a run as a page of HTML."""
    history, findings = record.snapshots, record.findings
    latest = history[-1] if history else Snapshot(0, ())
    short = dict(zip(latest.layers, short_names(latest.layers, _NAME_WIDTH), strict=True))
    marks, cases = marks_of(latest, findings), cases_of(findings, diagnoses)
    nodes = tree_of(latest, marks, record.modules)
    open_tree(nodes)
    absent = {"findings"} if not cases else set()
    absent |= set() if history else {"flow", "network", "updates", "course", "layers"}
    return render(
        "report.html.jinja",
        ("page.js", "charts.js", "report.js"),
        charts_of(history, findings, short) if history else {},
        title=title or "a run",
        sections=[(anchor, text) for anchor, text in _SECTIONS.items() if anchor not in absent],
        verdict=verdict_of(history, findings, diagnoses, short),
        cases=cases,
        has_steps=bool(history),
        step=latest.step,
        short=short,
        nodes=nodes,
        share=_share_of(nodes),
        clip=clip_text(history),
        table=table_of(latest, marks),
        notes=notes_of(record),
        settings=settings_of(record),
    )


def open_tree(nodes: Sequence[Node]) -> None:
    """Open the modules of a tree from the top, the sick ones first, as long as there is room.

    Repeated blocks stay folded, except where some of them are sick and others are not.
    """
    room, waiting = _MOST_OPEN - len(nodes), list(nodes)
    while waiting:
        waiting.sort(key=lambda node: not node.marks)
        node = waiting.pop(0)
        are_alike = node.copies > 1 and len({bool(child.marks) for child in node.children}) == 1
        node.is_open = bool(node.children) and len(node.children) <= room and not are_alike
        if node.is_open:
            room -= len(node.children)
            waiting += node.children


def _share_of(nodes: Sequence[Node]) -> Any:
    """Return the filter that places a gradient norm between the network's smallest and largest, in percent."""
    known = [value for node in nodes for value in (node.grads.lowest, node.grads.highest) if 0 < value < math.inf]
    low, high = (math.log10(min(known)), math.log10(max(known))) if known else (0.0, 0.0)
    low -= 0.5 + max(4 - (high - low), 0)  # the smallest is still seen, and a healthy network looks even

    def share(value: float) -> int:
        if not value > 0:
            return 0
        return 100 if math.isinf(value) else round(100 * (math.log10(value) - low) / (high - low))

    return share


def settings_of(record: Record) -> dict[str, str]:
    """Return what is known of a run's settings, by name: what the record says, then what the last Snapshot does."""
    settings = dict(record.settings)
    if not record.snapshots:
        return settings
    first, latest = record.snapshots[0], record.snapshots[-1]
    settings["measured"] = f"{plural(len(record.snapshots), 'step')}, from {first.step} to {latest.step}"
    settings["layers watched"] = str(len(latest.layers))
    groups = zip(latest.groups, latest.group_learning_rate.tolist(), latest.group_weight_decay.tolist(), strict=True)
    for group, rate, decay in groups:
        known = {"rate": rate, "weight decay": decay}
        settings[f"group {group}"] = ", ".join(f"{name} {number(v)}" for name, v in known.items() if v == v)
    if latest.optimizer and not latest.groups:
        settings["optimizer"] = f"{latest.optimizer}, rate {number(latest.learning_rate)}"
    if latest.clip_max_norm == latest.clip_max_norm:
        settings["clip by norm"] = number(latest.clip_max_norm)
    if latest.dtype:
        settings["half precision"] = latest.dtype
    if latest.loss_scale == latest.loss_scale:
        settings["loss scale"] = number(latest.loss_scale)
    return settings


def notes_of(record: Record) -> list[str]:
    """Return what the reader of the report should know about its gaps."""
    latest = record.snapshots[-1] if record.snapshots else None
    notes = [str(failure) for failure in record.out_of_service]
    notes += [f"{plural(record.lost, 'line')} of the record could not be written."] if record.lost else []
    thinned = f"The record grew large: at its end it holds one in {record.thinned} measured steps."
    notes += [thinned] if record.thinned > 1 else []
    notes += [f"{plural(record.damaged, 'line')} of the record cannot be read."] if record.damaged else []
    notes += [unused_in_words(record.snapshots)]
    if latest is None:
        return [*filter(None, notes), "No step was measured, so there is nothing to draw."]
    if latest.left_out:
        notes.append(f"In no optimizer, though they have a gradient: {listed(latest.left_out)}.")
    return [note for note in notes if note]

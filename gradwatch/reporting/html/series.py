"""The numbers of the report's charts, rounded and in few bytes: layers by steps, and values over the steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gradwatch.records import Array, Finding, Snapshot
from gradwatch.reporting.html.network import layer_of
from gradwatch.reporting.pictures import every_so_many, layers_by_steps
from gradwatch.reporting.short_names import short_names
from gradwatch.reporting.text import plural

MOST_STEPS = 500  # columns of a heat map; more are not told apart on a screen
_ON_A_PHONE = 16  # characters of a layer's name
_MOST_POINTS = 2000  # of a line, of which each screen shows fewer
_PER_DECADE = 1000  # a value is a whole number of thousandths of a decade, which keeps three digits of it
_ZERO, _NOT_FINITE = -999_999, 999_999
_MAPS = ("grad_norm", "grad_output_norm", "update_to_weight")


def charts_of(
    history: Sequence[Snapshot], findings: Sequence[Finding], short: Mapping[str, str], columns: Sequence[str] = _MAPS
) -> dict[str, Any]:
    """Return all that the page's script draws, as plain values for JSON."""
    shown = [history[i] for i in every_so_many(len(history), MOST_STEPS)]
    layers = list(history[-1].layers)
    marks = [finding_of(finding, history[-1]) for finding in findings]
    sick = {row for mark in marks for row in mark["rows"]}
    maps = {column: table for column in columns if (table := heat_map_of(shown, column, sick))["rows"]}
    return {
        "steps": [int(snapshot.step) for snapshot in shown],
        "layers": layers,
        "short": [short[layer] for layer in layers],
        "shortest": short_names(layers, _ON_A_PHONE),
        "maps": maps,
        "loss": losses_of(history),
        "norm": norms_of(history),
        "findings": marks,
    }


def heat_map_of(history: Sequence[Snapshot], column: str, sick: Collection[int] = ()) -> dict[str, Any]:
    """Return the rows of the layers that have any value in a column, in thousandths of a decade.

    Args:
        history: the Snapshots.
        column: name of the column.
        sick: places of layers that keep a row without a value: where no gradient comes, this is what is seen of it.

    Example:
        >>> heat_map_of([Snapshot(0, ("a", "b"), grad_norm=[0.1, float("nan")])], "grad_norm")
        {'rows': [0], 'values': [[-1000]]}
    """
    names, values = layers_by_steps(history, column)
    places = {layer: place for place, layer in enumerate(history[-1].layers)}
    if np.isnan(values).all():
        return {"rows": [], "values": []}
    known = {places[name]: _decades(row) for name, row in zip(names, values, strict=True)}
    rows = sorted({*known, *sick})
    return {"rows": rows, "values": [known.get(row, [None] * len(history)) for row in rows]}


def _decades(values: Array) -> list[int | None]:
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.round(np.log10(np.abs(values)) * _PER_DECADE)
    scaled[values == 0], scaled[np.isinf(values)] = _ZERO, _NOT_FINITE
    return [None if value != value else int(value) for value in scaled.tolist()]


def losses_of(history: Sequence[Snapshot]) -> dict[str, Any]:
    """Return the loss of every step that is known; of more than 2,000 the lowest and highest of each stretch."""
    traced = {int(step): loss for s in history for step, loss in zip(s.trace_step, s.trace_loss.tolist(), strict=True)}
    known = traced | {int(s.step): s.loss for s in history if s.loss == s.loss}
    steps = np.array(sorted(known), np.int64)
    return _thinned({"step": steps, "loss": np.array([known[step] for step in steps.tolist()], np.float64)})


def norms_of(history: Sequence[Snapshot]) -> dict[str, Any]:
    """Return the total norm of the gradients before and after the clip; without the latter where it changed nothing."""
    traced = {
        int(step): norm
        for s in history
        for step, norm in zip(s.trace_step, s.trace_total_norm.tolist(), strict=True)
        if norm == norm
    }
    after = {int(s.step): s.total_norm_after for s in history}
    before = traced | {int(s.step): s.total_norm for s in history if s.total_norm == s.total_norm}
    steps = sorted(before)
    values = {"before": [before[step] for step in steps], "after": [after.get(step, np.nan) for step in steps]}
    table = {name: np.array(column, np.float64) for name, column in values.items()}
    table |= {"clipped": np.where(table["after"] < table["before"] * (1 - 1e-4), 1.0, 0.0)}
    thin = _thinned({"step": np.array(steps, np.int64), **table})
    is_clipped = any(thin.pop("clipped"))
    return thin if is_clipped else {**thin, "after": []}


def _thinned(table: dict[str, Any]) -> dict[str, Any]:
    """Return the columns as rounded lists; of many rows those of the lowest and highest first value of a stretch."""
    steps, first = list(table.values())[:2]
    kept = np.arange(len(steps))
    if len(steps) > _MOST_POINTS:
        ordered = np.nan_to_num(first, nan=-np.inf)
        stretches = np.array_split(kept, _MOST_POINTS // 2)
        ends = {int(part[pick(ordered[part])]) for part in stretches for pick in (np.argmin, np.argmax)}
        kept = np.array(sorted(ends | {0, len(steps) - 1}))
    return {name: [_rounded(value) for value in column[kept].tolist()] for name, column in table.items()}


def _rounded(value: float) -> float | int | str | None:
    """Return a number with four digits; None for NaN, and a text for Inf, which JSON does not have."""
    if isinstance(value, int):
        return value
    if value != value:
        return None
    return "inf" if np.isinf(value) else float(f"{value:.4g}")


def finding_of(finding: Finding, latest: Snapshot) -> dict[str, Any]:
    """Return what is drawn of a finding: its steps, the rows of its layers, and a label."""
    layers = [layer_of(latest, name) for name in finding.layers]
    rows = sorted({latest.layers.index(layer) for layer in layers if layer is not None})
    what = f"{finding.kind} since step {finding.step}" + ("" if finding.is_open else f", gone at {finding.closed_step}")
    label = f"{what}: {plural(len(rows), 'layer') if rows else ', '.join(finding.layers)}"
    return {"step": int(finding.step), "until": finding.closed_step, "rows": rows, "label": label, "kind": finding.kind}

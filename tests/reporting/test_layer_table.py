"""The terminal's table of layers: rows, columns and notes in the room there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from shown_runs import FINDING, INF, NAN, printed, vanishing_run

from gradwatch.records import Snapshot
from gradwatch.reporting.layer_table import MOST_ROWS, LayerTable, layer_table


def heads(snapshot: Snapshot, width: int = 120) -> list[str]:
    return [str(column.header).replace("\n", " ") for column in layer_table(snapshot, [FINDING], width=width).columns]


def deep(count: int = 129) -> Snapshot:
    names = tuple(f"model.encoder.layers.{i}.attention.out_projection" for i in range(count))
    return Snapshot(0, names, ("Linear",) * count, grad_norm=np.ones(count), grad_output_norm=np.ones(count))


def test_rows_hold_names_numbers_and_findings() -> None:
    lines = printed(layer_table(vanishing_run()[0], [FINDING], title="sick"))
    assert lines[0] == "sick"
    row = next(line for line in lines if line.startswith("net.3 "))
    assert row.split() == ["net.3", "Linear", "2.4e-4", "6.50", "3.8e-7", "2.4e-5", "0.500", "#" * 6, "vanishing"]
    assert not any(line.endswith("vanishing") for line in lines if line.startswith("net.5 "))


def test_columns_without_any_value_are_left_out() -> None:
    expected = ["layer", "kind", "grad norm", "weight norm", "update/ weight", "output grad", "gain", "flat %", "flow"]
    assert heads(vanishing_run()[0]) == [*expected, "finding"]
    assert heads(Snapshot(0, ("a",), grad_norm=[1.0])) == ["layer", "grad norm"]
    more = Snapshot(0, ("a",), zero_fraction=[0.5], nonfinite=[3.0], dead_fraction=[0.0])
    assert heads(more) == ["layer", "zero %", "dead %", "NaN, Inf"]


@pytest.mark.parametrize("width", [40, 58, 80, 100, 120, 160])
@pytest.mark.parametrize("snapshot", [vanishing_run()[0], deep(30), deep()])
def test_nothing_is_cut_off_at_any_width(snapshot: Snapshot, width: int) -> None:
    lines = printed(layer_table(snapshot, [FINDING], width=width), width)
    assert not any("…" in line for line in lines)
    assert max(map(cell_len, lines)) <= width
    assert heads(snapshot, width)[0] == "layer"


def test_the_finding_the_kind_and_the_flow_outlast_lesser_columns() -> None:
    wide, narrow = heads(vanishing_run()[0], 120), heads(vanishing_run()[0], 50)
    assert {"weight norm", "gain"} <= set(wide) - set(narrow)
    assert {"kind", "output grad", "flow", "finding"} <= set(narrow)
    note = "no room for: weight norm, update/weight, gain, flat %"
    assert " ".join(printed(LayerTable(vanishing_run()[0], [FINDING]), 50)).endswith(note)


def test_repeated_blocks_are_a_row_and_what_is_sick_has_rows_of_its_own() -> None:
    snapshot = deep()
    finding = replace(FINDING, layers=(snapshot.layers[60], snapshot.layers[70]))
    rows = [line.split() for line in printed(LayerTable(snapshot, [finding]))[3:]]
    flow = "\N{BLACK SQUARE}" * 10
    assert rows[:7] == [
        ["0.attention.out_projection", "Linear", "1.00", "1.00", flow],
        ["1-127.attention.out_projection", "Linear", "x125", "1.00", "1.00", flow],
        ["lowest"],
        ["highest"],
        ["60.attention.out_projection", "Linear", "1.00", "1.00", flow, "vanishing"],
        ["70.attention.out_projection", "Linear", "1.00", "1.00", flow, "vanishing"],
        ["128.attention.out_projection", "Linear", "1.00", "1.00", flow],
    ]
    assert "all names begin with model.encoder.layers." in map(" ".join, rows)


@pytest.mark.parametrize("every", [1, 2])
def test_deep_networks_that_are_sick_throughout_share_a_row(every: int) -> None:
    snapshot = deep()
    lines = printed(layer_table(snapshot, [replace(FINDING, layers=snapshot.layers[::every])]))
    assert len(lines) < 15
    assert f"Linear x{127 if every == 1 else 63}" in " ".join(lines)


def large_network(kind: str) -> Snapshot:
    """300 layers: in blocks, in a row of two kinds, or without any order in their names."""
    if kind == "blocks":
        ends = ("norm", "fc1", "act", "fc2")
        names = ["net.stem", *(f"net.body.{i}.{end}" for i in range(75) for end in ends), "net.head"]
    elif kind == "sequential":
        names = [f"net.{i}" for i in range(300)]
    else:
        names = [f"net.{a}{b}.weights_of_{b}{a}" for a in "abcdefghijklmnop" for b in "abcdefghijklmnopqrs"][:300]
    norms = np.geomspace(1e-3, 1, len(names))
    return Snapshot(0, tuple(names), ("Linear", "ReLU") * (len(names) // 2), grad_norm=norms, grad_output_norm=norms)


@pytest.mark.parametrize("sick", [slice(0), slice(None), slice(40, 60), slice(0, None, 3)])
@pytest.mark.parametrize("kind", ["blocks", "sequential", "chaos"])
def test_three_hundred_layers_fit_on_a_screen_and_each_row_has_its_name(kind: str, sick: slice) -> None:
    snapshot = large_network(kind)
    for width in (60, 80, 140, 220):
        lines = printed(LayerTable(snapshot, [replace(FINDING, layers=snapshot.layers[sick])], "title"), width)
        names = [line.split()[0] for line in lines if "Linear" in line or "ReLU" in line]
        assert len(lines) < 60
        assert len(set(names)) == len(names) > 3
        assert max(map(cell_len, lines)) <= width


def test_a_network_that_repeats_nothing_is_thinned() -> None:
    snapshot = large_network("chaos")
    shown = printed(layer_table(snapshot, [replace(FINDING, layers=snapshot.layers[100:102])]))
    assert [line for line in shown if line.startswith("...")] == ["... 95 more", "... 193 more"]
    assert len([line for line in shown if "weights_of" in line]) == 12 <= MOST_ROWS


@settings(max_examples=30)
@given(st.lists(st.sampled_from([1.0, 1e-9, INF, NAN, 0.0]), min_size=60, max_size=60))
def test_folded_values_that_are_not_finite_are_shown(norms: list[float]) -> None:
    names = tuple(f"layers.{i}" for i in range(60))
    lines = printed(LayerTable(Snapshot(0, names, grad_norm=norms, grad_output_norm=norms)))
    assert any("NaN/Inf" in line for line in lines) == (INF in norms)
    assert not any("inf" in line for line in lines)


def test_the_flow_loses_one_mark_a_decade() -> None:
    snapshot = Snapshot(0, tuple("abcdef"), grad_output_norm=[1, 1e-3, 1e-15, 0, INF, NAN])
    rows = [line.split() for line in printed(layer_table(snapshot))[-6:]]
    assert [row[2:] for row in rows] == [["#" * 10], ["#" * 7], ["."], [], ["NaN/Inf"], []]


@pytest.mark.parametrize(("width", "is_shown"), [(120, True), (40, False)])
def test_the_usual_update_is_told_where_its_column_is(width: int, is_shown: bool) -> None:
    run = vanishing_run()
    assert ("update/ weight" in heads(run[0], width)) == is_shown
    assert any("1e-3 is usual" in line for line in printed(LayerTable(run[0], [FINDING]), width)) == is_shown


def test_a_step_without_updates_has_no_such_column() -> None:
    assert "update/ weight" not in heads(replace(vanishing_run()[0], update_norm=None, update_to_weight=None))

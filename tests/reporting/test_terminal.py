from __future__ import annotations

import io
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from shown_runs import DIAGNOSIS, FINDING, INF, NAN, vanishing_run

from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.terminal import MOST_ROWS, SideBySide, Summary, layer_table, print_summary


def printed(thing: Any, width: int = 120, **options: Any) -> list[str]:
    console = Console(width=width, file=io.StringIO(), **options)
    console.print(thing)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


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


def test_the_finding_and_the_flow_outlast_lesser_columns() -> None:
    wide, narrow = heads(vanishing_run()[0], 120), heads(vanishing_run()[0], 50)
    assert {"weight norm", "kind"} <= set(wide) - set(narrow)
    assert {"output grad", "flow", "finding"} <= set(narrow)


def test_deep_networks_are_thinned_around_what_is_flagged() -> None:
    snapshot = deep()
    finding = replace(FINDING, layers=(snapshot.layers[60], snapshot.layers[70]))
    lines = printed(layer_table(snapshot, [finding]))
    shown = [line for line in lines if "out_projection" in line]
    assert len(shown) == 12
    assert [line for line in lines if line.startswith("...")] == ["... 55 more", "... 9 more", "... 53 more"]
    assert [line for line in lines if line.endswith("vanishing")] == [shown[5], shown[6]]


@pytest.mark.parametrize("every", [1, 2])
def test_deep_networks_that_are_sick_throughout_are_thinned_too(every: int) -> None:
    snapshot = deep()
    lines = printed(layer_table(snapshot, [replace(FINDING, layers=snapshot.layers[::every])]))
    assert 20 < len([line for line in lines if "out_projection" in line]) <= MOST_ROWS


def test_the_flow_loses_one_mark_a_decade() -> None:
    snapshot = Snapshot(0, tuple("abcdef"), grad_output_norm=[1, 1e-3, 1e-15, 0, INF, NAN])
    rows = [line.split() for line in printed(layer_table(snapshot))[-6:]]
    assert [row[2:] for row in rows] == [["#" * 10], ["#" * 7], ["."], [], ["NaN/Inf"], []]


def test_a_summary_says_what_is_wrong_why_and_what_to_try() -> None:
    lines = printed(Summary(vanishing_run()[0], [FINDING], [DIAGNOSIS]))
    whole = "\n".join(lines)
    assert lines[0] == "gradwatch: gradients at step 0"
    assert "vanishing since step 0, open: net.1, net.3" in lines
    assert f"  {FINDING.message}" in lines
    assert "Cause: saturating activation. Each Sigmoid takes 0.25." in whole
    assert "Try first: ReLU with He; then skips." in whole
    assert "step 0, loss 2.30, total gradient norm 1.00, after clipping 0.500" in lines


def test_open_findings_stand_before_closed_ones_and_many_are_counted() -> None:
    closed = [replace(FINDING, kind=f"old{i}", closed_step=4) for i in range(9)]
    lines = printed(Summary(vanishing_run()[0], [*closed, FINDING]))
    titles = [line for line in lines if " since step " in line]
    assert titles[0].startswith("vanishing")
    assert titles[1] == "old0 since step 0, gone at step 4: net.1, net.3"
    assert "... and 2 more findings" in lines


def test_a_healthy_run_says_so() -> None:
    assert printed(Summary(vanishing_run()[0]))[-1] == "No finding."


def test_a_nan_loss_is_not_called_infinite() -> None:
    assert "step 0, loss NaN or Inf" in printed(Summary(Snapshot(0, ("a",), loss=INF)))


@pytest.mark.parametrize(("width", "is_shown"), [(120, True), (40, False)])
def test_the_usual_update_is_told_where_its_column_is(width: int, is_shown: bool) -> None:
    run = vanishing_run()
    assert ("update/ weight" in heads(run[0], width)) == is_shown
    assert any("1e-3 is usual" in line for line in printed(Summary(run[0], [FINDING]), width)) == is_shown


def test_a_step_without_updates_has_no_such_column() -> None:
    assert "update/ weight" not in heads(replace(vanishing_run()[0], update_norm=None, update_to_weight=None))


def test_markup_in_names_and_messages_is_printed_as_it_is() -> None:
    snapshot = Snapshot(0, ("[red]a", "b"), grad_norm=[1.0, 1.0])
    finding = Finding("odd", ("[red]a",), 0, 1, 1, "see [link=x]y[/link]")
    whole = "\n".join(printed(Summary(snapshot, [finding])))
    assert "[red]a" in whole
    assert "see [link=x]y[/link]" in whole


@pytest.mark.parametrize(("width", "beside"), [(119, False), (120, True), (160, True)])
def test_two_runs_stand_beside_each_other_where_there_is_room(width: int, beside: bool) -> None:
    sick, well, _ = vanishing_run()
    lines = printed(SideBySide(Summary(sick, [FINDING], title="left"), Summary(well, title="right")), width)
    assert (lines[0].split() == ["left", "right"]) == beside
    assert not any("…" in line for line in lines)
    assert max(map(cell_len, lines)) <= width


def test_a_log_gets_plain_wide_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    print_summary(vanishing_run()[0], [FINDING], [DIAGNOSIS], title="sick")
    stream.seek(0)
    text = stream.read()
    assert "\x1b" not in text
    assert "#" * 10 in text
    assert "weight" in text


def test_a_cause_without_a_finding_is_told() -> None:
    diagnosis = Diagnosis("clipping too hard", "Clipping leaves 0.001.", 0.9, (), ("clip less", "no clip"))
    text = "\n".join(printed(Summary(Snapshot(0, ("a",), grad_norm=[1.0]), diagnoses=[diagnosis])))
    assert "clipping too hard, no finding yet" in text
    assert "Try first: clip less; then no clip." in text
    assert "No finding." not in text


@pytest.mark.parametrize("width", [80, 140])
def test_what_a_clip_did_over_the_run_is_a_line_of_its_own(width: int) -> None:
    run = [Snapshot(i, ("a",), grad_norm=[1.0], total_norm=4.0, total_norm_after=1.0) for i in range(70)]
    line = "clipped in 100 % of 70 measured steps, median coefficient 0.250"
    assert line in printed(Summary(run[-1], history=run), width)
    assert line not in printed(Summary(run[-1]), width)

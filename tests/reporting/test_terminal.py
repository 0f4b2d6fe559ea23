"""The terminal's summary of a step."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest
from rich.cells import cell_len
from shown_runs import DIAGNOSIS, FINDING, INF, printed, vanishing_run

from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.terminal import SideBySide, Summary, print_summary


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


def test_markup_in_names_and_messages_is_printed_as_it_is() -> None:
    snapshot = Snapshot(0, ("[red]a", "b"), grad_norm=[1.0, 1.0])
    finding = Finding("odd", ("[red]a",), 0, 1, 1, "see [link=x]y[/link]")
    whole = "\n".join(printed(Summary(snapshot, [finding])))
    assert "[red]a" in whole
    assert "see [link=x]y[/link]" in whole


@pytest.mark.parametrize(("width", "beside"), [(140, False), (199, False), (200, True), (240, True)])
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


def test_a_cause_of_two_findings_is_told_in_full_once() -> None:
    stuck = Finding("not-learning", ("loss",), 9, 2.3, 2.3, "not learning.")
    cause = replace(DIAGNOSIS, findings=(FINDING, stuck))
    text = "\n".join(printed(Summary(vanishing_run()[-1], [FINDING, stuck], [cause])))
    assert text.count(f"Cause: {cause.cause}") == 2
    assert text.count(f"Cause: {cause.cause}, as above.") == 1
    assert text.count("Try first") == 1


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

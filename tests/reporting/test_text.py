"""Numbers, layers and findings as text."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shown_runs import DIAGNOSIS, FINDING

from gradwatch.records import Finding, Snapshot
from gradwatch.reporting.text import clip_text, findings_text, listed, number, open_kinds, percent


@given(st.floats(1e-99, 1e99))
def test_numbers_are_short_and_right_to_six_percent(value: float) -> None:
    text = number(value)
    assert len(text) <= 7
    assert math.isclose(float(text), value, rel_tol=0.06) or 1e-3 <= value < 1e-2


@given(st.floats(0, 1))
def test_a_share_is_never_rounded_to_none_or_all(share: float) -> None:
    assert (percent(share) == "0") == (share == 0)
    assert (percent(share) == "100") == (share == 1)


@pytest.mark.parametrize(("count", "text"), [(0, ""), (1, "0"), (4, "0, 1, 2, 3"), (9, "0, 1, 2 ... 8 (9 in all)")])
def test_lists_keep_both_ends(count: int, text: str) -> None:
    assert listed([str(i) for i in range(count)]) == text


def test_findings_about_parameters_mark_their_layer_and_closed_ones_mark_nothing() -> None:
    findings = [
        Finding("stalled", ("head.weight", "scale"), 0, 1, 0, ""),
        Finding("dead", ("head",), 0, 1, 0, ""),
        Finding("spike", ("loss",), 0, 1, 0, ""),
        Finding("vanishing", ("body",), 0, 1, 0, "", closed_step=3),
    ]
    snapshot = Snapshot(0, ("(root)", "body", "head"), params=("scale", "body.weight", "head.weight"))
    assert open_kinds(snapshot, findings) == {"(root)": ("stalled",), "head": ("stalled", "dead")}


def test_an_open_finding_has_its_cause_and_what_to_try_as_a_list() -> None:
    text = findings_text([FINDING], [DIAGNOSIS])
    assert "Cause: **saturating activation**. Each Sigmoid takes 0.25. Try, in this order:\n\n1. ReLU with He" in text


def test_a_cause_is_told_in_full_once() -> None:
    second = replace(FINDING, kind="not-learning", layers=("loss",), step=9)
    text = findings_text([FINDING, second], [replace(DIAGNOSIS, findings=(FINDING, second))])
    assert text.count("Each Sigmoid takes 0.25.") == text.count("Try, in this order") == 1
    assert text.endswith("Cause: **saturating activation**, as above.")


def test_a_cause_without_a_finding_is_shown_alone_and_beside_findings() -> None:
    alone = replace(DIAGNOSIS, findings=())
    assert findings_text([], [alone]).startswith("**saturating activation**, no finding yet. Each Sigmoid")
    assert "no finding yet" in findings_text([FINDING], [alone])
    assert findings_text([]) == "No finding yet."


def clip_step(norm: float, after: float, **more: object) -> Snapshot:
    return Snapshot(0, (), total_norm=norm, total_norm_after=after, **more)  # type: ignore[arg-type]


def test_what_a_clip_did() -> None:
    idle = clip_step(0.42, 0.42, clip="norm", clip_max_norm=1.0)
    assert clip_text([]) == clip_text([clip_step(0.42, 0.42)]) == ""
    assert "at 1.00 never met its bound: total norm at most 0.420" in clip_text([idle, clip_step(0.3, 0.3)])
    assert clip_text([idle, clip_step(4.0, 1.0)]) == "clipped in 50 % of 2 measured steps, median coefficient 0.250"
    assert clip_text([clip_step(float("inf"), 1.0, clip="norm", clip_max_norm=1.0)]) == ""
    assert clip_text([clip_step(0.4, 0.4, clip="norm")]) == ""
    assert clip_text([clip_step(0.4, 0.4, clip="before backward", clip_max_norm=1.0)]) == ""

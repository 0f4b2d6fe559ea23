"""A finding opens once, lasts, closes and comes again; what a detector may return; going on from a checkpoint."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradwatch.pipeline.ledger import Ledger
from gradwatch.records import Finding, Snapshot

LAYERS = tuple("abcdef")
Groups = list[str]  # the groups of layers that are in trouble at a step, such as ["ab", "d"]


class Scripted:
    """Finds the groups of layers that the script has for a step."""

    def __init__(self, script: dict[int, Groups], patience: int = 1) -> None:
        self.script, self.patience = script, patience

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        for group in self.script.get(snapshot.step, []):
            yield Finding("mine", tuple(group), snapshot.step, float(snapshot.step), 1.0, f"step {snapshot.step}")


def follow(script: dict[int, Groups], steps: int = 12, *, patience: int = 1, close_after: int = 3) -> Ledger:
    ledger = Ledger([Scripted(script, patience)], close_after)
    for step in range(steps):
        ledger.update(Snapshot(step, LAYERS))
    return ledger


def spans(ledger: Ledger) -> list[tuple[str, int, int | None]]:
    return [("".join(finding.layers), finding.step, finding.closed_step) for finding in ledger.findings]


def test_it_opens_once_keeps_its_words_and_closes() -> None:
    ledger = Ledger([Scripted({step: ["a"] for step in range(2, 6)})], close_after=3)
    opened = [[finding.step for finding in ledger.update(Snapshot(step, LAYERS))] for step in range(12)]
    assert opened == [[], [], [2], *[[]] * 9]
    assert spans(ledger) == [("a", 2, 8)]
    finding = ledger.findings[0]
    assert (finding.value, finding.message) == (2.0, "step 2")
    assert (finding.latest, finding.worst) == ((5, 5.0), (5, 5.0))


def test_a_gap_shorter_than_close_after_does_not_close_it() -> None:
    assert spans(follow({2: ["a"], 5: ["a"]}, close_after=3)) == [("a", 2, 8)]
    assert spans(follow({2: ["a"], 6: ["a"]}, close_after=3)) == [("a", 2, 5), ("a", 6, 9)]


def test_patience_is_counted_in_a_row_and_the_finding_dated_to_the_first() -> None:
    script = {1: ["a"], 2: ["a"], 4: ["a"], 5: ["a"], 6: ["a"]}
    ledger = Ledger([Scripted(script, patience=3)])
    opened, suspicious = [], []
    for step in range(8):
        opened += [(step, finding.step) for finding in ledger.update(Snapshot(step, LAYERS))]
        suspicious.append(bool(ledger.suspects(agreed=False)))
    assert opened == [(6, 4)]
    assert suspicious == [False, True, True, False, True, True, True, False]


def test_separate_layers_are_separate_findings_and_growing_ones_the_same() -> None:
    assert spans(follow({1: ["ab", "ef"], 2: ["ab", "ef"]}, 3)) == [("ab", 1, None), ("ef", 1, None)]
    assert spans(follow({1: ["b"], 2: ["bc"], 3: ["ac"]}, 4)) == [("b", 1, None)]


def test_layers_stand_in_network_order_however_they_joined() -> None:
    ledger = Ledger([Scripted({1: ["bd"], 2: ["ab", "bd"], 3: ["df", "ad"]}, patience=3)])
    for step in range(4):
        ledger.update(Snapshot(step, LAYERS))
    assert spans(ledger) == [("adf", 1, None)]


def test_two_sides_of_one_trouble_in_one_step_count_once() -> None:
    assert spans(follow({0: ["ab", "b"], 1: ["ab", "b"]}, 2, patience=3)) == []
    assert spans(follow({step: ["ab", "bc"] for step in range(3)}, 3, patience=3)) == [("abc", 0, None)]


def test_a_finding_about_no_layer_opens_once_too() -> None:
    assert spans(follow({step: [""] for step in range(4)}, 4)) == [("", 0, None)]


def test_kinds_and_detectors_are_kept_apart() -> None:
    def finds(kind: str) -> Any:
        return lambda snapshot: Finding(kind, ("a",), snapshot.step, 1.0, 1.0, "found")

    ledger = Ledger([finds("one"), finds("two"), finds("two")])
    ledger.update(Snapshot(0, LAYERS))
    assert [finding.kind for finding in ledger.findings] == ["one", "two", "two"]


FOUND = Finding("mine", ("a",), 0, 1.0, 1.0, "found")


@pytest.mark.parametrize(
    ("returned", "count"),
    [(None, 0), ([], 0), (FOUND, 1), ([FOUND], 1), ((FOUND,), 1), (iter([FOUND]), 1), ({FOUND}, 1)],
)
def test_a_plain_function_may_return_nothing_one_or_several(returned: object, count: int) -> None:
    assert len(Ledger([lambda snapshot: returned]).update(Snapshot(0, LAYERS))) == count


@pytest.mark.parametrize(
    ("returned", "shown"),
    [("vanishing", "'vanishing'"), (True, "True"), (1.5, "1.5"), ([FOUND, "b"], "'b'"), ({"kind": 1}, "{'kind': 1}")],
)
def test_anything_else_is_refused_by_name(returned: object, shown: str) -> None:
    with pytest.raises(TypeError) as caught:
        Ledger([lambda snapshot: returned]).update(Snapshot(0, LAYERS))
    assert f"returned {shown}" in str(caught.value)
    assert "expected a gradwatch.Finding" in str(caught.value)


@pytest.mark.parametrize("detector", ["vanishing", None, 3])
def test_what_cannot_be_called_is_refused_at_once(detector: object) -> None:
    with pytest.raises(TypeError, match=f"{detector!r} is a {type(detector).__name__}; expected something"):
        Ledger([detector])


presence = st.lists(st.booleans(), max_size=30)
counts = st.integers(1, 4)


@given(present=presence, patience=counts, close_after=counts)
def test_it_does_what_a_naive_loop_does(present: list[bool], patience: int, close_after: int) -> None:
    expected: list[list[int | None]] = []
    row = clean = 0
    for step, now in enumerate(present):
        row, clean = (row + 1, 0) if now else (0, clean + 1)
        is_open = bool(expected) and expected[-1][1] is None
        if not is_open and row == patience:
            expected.append([step - patience + 1, None])
        elif is_open and clean == close_after:
            expected[-1][1] = step
            row = 0
    script = {step: ["a"] for step, now in enumerate(present) if now}
    ledger = follow(script, len(present), patience=patience, close_after=close_after)
    assert [[start, end] for _, start, end in spans(ledger)] == expected


@given(present=presence, patience=counts, split=st.integers(0, 30))
def test_a_resumed_ledger_goes_on_as_if_never_stopped(present: list[bool], patience: int, split: int) -> None:
    script = {step: ["a", "cd"] for step, now in enumerate(present) if now}
    first, second = (Ledger([Scripted(script, patience)]) for _ in range(2))
    for step in range(min(split, len(present))):
        first.update(Snapshot(step, LAYERS))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(split, len(present)):
        first.update(Snapshot(step, LAYERS))
        second.update(Snapshot(step, LAYERS))
    assert second.findings == first.findings
    assert second.state_dict()["tracks"] == first.state_dict()["tracks"]


def test_a_checkpoint_takes_an_open_finding_and_loads_without_code() -> None:
    ledger, file = follow({9: ["ab"], 10: ["ab"]}), io.BytesIO()
    torch.save(ledger.state_dict(), file)
    file.seek(0)
    other = Ledger([Scripted({12: ["ab"]})])
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.update(Snapshot(12, LAYERS)) == []
    assert spans(other) == [("ab", 9, None)]


def test_an_error_keeps_the_words_of_its_first_step() -> None:
    """A step after NaN began it is everywhere, and nothing is to be learned from where it is then."""

    def broken(snapshot: Snapshot) -> Finding:
        layers = ("b",) if snapshot.step == 0 else ("loss", "a", "b")
        return Finding("nonfinite", layers, snapshot.step, 1.0, 0.0, f"at {layers[0]}", severity="error")

    ledger = Ledger([broken])
    for step in range(3):
        ledger.update(Snapshot(step, ("a", "b")))
    (finding,) = ledger.findings
    assert (finding.layers, finding.message, finding.step) == (("b",), "at b", 0)

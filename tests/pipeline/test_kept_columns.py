"""Columns that are dropped: the detectors see them, and neither the history nor the record holds them."""

from pathlib import Path

import numpy as np
import pytest
from watched_loops import network, train

from gradwatch import GradientMonitor, Snapshot, watch
from gradwatch.pipeline.intake import History
from gradwatch.pipeline.kept_columns import CHOICES, KeptColumns
from gradwatch.reporting.record import JsonlRecord, read_record
from gradwatch.snapshot import ARRAYS


def full() -> Snapshot:
    lengths = {"layers": 2, "params": 2, "groups": 1, "trace_step": 1}
    columns = {name: [1.0] * lengths[along] for name, along in ARRAYS.items()}
    names = {"layers": ("a", "b"), "params": ("a.weight", "b.weight"), "groups": ("SGD 0",), "trace_step": [7]}
    return Snapshot(7, **names, **columns, feeds=("1", ""), calls={"a": [1.0, 2.0]}, loss=0.5)


@pytest.mark.parametrize("dropped", CHOICES)
def test_each_column_can_be_dropped_alone(dropped: str) -> None:
    kept = KeptColumns([name for name in CHOICES if name != dropped])(full())
    gone = {name for name in full().to_dict() if name not in kept.to_dict()}
    assert gone <= {dropped}
    assert not len(getattr(kept, dropped)) or np.isnan(getattr(kept, dropped)).all()
    assert kept.loss == 0.5
    assert kept.trace_loss.tolist() == [1.0]


def test_no_column_is_dropped_by_default() -> None:
    snapshot = full()
    assert KeptColumns(None)(snapshot) is snapshot
    assert KeptColumns("*")(snapshot) is snapshot


def test_a_pattern_that_names_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"columns=\['gradnorm'\] names no column; expected .* grad_norm"):
        watch(network(), columns=["grad_norm", "gradnorm"])
    with pytest.raises(ValueError, match="names no column"):
        GradientMonitor(columns=["loss"])


def test_detectors_see_what_is_dropped() -> None:
    seen: list[float] = []

    def look(snapshot: Snapshot) -> None:
        seen.append(float(snapshot.weight_norm[0]))

    model = network()
    with watch(model, detectors=[look], columns=["grad_norm"], every_n_steps=1) as watcher:
        train(watcher, model, 3)
    assert np.isfinite(seen).all()
    assert len(seen) == 3
    assert all(np.isnan(snapshot.weight_norm).all() for snapshot in watcher.history)
    assert np.isfinite(watcher.history[-1].grad_norm[0])


def test_a_record_holds_the_kept_columns(tmp_path: Path) -> None:
    model, record = network(), JsonlRecord(tmp_path / "run.jsonl")
    with watch(model, columns=["grad_*", "update_to_weight"]) as watcher:
        watcher.intake.on_snapshot = record.snapshot
        train(watcher, model, 3)
    record.close()
    last = read_record(record.path).snapshots[-1].to_dict()
    held = {name for name in CHOICES if last.get(name)}
    assert held == {"grad_norm", "grad_output_norm", "grad_output_rms", "update_to_weight"}


def test_a_history_of_large_snapshots_is_bounded_in_bytes() -> None:
    layers = tuple(map(str, range(1000)))
    history = History(500, most_bytes=100 * 8000)
    for step in range(400):
        history.add(Snapshot(step, layers, grad_norm=np.ones(1000)))
        assert sum(snapshot.nbytes for snapshot in history) <= 101 * 8000
    steps = [snapshot.step for snapshot in history]
    assert len(steps) > 50
    assert steps[0] == 0
    assert steps[-1] == 399


def test_snapshots_of_a_run_share_their_names() -> None:
    model = network()
    with watch(model, every_n_steps=1) as watcher:
        train(watcher, model, 3)
    first, second = watcher.history[1:3]
    assert first.layers is second.layers
    assert first.params is second.params

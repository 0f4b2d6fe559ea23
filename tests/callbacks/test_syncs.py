"""The host waits for the device at most once a measured step, and never on another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from models import Net, loader, mlp, trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradwatch import GradientMonitor
from gradwatch.pipeline.origin_search import OriginSearch
from gradwatch.probe.scalars import DeviceScalars

aten = torch.ops.aten
# What reads a device's values into the host, or has a shape that depends on them.
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default}


class Waits(TorchDispatchMode):
    """Counts operators that wait, and copies from one device to another."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in WAITS or (func is aten._to_copy.default and result.device != args[0].device):
            self.count += 1
        return result


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Tensor methods that read values, by name; the ones that need no operator on a CPU."""
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__array__"):
        original = getattr(Tensor, name)

        def noted(self: Tensor, *args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            reads.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, noted)
    yield reads
    monkeypatch.undo()


class PerStep(Callback):
    """Counts what each training step adds, transfers included."""

    def __init__(self, waits: Waits, reads: list[str], transfers: list[int]) -> None:
        self.sources, self.steps = (waits, reads, transfers), []

    def _counts(self) -> tuple[int, int, int]:
        waits, reads, transfers = self.sources
        return waits.count, len(reads), len(transfers)

    def on_train_batch_start(self, *_: Any) -> None:
        self.before = self._counts()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(tuple(now - then for now, then in zip(self._counts(), self.before, strict=True)))


def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *callbacks: Callback) -> list[tuple[int, int, int]]:
    """(waits, reads, transfers) of each of 14 steps."""
    transfers: list[int] = []
    send = DeviceScalars.send

    def counted(self: DeviceScalars) -> Any:
        transfers.append(1)
        return send(self)

    monkeypatch.setattr(DeviceScalars, "send", counted)
    network = nn.Sequential(mlp(), nn.Tanh(), nn.Linear(3, 3))
    with Waits() as waits, counted_reads(monkeypatch) as reads:
        count = PerStep(waits, reads, transfers)
        trainer(tmp_path, *callbacks, count, max_steps=14, gradient_clip_val=0.5).fit(Net(network), loader())
    return count.steps


@pytest.mark.parametrize("every_total", [False, True])
def test_one_transfer_a_measured_step_and_none_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_total: bool
) -> None:
    bare = steps(tmp_path, monkeypatch)
    monitor = GradientMonitor(every_n_steps=5, dense_steps=2, summary=False, total_norm_every_step=every_total)
    with pytest.MonkeyPatch.context() as as_on_a_device:  # on a CPU the search for NaN's origin reads each loss
        as_on_a_device.setattr(OriginSearch, "is_open", False)
        watched = steps(tmp_path, monkeypatch, monitor)
    measured = {snapshot.step for snapshot in monitor.history}
    assert measured == {0, 1, 5, 10}
    for step, ((waits, reads, transfers), (bare_waits, bare_reads, _)) in enumerate(zip(watched, bare, strict=True)):
        assert waits == bare_waits
        assert reads == bare_reads
        assert transfers == (1 if step in measured else 0)

"""The path that a CUDA device takes never waits for it, checked without one.

Fake tensors have a device but no values: whatever would read one raises. That is stricter than counting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gradwatch.pipeline.watcher import Watcher
from gradwatch.probe.dead_units import add_units, peaks_by_layer, peaks_of, saturated_share, saturation_of
from gradwatch.probe.norms import l2_norms
from gradwatch.probe.parameters import ParameterReading, total_gradient_norm
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sum_layout import SumLayout
from gradwatch.probe.trace import ScalarRow


def parameters() -> dict[str, nn.Parameter]:
    params = {str(dtype): nn.Parameter(torch.empty(8, 3, device="cuda", dtype=dtype)) for dtype in DTYPES}
    for param in params.values():
        param.grad = torch.empty_like(param)
    return params


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)


def test_a_reader_of_values_would_be_caught() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        l2_norms([torch.empty(3, device="cuda")]).item()


def test_parameters_are_read_without_waiting() -> None:
    with FakeTensorMode():
        params, scalars = parameters(), DeviceScalars()
        reading = ParameterReading(params, scalars)
        for param in params.values():
            param.grad = torch.empty_like(param)
        reading.read_again(scalars)
        assert reading.total is not None
        assert reading.total.device.type == "cuda"
        assert total_gradient_norm(list(params.values())) is not None
    assert scalars.count == 5 * len(DTYPES)


def test_activations_are_read_without_waiting() -> None:
    with FakeTensorMode():
        scalars, output = DeviceScalars(), torch.empty(128, 8, device="cuda")
        peaks = peaks_of(output)
        assert peaks is not None
        layout = SumLayout({"samples": 1, "units": 8, "fired": 8})
        add_units(layout, peaks_by_layer([(0, *peaks), (0, *peaks)]), {0: slice(0, 8)}, scalars)
        assert scalars.count == 8
        saturation = saturation_of(nn.Tanh())
        assert saturation is not None
        assert saturated_share(saturation, output).device.type == "cuda"


def test_gradients_and_traces_wait_on_the_device() -> None:
    with FakeTensorMode():
        row, scalars = ScalarRow(), DeviceScalars(max_tensors=4)
        for step in range(3000):
            row.append(step, torch.empty((), device="cuda"))
        for _ in range(10):
            scalars.norm(torch.empty(4, 4, device="cuda"))
        steps, slots = row.drain(scalars)
    assert len(steps) == len(slots) == 3000


class Event:
    """Stands for torch.cuda.Event, which a torch without CUDA can't make; done when it is asked the second time."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def record(self, stream: object) -> None:
        self.calls.append("record")

    def query(self) -> bool:
        self.calls.append("query")
        return self.calls.count("query") > 1

    def synchronize(self) -> None:
        self.calls.append("synchronize")


class Copies(TorchDispatchMode):
    """Notes how host memory is made and filled."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned, self.blocking = [], []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.empty.memory_format:
            self.pinned.append((kwargs or {}).get("pin_memory", False))
        if func is torch.ops.aten.copy_.default:
            self.blocking.append(not (args[2] if len(args) > 2 else (kwargs or {}).get("non_blocking", False)))
        return func(*args, **(kwargs or {}))


def test_numbers_leave_the_device_through_pinned_memory_and_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Event()
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    with FakeTensorMode():
        scalars = DeviceScalars()
        scalars.norm(torch.empty(4, device="cuda"))
        with Copies() as copies:
            transfer = scalars.send()
    assert (copies.pinned, copies.blocking) == ([True], [False])
    assert transfer.is_deferred
    assert [transfer.has_arrived, transfer.has_arrived] == [False, True]
    assert event.calls == ["record", "query", "query"]


needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device, for torch.cuda.set_sync_debug_mode"
)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("fused", [False, True])
def test_a_real_device_is_never_waited_for(fused: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    x: Tensor = torch.randn(128, 8, device="cuda")
    with Watcher(model, every_n_steps=2, dense_steps=3, total_norm_every_step=True) as watcher:
        with no_waiting():
            for _ in range(30):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                watcher.step(optimizer, loss)
        torch.cuda.synchronize()
    assert [snapshot.step for snapshot in watcher.history] == [0, 1, *range(2, 30, 2)]
    assert all(0 < snapshot.total_norm < float("inf") for snapshot in watcher.history)


@needs_cuda
def test_a_late_snapshot_holds_what_it_would_have_held_at_once() -> None:
    histories = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(128, 8)
        model, x = model.to(device), x.to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with Watcher(model, every_n_steps=1) as watcher:
            for _ in range(5):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                watcher.step(optimizer, loss)
        histories.append(watcher.history)
    for one, other in zip(*histories, strict=True):
        assert one.step == other.step
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.grad_output_norm == pytest.approx(one.grad_output_norm, rel=1e-4)

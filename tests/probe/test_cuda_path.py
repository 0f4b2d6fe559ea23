"""The path that a CUDA device takes never waits for it, checked without one.

Fake tensors have a device but no values: whatever would read one raises. That is stricter than counting.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from gradwatch.probe.activations import UnitActivity, saturated_share, saturation_of
from gradwatch.probe.norms import l2_norms
from gradwatch.probe.parameters import ParameterReading, total_gradient_norm
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.trace import Trace
from gradwatch.watch import Watcher


def parameters() -> dict[str, nn.Parameter]:
    params = {str(dtype): nn.Parameter(torch.empty(8, 3, device="cuda", dtype=dtype)) for dtype in DTYPES}
    for param in params.values():
        param.grad = torch.empty_like(param)
    return params


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)


def test_a_reader_of_values_would_be_caught() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        l2_norms([torch.empty(3, device="cuda")]).tolist()


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
        activity, output = UnitActivity(), torch.empty(128, 8, device="cuda")
        activity.see("relu", output)
        assert activity.dead_shares()[0][1].device.type == "cuda"
        saturation = saturation_of(nn.Tanh())
        assert saturation is not None
        assert saturated_share(saturation, output).device.type == "cuda"


def test_gradients_and_traces_wait_on_the_device() -> None:
    with FakeTensorMode():
        trace, scalars = Trace(), DeviceScalars(max_tensors=4)
        for step in range(3000):
            trace.append(step, torch.empty((), device="cuda"))
        for _ in range(10):
            scalars.norm(torch.empty(4, 4, device="cuda"))
        steps, slots = trace.drain(scalars)
    assert len(steps) == len(slots) == 3000


def test_a_real_device_never_waits() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, for torch.cuda.set_sync_debug_mode")
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x: Tensor = torch.randn(128, 8, device="cuda")
    watcher = Watcher(model, every_n_steps=1)
    watcher.begin()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = model(x).square().mean()
        loss.backward()
        watcher.read(optimizer)
        optimizer.step()
        watcher.read_again()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watcher.end(loss.detach()) is not None

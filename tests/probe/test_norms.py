"""Norms against a naive float64 loop, at the edges of float32, and what they cost in syncs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradwatch.probe.norms import _l2_norms_scaled, l2_norms, nonfinite_counts, norms_and_nonzero_counts
from gradwatch.probe.probe import Probe


@pytest.mark.parametrize("norms", [l2_norms, _l2_norms_scaled])
@pytest.mark.parametrize("size", [1e20, 1.0, 1e-20, 1e-30])
def test_finite_gradients_have_a_finite_norm_that_is_not_zero(norms: object, size: float) -> None:
    values = torch.full((1000,), size)
    result = norms([values, torch.ones(3)])
    assert result[0].item() == pytest.approx(float(values[0]) * math.sqrt(1000), rel=1e-4)
    assert result[1].item() == pytest.approx(math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype(dtype: torch.dtype) -> None:
    values = torch.full((10_000,), 1000.0, dtype=dtype)  # its float16 norm would overflow
    assert l2_norms([values]).item() == pytest.approx(1e5, rel=1e-2)
    assert norms_and_nonzero_counts([values])[1].item() == 10_000


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_norms_and_counts_agree_with_numpy(values: list[float]) -> None:
    tensor = torch.tensor(values)
    array = tensor.double().numpy()
    norms = l2_norms([tensor])
    if np.isfinite(array).all():
        assert norms.item() == pytest.approx(np.linalg.norm(array), rel=1e-5, abs=0)
    else:
        assert not math.isfinite(norms.item())
    assert norms_and_nonzero_counts([tensor])[1].item() == np.count_nonzero(array)
    assert nonfinite_counts([tensor], norms).item() == np.count_nonzero(~np.isfinite(array))


def test_norms_agree_with_a_naive_float64_loop_per_parameter_and_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    x, y = torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))
    probe = Probe(model)
    probe.attach()
    loss = nn.functional.cross_entropy(model(x), y)
    grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    loss.backward()
    probe.read(model.parameters())
    snapshot = probe.snapshot(0)
    naive = {}
    for (name, _), grad in zip(model.named_parameters(), grads, strict=True):
        naive[name] = math.sqrt(sum(value * value for value in grad.double().flatten().tolist()))
    assert snapshot.params == tuple(naive)
    assert snapshot.param_grad_norm.tolist() == pytest.approx(list(naive.values()), rel=1e-5)
    for layer, norm in zip(snapshot.layers, snapshot.grad_norm.tolist(), strict=True):
        own = [value for name, value in naive.items() if name.rsplit(".", 1)[0] == layer]
        assert norm == pytest.approx(math.hypot(*own), rel=1e-5) if own else math.isnan(norm)
    assert snapshot.total_norm == pytest.approx(math.hypot(*naive.values()), rel=1e-5)

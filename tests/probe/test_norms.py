"""Norms against a naive float64 loop, at the edges of float32, and what they cost in syncs."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradwatch.probe.dead_units import peaks_of
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


@pytest.mark.parametrize("shape", [(64, 32, 8, 8), (32, 64, 64), (4096, 32)])
@pytest.mark.parametrize("dead", [(), (3,), (0, 5)])
def test_of_a_large_output_no_unit_is_taken_for_dead_or_alive(shape: tuple[int, ...], dead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    output = torch.randn(shape).relu()
    units = output.movedim(1 if len(shape) > 3 else -1, 0)
    units[list(dead)] = 0
    units[7, : shape[0] // 2] = 0  # fires in the second half of the samples alone
    peaks = peaks_of(output)
    assert peaks is not None
    assert np.flatnonzero(peaks[0] <= 0).tolist() == list(dead)
    assert peaks[1] == output.numel() // len(units)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["whole", "transposed", "channels last", "with gaps", "one entry for all"])
def test_norms_do_not_depend_on_the_order_in_memory(layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(20, 30, 12, 14, dtype=dtype)
    views = {
        "whole": values,
        "transposed": values.transpose(0, 1),
        "channels last": values.contiguous(memory_format=torch.channels_last),
        "with gaps": values[:, ::2, 1:],
        "one entry for all": values[:1].expand(20, 30, 12, 14),
    }
    tensor = views[layout]
    tensor.flatten()[0] = 0
    norms, counts = norms_and_nonzero_counts([tensor])
    assert norms.item() == pytest.approx(np.linalg.norm(tensor.double().numpy().ravel()), rel=1e-6)
    assert l2_norms([tensor]).item() == norms.item()
    assert counts.item() == torch.count_nonzero(tensor).item()


def test_a_gradient_that_vanishes_or_explodes_is_read_exactly() -> None:
    torch.manual_seed(0)
    for exponent in range(-44, 38, 3):
        for size in (100, 5000, 40_000):
            values = (torch.rand(size, dtype=torch.float64) * 10.0**exponent).float()
            expected = np.linalg.norm(values.double().numpy())
            found = l2_norms([values, *[values[:50]] * 5])[0].item()
            assert found == pytest.approx(expected, rel=1e-6, abs=0), (exponent, size)


def test_small_tensors_are_read_together_and_give_what_they_give_alone() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(size) for size in (0, 1, 7, 100, 1024, 1025, 20_000)]
    tensors += [torch.tensor([math.inf, 1.0]), torch.tensor([math.nan, 0.0]), torch.zeros(3), torch.full((4,), 1e-40)]
    norms, counts = norms_and_nonzero_counts(tensors)
    alone = [norms_and_nonzero_counts([tensor]) for tensor in tensors]
    assert norms.tolist() == pytest.approx([norm.item() for norm, _ in alone], rel=1e-6, abs=0, nan_ok=True)
    assert counts.tolist() == [count.item() for _, count in alone]
    assert l2_norms(tensors).tolist() == pytest.approx(norms.tolist(), rel=1e-6, abs=0, nan_ok=True)


def test_sums_that_overflow_warn_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    for size in (10, 50_000):
        l2_norms([torch.full((size,), 1e30), torch.full((size,), math.inf), torch.full((size,), math.nan)])
    assert not recwarn.list


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 1_300_001])
@pytest.mark.parametrize("exponent", [-44, -30, -20, -13, 0, 15, 25, 37])
def test_a_large_tensor_is_read_by_several_threads(size: int, exponent: int, two_threads: None) -> None:
    torch.manual_seed(0)
    values = (torch.rand(size, dtype=torch.float64) * 10.0**exponent).float()
    values[::7] = 0
    norms, counts = norms_and_nonzero_counts([values])
    assert norms.item() == pytest.approx(np.linalg.norm(values.double().numpy()), rel=1e-6, abs=0)
    assert counts.item() == torch.count_nonzero(values).item()
    assert l2_norms([values]).item() == norms.item()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_large_tensor_that_is_not_finite(bad: float, two_threads: None) -> None:
    for place in (0, 1_000_000, -1):
        values = torch.ones(1_100_003)
        values[place] = bad
        assert not math.isfinite(l2_norms([values]).item())

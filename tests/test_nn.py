"""GradientNormalization: identity forward, standardized backward."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradwatch.nn import GradientNormalization


def backward(module: nn.Module, grad: Tensor) -> Tensor:
    x = torch.randn(grad.shape).to(grad.dtype).requires_grad_()
    y = module(x)
    assert torch.equal(x, y)
    y.backward(grad)
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_formula_and_dtype(dtype: torch.dtype) -> None:
    grad = torch.randn(7, 5, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    got = backward(GradientNormalization(), grad)
    wide = grad.to(torch.complex128 if dtype.is_complex else torch.float64)
    expected = (wide - wide.mean()) / (wide.std(correction=0) + 1e-6)
    assert got.dtype == dtype
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(got, expected.to(dtype), rtol=tolerance, atol=tolerance)


def test_per_sample_is_each_sample_alone() -> None:
    grad = torch.randn(4, 3, 2)
    got = backward(GradientNormalization(per_sample=True), grad)
    alone = [backward(GradientNormalization(), sample) for sample in grad]
    torch.testing.assert_close(got, torch.stack(alone))


@given(st.floats(-30, 30).map(lambda power: 10.0**power), st.integers(0, 100), st.booleans())
@settings(max_examples=60, deadline=None)
def test_rescaling_keeps_the_direction_at_any_size(size: float, seed: int, per_sample: bool) -> None:
    grad = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) * size
    got = backward(GradientNormalization(per_sample, center=False, eps=1e-37), grad)
    assert torch.nn.functional.cosine_similarity(got, grad / size).min() > 0.9999
    assert got.square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3, 1), (4, 2), (0, 3), (3, 0)])
@pytest.mark.parametrize("value", [0.0, 1e-38, 0.1, -3.0, 1e38])
def test_one_element_and_constant_gradients_give_no_nan(
    shape: tuple[int, ...], value: float, per_sample: bool, center: bool
) -> None:
    if shape == () and per_sample:
        return  # a scalar has no samples
    got = backward(GradientNormalization(per_sample, center=center), torch.full(shape, value))
    assert got.isfinite().all()
    entries = 0 if 0 in shape else (2 if shape == (4, 2) else 3 if shape == (3, 1) and not per_sample else 1)
    if center and entries == 1:
        assert (got == value).all()
    elif center:
        assert (got.abs() < 1e-20).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_gradients_go_through(bad: float) -> None:
    grad = torch.tensor([[1.0, 2.0], [bad, 5.0]])
    torch.testing.assert_close(backward(GradientNormalization(), grad), grad, equal_nan=True)
    got = backward(GradientNormalization(per_sample=True), grad)
    torch.testing.assert_close(got[1], grad[1], equal_nan=True)
    torch.testing.assert_close(got[0], torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize(("name", "value"), [("eps", 0), ("eps", -1.0), ("scale", float("nan")), ("scale", "1")])
def test_bad_settings(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}; expected a finite number above 0"):
        GradientNormalization(**{name: value})


def test_it_has_no_parameters_and_copies_and_pickles() -> None:
    module = GradientNormalization(per_sample=True, center=False, scale=2.0)
    assert not module.state_dict()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(twin) == repr(module)
    assert "per_sample=True, center=False" in repr(module)


def test_it_cures_a_vanishing_gradient() -> None:
    def first_norm(between: list[nn.Module]) -> float:
        torch.manual_seed(0)
        layers = [part for _ in range(12) for part in (nn.Linear(16, 16), nn.Sigmoid(), *between)]
        model = nn.Sequential(*layers)
        model(torch.randn(8, 16)).square().mean().backward()
        return model[0].weight.grad.norm().item()

    assert first_norm([]) < 1e-8
    assert first_norm([GradientNormalization(eps=1e-12)]) > 1e-2

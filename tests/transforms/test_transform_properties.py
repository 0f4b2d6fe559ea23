"""Properties that clips and normalizers promise, on drawn gradients."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradwatch.transforms import (
    AdaptiveClip,
    ClipByGlobalNorm,
    ClipByNorm,
    ClipByValue,
    NormalizeByGlobalNorm,
    NormalizeByNorm,
    Transform,
)

DTYPES = {torch.float16: 3e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-9}
bounds = st.floats(1e-3, 1e3)
properties = settings(max_examples=60, deadline=None)


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, nn.Parameter]:
    """One to four parameters of one dtype; gradients from 1e-3 to the largest that half precision holds, or 1e20."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    size = draw(st.sampled_from([1e-2, 1.0, 1e3] if dtype is torch.float16 else [1e-6, 1.0, 1e4, 1e20]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    params = {}
    for i, shape in enumerate(draw(st.lists(st.sampled_from([(), (3,), (4, 3), (2, 3, 3)]), min_size=1, max_size=4))):
        param = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        param.grad = (torch.randn(shape, generator=generator) * size).to(dtype)
        params[f"layer{i}.weight"] = param
    return params


def grads(params: dict[str, nn.Parameter]) -> list[Tensor]:
    return [param.grad.double() for param in params.values()]


def flat(params: dict[str, nn.Parameter]) -> Tensor:
    return torch.cat([grad.flatten() for grad in grads(params)])


def tolerance(params: dict[str, nn.Parameter]) -> float:
    return DTYPES[next(iter(params.values())).dtype]


@given(parameters(), bounds, st.sampled_from([1.0, 2.0, float("inf")]))
@properties
def test_global_norm_bound_and_direction(params: dict[str, nn.Parameter], bound: float, p: float) -> None:
    before, tol = flat(params), tolerance(params)
    ClipByGlobalNorm(bound, p)(params)
    after = flat(params)
    assert torch.linalg.vector_norm(after, p) <= bound * (1 + tol) + 1e-6
    scale = before.abs().max()
    torch.testing.assert_close(after * before.norm(), before * after.norm(), rtol=tol, atol=float(scale) * 1e-4)


@given(parameters(), bounds)
@properties
def test_by_norm_bound(params: dict[str, nn.Parameter], bound: float) -> None:
    ClipByNorm(bound)(params)
    assert all(grad.norm() <= bound * (1 + tolerance(params)) + 1e-6 for grad in grads(params))


@given(parameters(), bounds)
@properties
def test_by_value_bound(params: dict[str, nn.Parameter], bound: float) -> None:
    ClipByValue(bound)(params)
    assert flat(params).abs().max() <= bound * (1 + tolerance(params))


@given(parameters(), st.floats(1e-3, 1.0))
@properties
def test_adaptive_bound(params: dict[str, nn.Parameter], factor: float) -> None:
    AdaptiveClip(factor)(params)
    for param in params.values():
        shape = (len(param), -1) if param.ndim > 1 else (1, -1)
        weight = param.detach().double().reshape(shape).norm(dim=1).clamp(min=1e-3)
        grad = param.grad.double().reshape(shape).norm(dim=1)
        assert (grad <= factor * weight * (1 + tolerance(params)) + 1e-6).all()


CLIPS = st.sampled_from([ClipByValue, ClipByNorm, ClipByGlobalNorm, AdaptiveClip])


@given(parameters(), bounds, CLIPS)
@properties
def test_clips_are_idempotent(params: dict[str, nn.Parameter], bound: float, clip: type[Transform]) -> None:
    clip(bound)(params)
    before = grads(params)
    clip(bound)(params)
    torch.testing.assert_close(grads(params), before, rtol=tolerance(params), atol=1e-6)


@given(parameters(), CLIPS)
@properties
def test_clips_are_no_op_below_their_bound(params: dict[str, nn.Parameter], clip: type[Transform]) -> None:
    before = grads(params)
    outcome = clip(1e30)(params)
    assert all(torch.equal(a, b) for a, b in zip(grads(params), before, strict=True))
    assert outcome is not None
    assert not outcome.clipped


@given(parameters(), st.floats(1e-2, 1e2))
@properties
def test_normalizers_meet_their_target(params: dict[str, nn.Parameter], target: float) -> None:
    NormalizeByNorm(target)(params)
    assert all(abs(grad.norm() - target) <= target * 2 * tolerance(params) + 1e-6 for grad in grads(params))
    NormalizeByGlobalNorm(target)(params)
    assert abs(flat(params).norm() - target) <= target * 2 * tolerance(params) + 1e-6

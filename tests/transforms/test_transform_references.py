"""Each transform against torch's own function, a naive float64 loop, or the formula of its paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from every_transform import network, set_gradients
from torch import Tensor, nn

from gradwatch.transforms import (
    AdaptiveClip,
    AddNoise,
    Centralize,
    ClipByGlobalNorm,
    ClipByNorm,
    ClipByValue,
    NormalizeByGlobalNorm,
    NormalizeByNorm,
    PercentileClip,
    ScaleByTrustRatio,
    Standardize,
    Transform,
    ZeroNonFinite,
    ZScoreClip,
)


def after(transform: Transform, scale: float = 1.0) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Weights, gradients before and after, all in float64, of the parameters that have a gradient."""
    params = {name: param for name, param in set_gradients(network(), scale=scale).items() if param.grad is not None}
    before = {name: param.grad.double() for name, param in params.items()}
    transform(params)
    weights = {name: param.detach().double() for name, param in params.items()}
    return weights, before, {name: param.grad.double() for name, param in params.items()}


def close(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-12)


def one(transform: Transform, value: float) -> float:
    """A gradient of one entry, after the transform."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    weight.grad = torch.tensor([value], dtype=torch.float64)
    transform({"weight": weight})
    return weight.grad.item()


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_global_norm_is_torchs(p: float, max_norm: float) -> None:
    model, twin = network(), network()
    params, expected = set_gradients(model), set_gradients(twin)
    del expected["empty"]  # torch has no largest entry of nothing
    norm = nn.utils.clip_grad_norm_(expected.values(), max_norm, p, foreach=True)
    outcome = ClipByGlobalNorm(max_norm, p)(params)
    for name, param in expected.items():
        if param.grad is not None:
            torch.testing.assert_close(params[name].grad, param.grad, rtol=3e-6, atol=0)
    assert outcome.coefficient.item() == pytest.approx(min(1.0, max_norm / norm.item()), rel=1e-5)
    assert outcome.clipped.item() is (norm.item() > max_norm)


def test_by_value_is_torchs() -> None:
    model, twin = network(), network()
    params, expected = set_gradients(model), set_gradients(twin)
    nn.utils.clip_grad_value_(expected.values(), 0.3)
    assert ClipByValue(0.3)(params).clipped
    assert all(torch.equal(params[n].grad, p.grad) for n, p in expected.items() if p.grad is not None)
    assert not ClipByValue(0.3)(params).clipped


def test_by_value_with_an_interval() -> None:
    _, before, got = after(ClipByValue(lowest=-0.1, highest=0.4))
    close(got, {name: grad.clamp(-0.1, 0.4) for name, grad in before.items()})


def test_by_norm() -> None:
    _, before, got = after(ClipByNorm(0.7))
    close(got, {name: grad * min(1.0, 0.7 / max(grad.norm().item(), 1e-300)) for name, grad in before.items()})


def _agc(weight: Tensor, grad: Tensor, factor: float, eps: float) -> Tensor:
    if weight.ndim < 2:
        bound = factor * max(weight.norm().item(), eps)
        return grad * min(1.0, bound / max(grad.norm().item(), 1e-300))
    if len(weight) == 0:
        return grad
    pairs = zip(weight, grad, strict=True)
    return torch.stack([_agc(w.flatten(), g.flatten(), factor, eps).view_as(g) for w, g in pairs])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e20])
def test_adaptive_clip(scale: float) -> None:
    weights, before, got = after(AdaptiveClip(0.05, eps=0.01), scale)
    close(got, {name: _agc(weights[name], grad, 0.05, 0.01) for name, grad in before.items()})


def test_adaptive_clip_leaves_the_excluded_alone() -> None:
    _, before, got = after(AdaptiveClip(1e-4, exclude=["linear.*"]))
    assert torch.equal(before["linear.weight"], got["linear.weight"])
    assert not torch.equal(before["conv.weight"], got["conv.weight"])


@pytest.mark.parametrize("percentile", [0, 10, 50, 97.5, 100])
def test_percentile_clip(percentile: float) -> None:
    clip, history = PercentileClip(percentile, history=5), []
    for norm in np.random.default_rng(0).lognormal(size=20):
        history = [*history, norm][-5:]
        assert one(clip, norm) == pytest.approx(min(norm, np.percentile(history, percentile)), rel=1e-9)


class PaperZClip:
    """Algorithm 1 of the paper."""

    def __init__(self, warmup: int, alpha: float, z_max: float, max_norm: float) -> None:
        self.norms: list[float] = []
        self.warmup, self.alpha, self.z_max, self.max_norm = warmup, alpha, z_max, max_norm

    def __call__(self, norm: float) -> float:
        if len(self.norms) < self.warmup:
            self.norms.append(norm)
            self.mean, self.var = float(np.mean(self.norms)), float(np.var(self.norms))
            return min(norm, self.max_norm)
        sigma = math.sqrt(self.var)
        z = (norm - self.mean) / (sigma + 1e-6)
        clipped = self.mean + self.z_max * sigma / (z / self.z_max) if z > self.z_max else norm
        self.mean = self.alpha * self.mean + (1 - self.alpha) * clipped
        self.var = self.alpha * self.var + (1 - self.alpha) * (clipped - self.mean) ** 2
        return min(clipped, self.max_norm)


def test_zscore_clip() -> None:
    clip, paper = ZScoreClip(max_norm=3.0), PaperZClip(25, 0.97, 2.5, 3.0)
    norms = np.random.default_rng(0).uniform(1.0, 2.0, size=80)
    norms[[40, 60]] = 50.0, 2.9
    for norm in norms:
        assert one(clip, norm) == pytest.approx(paper(norm), rel=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
@pytest.mark.parametrize("when", [3, 40])
def test_zscore_clip_never_learns_a_bad_norm(bad: float, when: int) -> None:
    clip = ZScoreClip(max_norm=None)
    norms = np.random.default_rng(0).uniform(1.0, 2.0, size=60)
    for step, norm in enumerate(norms):
        one(clip, bad if step == when else norm)
    assert 1.3 < clip.state_dict()["mean"] < 1.7
    assert one(clip, 1e6) < 3.0


def test_normalize_by_global_norm() -> None:
    _, before, got = after(NormalizeByGlobalNorm(2.5), scale=1e-8)
    total = math.sqrt(sum(grad.square().sum().item() for grad in before.values()))
    close(got, {name: grad * 2.5 / total for name, grad in before.items()})


def test_normalize_by_norm() -> None:
    _, before, got = after(NormalizeByNorm(2.5), scale=1e-8)
    close(got, {name: grad * 2.5 / max(grad.norm().item(), 1e-12) for name, grad in before.items()})


def test_normalize_by_layer() -> None:
    _, before, got = after(NormalizeByNorm(by_layer=True))
    total = math.hypot(before["linear.weight"].norm(), before["linear.bias"].norm())
    close({"bias": got["linear.bias"]}, {"bias": before["linear.bias"] / total})


def test_trust_ratio() -> None:
    weights, before, got = after(ScaleByTrustRatio(0.02))
    close(got, {n: g * 0.02 * weights[n].norm() / g.norm() if g.numel() else g for n, g in before.items()})


def test_trust_ratio_lets_weights_that_are_zero_grow() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    ScaleByTrustRatio()({"weight": weight})
    assert weight.grad.tolist() == [3.0, 4.0]


def test_standardize() -> None:
    _, before, got = after(Standardize(eps=1e-20), scale=1e-6)
    close(got, {n: (g - g.mean()) / g.std(correction=0) if g.numel() > 1 else g for n, g in before.items()})


@pytest.mark.parametrize("value", [0.0, 0.1, 1e20, -3e-30])
def test_standardize_makes_a_constant_gradient_zero(value: float) -> None:
    weight = nn.Parameter(torch.zeros(7, 3))
    weight.grad = torch.full((7, 3), value)
    Standardize()({"weight": weight})
    assert (weight.grad == 0).all()


def test_standardize_of_complex_numbers() -> None:
    weight = nn.Parameter(torch.zeros(50, dtype=torch.complex128))
    weight.grad = torch.randn(50, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)) + (2 - 3j)
    expected = weight.grad - weight.grad.mean()
    expected = expected / expected.abs().square().mean().sqrt()
    Standardize()({"weight": weight})
    torch.testing.assert_close(weight.grad, expected)


def test_centralize() -> None:
    _, before, got = after(Centralize())
    expected = {
        name: grad - grad.mean(tuple(range(1, grad.ndim)), keepdim=True) if grad.ndim > 1 else grad
        for name, grad in before.items()
    }
    close(got, expected)


def test_zero_nonfinite_takes_a_complex_entry_as_one() -> None:
    weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    weight.grad = torch.tensor([complex(float("nan"), 5.0), 1 + 1j])
    ZeroNonFinite()({"weight": weight})
    assert weight.grad.tolist() == [0, 1 + 1j]


def test_noise_has_the_papers_variance_and_is_new_each_step() -> None:
    noise, seen = AddNoise(eta=0.3, gamma=0.55), []
    for step in range(4):
        weight = nn.Parameter(torch.zeros(200, 100))
        weight.grad = torch.ones(200, 100)
        noise({"weight": weight})
        assert weight.grad.var().item() == pytest.approx(0.3 / (1 + step) ** 0.55, rel=0.05)
        assert weight.grad.mean().item() == pytest.approx(1.0, abs=0.02)
        seen.append(weight.grad)
    assert abs(torch.corrcoef(torch.stack([s.flatten() for s in seen])).triu(1)).max() < 0.05


def test_noise_depends_on_seed_and_names() -> None:
    def draw(seed: int, name: str) -> Tensor:
        weight = nn.Parameter(torch.zeros(3))
        weight.grad = torch.zeros(3)
        AddNoise(seed=seed)({name: weight})
        return weight.grad

    assert torch.equal(draw(1, "a"), draw(1, "a"))
    assert not torch.equal(draw(1, "a"), draw(2, "a"))
    assert not torch.equal(draw(1, "a"), draw(1, "b"))

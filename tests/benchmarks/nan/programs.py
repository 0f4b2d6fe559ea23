"""Programs in which one unguarded operation makes NaN, at a step that is not measured, and their guarded twins.

The mechanisms are those of GRIST (Yan et al., Exposing numerical bugs in deep learning via gradient back-propagation,
ESEC/FSE 2021) and of public reports: log, root, division, power, exp, arc functions, and masks, at the end of a domain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Rule = Callable[[nn.Module, Tensor, Tensor, bool], Tensor]
STEPS, BAD = 45, 33  # the step that turns NaN is between two measured ones


@dataclass(frozen=True)
class Program:
    """An operation that makes NaN: ``rule`` computes the loss, from a bad row at one step, maybe with a guard."""

    rule: Rule
    operations: tuple[str, ...]
    extreme: float = 0.0  # value of the bad row


PROGRAMS: dict[str, Program] = {}


def program(name: str, *operations: str, extreme: float = 0.0) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        PROGRAMS[name] = Program(rule, operations, extreme)
        return rule

    return add


def data(extreme: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(STEPS, 16, 8, generator=generator)
    x[BAD, 0] = extreme
    return x, x[..., :4].tanh()


def fit(out: Tensor, y: Tensor) -> Tensor:
    return (out - y).square().mean()


@program("log of a softmax", "log", extreme=3000.0)
def log_softmax(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    p = (net(x) * x.abs().amax(1, keepdim=True)).softmax(1)
    return fit(net(x), y) - ((p + 1e-8) if safe else p).log().mean()


@program("log of a sigmoid", "log", extreme=3000.0)
def log_sigmoid(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    p = torch.sigmoid(-x.sum(1).abs())
    return fit(net(x), y) - (net(x).mean(1) * (p + (1e-8 if safe else 0)).log()).mean()


@program("own binary cross-entropy", "log", extreme=3000.0)
def own_entropy(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    p = torch.sigmoid(net(x)[:, 0] * x[:, 0].abs())
    p = p.clamp(1e-6, 1 - 1e-6) if safe else p
    t = (y[:, 0] > 0).float()
    return -(t * p.log() + (1 - t) * (1 - p).log()).mean()


@program("own cross-entropy with log of zero", "log", extreme=3000.0)
def own_softmax_entropy(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    p = torch.softmax(net(x) * x.abs().amax(1, keepdim=True), 1)
    return -(torch.ones_like(y) / 4 * torch.log(p + (1e-8 if safe else 0))).sum(1).mean()


@program("division by a deviation", "div")
def over_deviation(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    z = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + (1e-6 if safe else 0))
    return fit(net(z), y)


@program("division by a norm", "div")
def over_norm(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    return fit(net(x / (x.norm(dim=1, keepdim=True) + (1e-6 if safe else 0))), y)


@program("division by a range", "div")
def over_range(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return fit(net((x - low) / (high - low + (1e-6 if safe else 0))), y)


@program("softmax by exp", "exp", "div", extreme=3000.0)
def own_softmax(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    s = net(x)[:, :4] + x[:, :4]
    s = s - s.amax(1, keepdim=True) if safe else s
    return fit(s.exp() / s.exp().sum(1, keepdim=True), y)


@program("log of a sum of exp", "exp", extreme=3000.0)
def log_sum_exp(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    s = net(x) + x[:, :4]
    total = s.logsumexp(1) if safe else torch.log(torch.exp(s).sum(1))
    return (total - s[:, 0]).mean()


@program("softplus by exp", "exp", extreme=3000.0)
def own_softplus(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    s = net(x) + x[:, :4]
    return (nn.functional.softplus(s) if safe else torch.log(1 + s.exp())).mean()


@program("deviation from a log variance", "exp", extreme=-3000.0)
def from_log_variance(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    v = net(x) + x[:, :4]
    weight = torch.exp(-(v.clamp(-3, 3) if safe else v))
    return (weight * (net(x) - y).square()).mean() + v.clamp(-3, 3).mean()


@program("root of zero", "sqrt")
def root(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    return fit(net(x), y) + (net(x) * x[:, :4]).square().sum(1).add(1e-12 if safe else 0).sqrt().mean()


@program("power of a half at zero", "pow")
def half_power(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    return fit(net(x), y) + ((net(x) * x[:, :4]).abs() + (1e-9 if safe else 0)).pow(0.5).mean()


@program("root of a negative", "sqrt", extreme=5.0)
def negative_root(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    r = 8 - x.mean(1) * 4
    return fit(net(x), y) + (net(x).mean(1) * (r.clamp(min=1e-3) if safe else r).sqrt()).mean()


@program("log of a negative", "log", extreme=-50.0)
def negative_log(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    r = x.mean(1) + 3
    return fit(net(x), y) + (net(x).mean(1) * torch.log(r.clamp(min=1e-3) if safe else r)).mean()


@program("negative base of a power", "pow", extreme=-50.0)
def negative_power(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    r = x.mean(1) + 3
    return fit(net(x), y) + (net(x).mean(1) * (r.clamp(min=0) if safe else r) ** 1.5).mean()


@program("arc cosine at one", "acos")
def arc_cosine(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    c = 1 - x[:, :4].square().mean(1).clamp(max=1) * torch.sigmoid(net(x)[:, 0])
    return fit(net(x), y) + torch.acos(c.clamp(-1 + 1e-6, 1 - 1e-6) if safe else c).mean() * 0.1


@program("arc sine out of range", "asin", extreme=50.0)
def arc_sine(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    c = x.mean(1) / 4
    return fit(net(x), y) + (net(x).mean(1) * torch.asin(c.clamp(-0.99, 0.99) if safe else c)).mean()


@program("mean over an empty mask", "div")
def empty_mask(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    m = (x[:, 0] != 0).float()[:1]
    return fit(net(x), y) + (net(x)[:1].sum(1) * m).sum() / (m.sum().clamp(min=1) if safe else m.sum())


@program("softmax of a row that is all masked", "softmax")
def masked_row(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    gone = x[:, :4] == 0
    gone = gone & ~gone.all(1, keepdim=True) if safe else gone
    return fit(net(x).masked_fill(gone, float("-inf")).softmax(1), y)


@program("likelihood of a deviation of zero", "log", "div", "log_prob")
def likelihood(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    s = (net(x) * x[:, :4]).abs() + (1e-3 if safe else 0)
    return (((y - net(x)) / s).square().clamp(max=100) + torch.log(s)).mean()


@program("log_prob of a deviation that collapses", "log", "div", "log_prob")
def collapsed(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    s = x.abs().mean(1, keepdim=True) + (1e-3 if safe else 0)
    rule = torch.distributions.Normal(net(x), s.expand(-1, 4), validate_args=False)
    return -rule.log_prob(y).mean() * 0.01


@program("cosine by hand", "div")
def cosine(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    a, b = net(x) * x[:, :4], y
    return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + (1e-6 if safe else 0))).mean()


@program("where with a NaN branch: log", "log")
def where_log(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    h = (net(x) * x[:, :4]).abs()
    inner = torch.where(h > 0, h, 1.0) if safe else h
    return fit(net(x), y) + torch.where(h > 0, inner.log(), 0.0).mean() * 0.01


@program("where with a NaN branch: root", "sqrt")
def where_root(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    h = (net(x) * x[:, :4]).square()
    inner = torch.where(h > 0, h, 1.0) if safe else h
    return fit(net(x), y) + torch.where(h > 0, torch.sqrt(inner), 0.0).mean()


@program("where with a NaN branch: division", "div")
def where_division(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    h = net(x) * x[:, :4]
    inner = torch.where(h != 0, h, 1.0) if safe else h
    return fit(net(x), y) + torch.where(h != 0, h.square() / inner, 0.0).mean()


@program("reciprocal of a rate of zero", "reciprocal")
def inverse(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    rate = x.abs().mean(1) + (1e-2 if safe else 0)
    return (
        fit(net(x), y) + (net(x).mean(1) * rate.reciprocal().sub(1).tanh()).mean() + (rate * rate.reciprocal()).mean()
    )


@program("inverse root of a variance", "rsqrt")
def inverse_root(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    v = x.var(1, keepdim=True) + (1e-6 if safe else 0)
    return fit(net((x - x.mean(1, keepdim=True)) * torch.rsqrt(v)), y)


@program("logit of a probability of one", "logit", extreme=3000.0)
def own_logit(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    p = torch.sigmoid(x.mean(1))
    return fit(net(x), y) + (net(x).mean(1) * torch.logit(p, eps=1e-6 if safe else None)).mean()


@program("x log x at zero", "log")
def entropy(net: nn.Module, x: Tensor, y: Tensor, safe: bool) -> Tensor:
    p = (net(x) * x[:, :4]).square()
    return fit(net(x), y) + (p * (p + (1e-8 if safe else 0)).log()).mean() * 0.01

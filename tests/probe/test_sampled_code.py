"""The layers of a sampled code, and a code that says nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

import gradwatch

INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


class Coder(nn.Module):
    """An encoder of one or two heads, and a decoder."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.body, self.mean, self.log_var = nn.Linear(8, 16), nn.Linear(16, outputs), nn.Linear(16, outputs)
        self.decoder = nn.Linear(outputs, 8)

    def of_two_layers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).tanh()
        return self.mean(hidden), self.log_var(hidden)

    def of_one_layer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.mean(self.body(x).tanh()).chunk(2, 1)
        return mean, log_var.clamp(-10, 10)


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (mean.pow(2) + log_var.exp() - log_var - 1).sum(1).mean()


def by_exp(net: Coder) -> Tensor:
    mean, log_var = net.of_two_layers(INPUTS)
    code = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
    return functional.mse_loss(net.decoder(code), INPUTS) + divergence(mean, log_var)


def by_addcmul(net: Coder) -> Tensor:
    mean, log_var = net.of_two_layers(INPUTS)
    code = torch.addcmul(mean, torch.randn_like(mean), log_var.mul(0.5).exp())
    return functional.mse_loss(net.decoder(code), INPUTS) + divergence(mean, log_var)


def by_distribution(net: Coder) -> Tensor:
    mean, log_var = net.of_two_layers(INPUTS)
    code = Normal(mean, functional.softplus(log_var))
    known = kl_divergence(code, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    return functional.mse_loss(net.decoder(code.rsample()), INPUTS) + known.mean()


def by_chunks(net: Coder) -> Tensor:
    mean, log_var = net.of_one_layer(INPUTS)
    code = (log_var / 2).exp() * torch.randn_like(mean) + mean
    return functional.mse_loss(net.decoder(torch.cat([code, code], 1)), INPUTS) + divergence(mean, log_var)


def coupling(net: Coder) -> Tensor:
    """Change data by a shift and a scale, as the first layer of a flow does."""
    shift, scale = net.of_two_layers(INPUTS)
    changed = INPUTS[:, :2] * scale.exp() + shift
    return (changed.square() / 2).sum(1).mean() - scale.sum(1).mean()


def noisy(net: Coder) -> Tensor:
    return functional.mse_loss(net.decoder(net.mean(net.body(INPUTS)) + torch.randn(64, 2)), INPUTS)


Loss = Callable[[Coder], Tensor]


def watched(loss: Loss, steps: int = 1) -> gradwatch.Watcher:
    torch.manual_seed(0)
    net = Coder()
    rule = torch.optim.Adam(net.parameters(), 0.02)
    with gradwatch.watch(net, on_finding=lambda _: None) as watcher:
        for _ in range(steps):
            value = loss(net)
            rule.zero_grad()
            value.backward()
            watcher.step(rule, value)
    return watcher


@pytest.mark.parametrize("loss", [by_exp, by_addcmul, by_distribution])
def test_two_layers_give_a_code(loss: Loss) -> None:
    assert watched(loss).history[0].code == ("mean", "log_var")


def test_one_layer_may_give_both() -> None:
    assert watched(by_chunks).history[0].code == ("mean",)


@pytest.mark.parametrize("loss", [coupling, noisy])
def test_other_sums_are_no_code(loss: Loss) -> None:
    assert watched(loss).history[0].code == ()


@pytest.mark.parametrize("weight", [0.05, 30.0])
def test_a_code_that_collapses_is_told(weight: float) -> None:
    def loss(net: Coder) -> Tensor:
        mean, log_var = net.of_two_layers(INPUTS)
        code = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        error = (net.decoder(code) - INPUTS).square().sum(1).mean()
        return error + weight * divergence(mean, log_var)

    causes = [diagnosis.cause for diagnosis in watched(loss, 250).diagnosis()]
    assert ("posterior collapse" in causes) == (weight > 1)

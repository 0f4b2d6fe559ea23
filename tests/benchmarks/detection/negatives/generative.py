"""Healthy programs that learn without labels, or whose loss need not fall."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from networks import Transformer, mlp
from program import Batch, Case, Data, Program, adam, healthy, r_squared, sgd, squared_error
from sources import images
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

CODE = 8


def autoencoder(code: int = CODE, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(mlp(64, code, depth=1, act=act), mlp(code, 64, depth=1, act=act))


class Variational(nn.Module):
    """An encoder to a mean and a spread, and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 2 * CODE, depth=1), mlp(CODE, 64, depth=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)[:, :CODE])


def lower_bound(weight: float, network: nn.Module, batch: Batch) -> Tensor:
    """Squares of the reconstruction, and the divergence from a standard normal."""
    assert isinstance(network, Variational)
    mean, log_variance = network.encoder(batch[0]).chunk(2, 1)
    code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
    return functional.mse_loss(network.decoder(code), batch[0]) + weight * divergence


class Adversaries(nn.Module):
    """A generator of points and a critic of them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = mlp(4, 2, depth=2, width=32)
        self.critic = mlp(2, 1, depth=2, width=32, act=partial(nn.LeakyReLU, 0.2))

    def forward(self, x: Tensor) -> Tensor:
        return self.generator(torch.randn(len(x), 4, generator=torch.Generator().manual_seed(0)))


def both_sides(network: nn.Module, batch: Batch) -> Tensor:
    """The non-saturating game: the critic learns on detached points, the generator from a critic that stands still."""
    assert isinstance(network, Adversaries)
    made = network.generator(torch.randn(len(batch[0]), 4))
    critic = functional.softplus(-network.critic(batch[0])) + functional.softplus(network.critic(made.detach()))
    still = {name: param.detach() for name, param in network.critic.named_parameters()}
    return critic.mean() + functional.softplus(-functional_call(network.critic, still, made)).mean()


def points() -> Data:
    drawn = torch.randn(1000, 2, generator=torch.Generator().manual_seed(7)) * torch.tensor([0.5, 0.2])
    drawn = drawn + torch.tensor([2.0, -1.0])
    return Data((drawn[:800], drawn[:800]), (drawn[800:], drawn[800:]))


@torch.no_grad()
def nearness(network: nn.Module, batch: Batch) -> float:
    """The closeness of the mean of the generated points to that of the data."""
    return float(1 - (network(batch[0]).mean(0) - batch[0].mean(0)).norm() / batch[0].mean(0).norm())


def masked(network: nn.Module, batch: Batch) -> Tensor:
    """Rebuild an image from about half of its rows."""
    x = batch[0].reshape(-1, 8, 8)
    covered = (torch.rand(len(x), 8, 1) < 0.5).float()
    return functional.mse_loss(network((x * (1 - covered)).flatten(1)), batch[0])


class Rebuilt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Transformer(outputs=64)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.reshape(-1, 8, 8))


def learned() -> list[Case]:
    make = partial(healthy, "without labels")
    rebuild = Program(autoencoder, images, squared_error, r_squared, adam(3e-3), steps=200)
    game = Program(Adversaries, points, both_sides, nearness, adam(2e-3, betas=(0.5, 0.99)), steps=300)
    return [
        make("autoencoder", rebuild),
        make("autoencoder of two", replace(rebuild, network=partial(autoencoder, 2, nn.Tanh))),
        make("denoising", replace(rebuild, objective=denoised)),
        make("variational", replace(rebuild, network=Variational, objective=partial(lower_bound, 0.01))),
        make("variational, heavy prior", replace(rebuild, network=Variational, objective=partial(lower_bound, 0.1))),
        make("adversaries", game),
        make("adversaries sgd", replace(game, optimizer=sgd(0.05))),
        make("masked rows", replace(rebuild, network=Rebuilt, objective=masked, steps=120)),
    ]


def denoised(network: nn.Module, batch: Batch) -> Tensor:
    return functional.mse_loss(network(batch[0] + 0.5 * torch.randn_like(batch[0])), batch[0])


CASES = learned()

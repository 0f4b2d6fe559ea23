"""Sound programs that look ill: heavy tails, units at their bounds, gates that are shut, norms before tiny weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from harm.program import Program, adam, sgd
from torch import Tensor, nn
from torch.nn import functional as F


def noise(number: int, *shape: int, kind: int = 0) -> Tensor:
    """Numbers of a batch, always the same for its number."""
    generator = torch.Generator().manual_seed(7919 * (number + 100) + kind)
    return torch.randn(*shape, generator=generator)


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            layers += [*([nn.BatchNorm1d(b)] if norm else []), act()]
    return nn.Sequential(*layers)


def scaled(network: nn.Module, factor: float, only: str = "") -> nn.Module:
    with torch.no_grad():
        for name, param in network.named_parameters():
            if param.dim() > 1 and only in name:
                param.mul_(factor)
    return network


TRUE = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))


def classes(network: nn.Module, number: int, batch: int = 32) -> Tensor:
    size = batch if number >= 0 else 256
    x = noise(number, size, 8)
    return F.cross_entropy(network(x), (x @ TRUE).argmax(1))


def rare(network: nn.Module, number: int, batch: int = 8, share: float = 0.02, gamma: float = 0.0) -> Tensor:
    size = batch if number >= 0 else 1024
    x = noise(number, size, 8)
    odds = torch.rand(size, generator=torch.Generator().manual_seed(number + 9999)) < share
    x = x + 1.2 * odds[:, None]
    losses = F.binary_cross_entropy_with_logits(network(x)[:, 0], odds.float(), reduction="none")
    return ((1 - (-losses).exp()) ** gamma * losses).mean() if gamma else losses.mean()


def numbers(network: nn.Module, number: int, batch: int = 4, tail: float = 0.0, how: str = "mse") -> Tensor:
    size = batch if number >= 0 else 512
    x = noise(number, size, 8)
    y = (x @ TRUE)[:, :1] + (tail * torch.sinh(1.2 * noise(number, size, 1, kind=1)) if number >= 0 else 0)
    out = network(x)[:, :1]
    return {"mse": F.mse_loss, "huber": F.huber_loss, "l1": F.l1_loss}[how](out, y)


def counts(network: nn.Module, number: int, batch: int = 2) -> Tensor:
    size = batch if number >= 0 else 512
    x = noise(number, size, 8)
    rate = (x @ TRUE[:, 0] * 0.5).exp()
    y = torch.poisson(rate, generator=torch.Generator().manual_seed(number + 777))
    return F.poisson_nll_loss(network(x)[:, 0].clamp(max=5), y, full=True)


def skewed(network: nn.Module, number: int, batch: int = 4) -> Tensor:
    size = batch if number >= 0 else 512
    x = noise(number, size, 8)
    return F.mse_loss(network(x)[:, :1], (0.5 * x @ TRUE[:, :1]).exp().clamp(max=20))


def density(network: nn.Module, number: int, batch: int = 16) -> Tensor:
    size = batch if number >= 0 else 512
    x = noise(number, size, 8)
    y = 0.05 * (x @ TRUE)[:, :1] + 0.01 * noise(number, size, 1, kind=1)
    mean, log = network(x)[:, :1], network(x)[:, 1:2].clamp(-5, 5)
    return (0.5 * ((y - mean) / log.exp()) ** 2 + log).mean()


def hinge(network: nn.Module, number: int, batch: int = 2) -> Tensor:
    size = batch if number >= 0 else 512
    x = noise(number, size, 8)
    return F.multi_margin_loss(network(x), (x @ TRUE).argmax(1))


def triplets(network: nn.Module, number: int, batch: int = 4) -> Tensor:
    size = batch if number >= 0 else 256
    label = torch.randint(0, 4, (size,), generator=torch.Generator().manual_seed(number + 50))
    centers = 1.5 * TRUE.T
    a, p = (centers[label] + noise(number, size, 8, kind=k) for k in (1, 2))
    n = centers[(label + 1) % 4] + noise(number, size, 8, kind=3)
    return F.triplet_margin_loss(network(a), network(p), network(n))


def autoencode(network: nn.Module, number: int, batch: int = 16) -> Tensor:
    x = noise(number, batch if number >= 0 else 256, 4) @ TRUE.T
    return F.mse_loss(network(x), x)


class Last(nn.Module):
    """A recurrent network and a head on its last state."""

    def __init__(self, cell: type[nn.RNNBase], inputs: int, hidden: int, outputs: int, **options: int) -> None:
        super().__init__()
        self.cell, self.head = cell(inputs, hidden, batch_first=True, **options), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(x)[0][:, -1])
        return out


def first_sign(network: nn.Module, number: int, batch: int = 4, length: int = 12) -> Tensor:
    size = batch if number >= 0 else 256
    x = noise(number, size, length, 3)
    return F.cross_entropy(network(x), (x[:, :3].sum((1, 2)) > 0).long())


def mean_of(network: nn.Module, number: int, batch: int = 16, length: int = 59) -> Tensor:
    x = noise(number, batch if number >= 0 else 256, length, 2)
    return F.mse_loss(network(x), 3 * x[:, :, 0].mean(1, keepdim=True))


def policy(network: nn.Module, number: int, batch: int = 4) -> Tensor:
    """REINFORCE with a learned baseline on a contextual bandit: its loss is no measure of progress."""
    x = noise(number, batch, 8)
    logits, value = network(x)[:, :4], network(x)[:, 4]
    chosen = torch.distributions.Categorical(logits=logits)
    action = chosen.sample()
    reward = (action == (x @ TRUE).argmax(1)).float() * 4 - 1
    gain = (reward - value).detach()
    return (-gain * chosen.log_prob(action) + 0.5 * (reward - value) ** 2).mean() - 0.01 * chosen.entropy().mean()


def regret(network: nn.Module) -> float:
    x = noise(-1, 512, 8)
    return 1 - float((network(x)[:, :4].argmax(1) == (x @ TRUE).argmax(1)).float().mean())


def critic(network: nn.Module, number: int, batch: int = 4) -> Tensor:
    """A critic alone: rare large rewards."""
    size = batch if number >= 0 else 2048
    x = noise(number, size, 8)
    won = torch.rand(size, generator=torch.Generator().manual_seed(number + 31)) < 0.05
    return F.mse_loss(network(x)[:, 0], (x @ TRUE)[:, 0] + 8.0 * won * (number >= 0))


def with_sparse_units(share: float) -> nn.Sequential:
    """A wide ReLU layer of which so many units rest from the start."""
    network = mlp(8, 200, 4)
    with torch.no_grad():
        network[0].bias[: int(200 * share)] = -30.0
    return network


def tiny_before_norm(factor: float, layer: bool = False) -> nn.Module:
    network = mlp(8, 32, 32, 4, norm=True)
    if layer:
        network[1], network[4] = nn.LayerNorm(32), nn.LayerNorm(32)
    return scaled(network, factor, "0.")


small, wide = partial(mlp, 8, 32, 4), partial(mlp, 8, 64, 64, 4)
one = partial(mlp, 8, 32, 1)
tanh, sigmoid = partial(mlp, 8, 64, 4, act=nn.Tanh), partial(mlp, 8, 64, 4, act=nn.Sigmoid)
HEALTHY: dict[str, Program] = {
    "batches of 1": Program(small, partial(classes, batch=1), sgd(lr=0.03), 600),
    "batches of 2": Program(small, partial(classes, batch=2), sgd(lr=0.05), 600),
    "batches of 3, Adam": Program(wide, partial(classes, batch=3), adam(lr=3e-3), 600),
    "batches of 4": Program(wide, partial(classes, batch=4), sgd(lr=0.1), 600),
    "batches of 1, Adam": Program(wide, partial(classes, batch=1), adam(lr=1e-3), 800),
    "batches of 1, momentum": Program(small, partial(classes, batch=1), sgd(lr=3e-3, momentum=0.9), 800),
    "numbers, batches of 1": Program(one, partial(numbers, batch=1), sgd(lr=3e-3), 600),
    "numbers, batches of 2": Program(one, partial(numbers, batch=2), adam(lr=3e-3), 600),
    "heavy noise": Program(one, partial(numbers, tail=0.5), adam(lr=3e-3), 500),
    "heavy noise, Huber": Program(one, partial(numbers, tail=0.5, how="huber"), adam(lr=3e-3), 500),
    "heavy noise, absolute": Program(one, partial(numbers, tail=0.5, how="l1"), adam(lr=3e-3), 500),
    "rare class, 2 %": Program(one, rare, adam(lr=3e-3), 800),
    "rare class, 5 %, batches of 4": Program(one, partial(rare, batch=4, share=0.05), adam(lr=3e-3), 600),
    "rare class, 1 %, batches of 32": Program(one, partial(rare, batch=32, share=0.01), adam(lr=3e-3), 600),
    "rare class, focal": Program(one, partial(rare, share=0.05, gamma=2.0), adam(lr=3e-3), 600),
    "counts": Program(one, counts, adam(lr=3e-3), 600),
    "skewed targets": Program(one, skewed, adam(lr=3e-3), 600),
    "density": Program(partial(mlp, 8, 32, 2), density, adam(lr=3e-3), 400),
    "margins": Program(small, hinge, sgd(lr=0.05), 600),
    "triplets": Program(partial(mlp, 8, 32, 8), triplets, adam(lr=1e-3), 500),
    "critic of rare rewards": Program(one, critic, adam(lr=3e-3), 600),
    "actor and critic": Program(partial(mlp, 8, 32, 5), policy, adam(lr=3e-3), 1200, score=regret),
    "actor and critic, Tanh": Program(partial(mlp, 8, 32, 5, act=nn.Tanh), policy, adam(lr=3e-3), 1200, score=regret),
    "RNN, batches of 2": Program(
        partial(Last, nn.RNN, 3, 16, 2), partial(first_sign, batch=2, length=6), adam(lr=3e-3), 900
    ),
    "GRU, batches of 4": Program(partial(Last, nn.GRU, 3, 16, 2), partial(first_sign, length=6), adam(lr=1e-2), 600),
    "LSTM, batches of 2": Program(
        partial(Last, nn.LSTM, 3, 16, 2), partial(first_sign, batch=2, length=6), adam(lr=1e-2), 700
    ),
    "GRU over 59 steps": Program(partial(Last, nn.GRU, 2, 24, 1), mean_of, adam(lr=1e-2), 300),
    "LSTM over 40 steps": Program(partial(Last, nn.LSTM, 2, 24, 1), partial(mean_of, length=40), adam(lr=1e-2), 300),
    "Tanhs at their bounds": Program(lambda: scaled(tanh(), 8.0, "0."), partial(classes, batch=32), adam(lr=1e-2), 300),
    "Sigmoids at their bounds": Program(lambda: scaled(sigmoid(), 20.0, "0."), classes, adam(lr=1e-2), 300),
    "Sigmoids at their bounds, SGD": Program(lambda: scaled(sigmoid(), 20.0, "0."), classes, sgd(lr=0.3), 300),
    "Tanh features, autoencoder": Program(
        lambda: scaled(mlp(8, 64, 8, act=nn.Tanh), 8.0, "0."), autoencode, adam(lr=1e-2), 300
    ),
    "85 % of the units at rest": Program(partial(with_sparse_units, 0.85), classes, adam(lr=1e-2), 300),
    "90 % of the units at rest, SGD": Program(partial(with_sparse_units, 0.9), classes, sgd(lr=0.3), 300),
    "tiny weights before BatchNorm": Program(partial(tiny_before_norm, 1e-2), classes, adam(lr=3e-3), 200),
    "tinier weights before BatchNorm": Program(partial(tiny_before_norm, 1e-3), classes, adam(lr=3e-3), 200),
    "tiny weights before LayerNorm": Program(partial(tiny_before_norm, 1e-2, True), classes, adam(lr=3e-3), 200),
    "tiny weights before LayerNorm, SGD": Program(partial(tiny_before_norm, 2e-2, True), classes, sgd(lr=0.05), 200),
}

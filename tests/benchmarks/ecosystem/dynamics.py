"""Differential equations, spikes, and networks that keep a symmetry."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from ecosystem.data import digits, endless, explained, hits, loader, waves
from ecosystem.task import Learner, Program, Task
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, RMSprop


class Slope(nn.Module):
    """The network of torchdiffeq's ode_demo.py."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        for part in self.net:
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, mean=0, std=0.1)
                nn.init.constant_(part.bias, val=0)

    def forward(self, at: Tensor, y: Tensor) -> Tensor:
        return self.net(y**3)


def spiral(steps: int = 200) -> Task:
    """Learn the slope of a spiral from pieces of it; the score is the absolute error over all of it."""
    from torchdiffeq import odeint

    times = torch.linspace(0.0, 10.0, 400)
    turn, start = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]), torch.tensor([[2.0, 0.0]])
    with torch.no_grad():
        truth = odeint(lambda at, y: y**3 @ turn, start, times, method="rk4")
    network = Slope()

    def piece() -> tuple[Tensor, Tensor]:
        begin = torch.randint(0, 390, (20,))
        return truth[begin], torch.stack([truth[begin + at] for at in range(10)])

    def loss(network: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (odeint(network, batch[0], times[:10], method="rk4") - batch[1]).abs().mean()

    def score() -> float:
        begin = torch.arange(0, 390, 10)
        aim = torch.stack([truth[begin + at] for at in range(10)])
        return float(loss(network, (truth[begin], aim)))

    return Task(Learner(network, loss, partial(RMSprop, lr=1e-3)), endless(piece), score, steps)


def spikes() -> Task:
    """Recognize digits with the leaky neurons of snntorch's fifth tutorial, over 15 time steps."""
    import snntorch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(64, 128), snntorch.Leaky(beta=0.95)
            self.fc2, self.lif2 = nn.Linear(128, 10), snntorch.Leaky(beta=0.95)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            one, two, fired, charge = self.lif1.init_leaky(), self.lif2.init_leaky(), [], []
            for _ in range(15):
                spike, one = self.lif1(self.fc1(x), one)
                spike, two = self.lif2(self.fc2(spike), two)
                fired.append(spike)
                charge.append(two)
            return torch.stack(fired), torch.stack(charge)

    network, data = Net(), digits()

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        charge = network(batch[0].flatten(1))[1]
        return sum((functional.cross_entropy(one, batch[1]) for one in charge), torch.zeros(()))

    def score() -> float:
        return hits(network(data.test_inputs.flatten(1))[0].sum(0), data.test_targets)

    rule = partial(Adam, lr=5e-4, betas=(0.9, 0.999))
    return Task(Learner(network, loss, rule), loader(data.inputs, data.targets, batch=64), score, 120)


def liquid(kind: str, steps: int = 150, **config: Any) -> Task:
    """Predict the next value of waves with the cells of ncps."""
    import ncps.torch as cells
    from ncps.wirings import AutoNCP

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = getattr(cells, kind)(1, AutoNCP(16, 1), **config)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    network, rows = Net(), waves(800, 25)[..., None]

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        return functional.mse_loss(network(batch[0][:, :-1]), batch[0][:, 1:])

    def score() -> float:
        return explained(network(rows[600:, :-1]), rows[600:, 1:])

    return Task(Learner(network, loss, partial(Adam, lr=0.01)), loader(rows[:600]), score, steps)


def solids() -> Task:
    """Tell the shapes of e3nn's example on Tetris apart, in any position; the score is on new turns."""
    from e3nn import o3
    from e3nn.nn import Gate

    shapes = torch.tensor(
        [
            [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]],
            [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]], [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]],
            [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]], [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 1]],
        ], dtype=torch.float32,
    )  # fmt: skip
    sphere = o3.Irreps.spherical_harmonics(2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate("16x0e", [torch.tanh], "12x0e", [torch.sigmoid], "8x1o + 4x2e")
            self.first = o3.FullyConnectedTensorProduct(sphere, sphere, self.gate.irreps_in)
            self.final = o3.FullyConnectedTensorProduct(self.gate.irreps_out, sphere, "6x0e")

        def forward(self, places: Tensor) -> Tensor:
            apart = places[:, :, None] - places[:, None]
            shape = o3.spherical_harmonics(sphere, apart, True, normalization="component")
            near = (apart.norm(dim=-1, keepdim=True) < 1.1).float() * shape
            x = self.gate(self.first(near.sum(2), near.sum(2)) / 4**0.5)
            return self.final(x, near.sum(2)).mean(1)

    network = Net()

    def turned() -> tuple[Tensor, Tensor]:
        labels = torch.randint(6, (32,))
        return shapes[labels] @ o3.rand_matrix(32).transpose(1, 2), labels

    def loss(network: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(network(batch[0]), batch[1])

    def score() -> float:
        places, labels = turned()
        return hits(network(places), labels)

    return Task(Learner(network, loss, partial(Adam, lr=0.01)), endless(turned), score, 120)


DYNAMICS: dict[str, Program] = {
    "neural ODE": Program("torchdiffeq", "examples/ode_demo.py", spiral, "loss", 0.15),
    "spiking network": Program("snntorch", "the fifth tutorial", spikes, "accuracy", 0.7),
    "liquid network, CfC": Program("ncps", "the quickstart", partial(liquid, "CfC"), "R2", 0.7),
    "equivariant network": Program("e3nn", "examples/tetris.py", solids, "accuracy", 0.8),
}

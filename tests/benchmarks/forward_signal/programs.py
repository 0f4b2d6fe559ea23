"""Programs whose signal goes wrong on its way forward, their repaired twins, and programs that look like them.

Two kinds of fault: an activation without bound (exp, a power), whose twin has GELU, and a graph network so deep that
all nodes come to look alike, whose twin adds the first layer's output to each layer's. A fault counts only where its
run comes to a worse loss than its twin's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = Iterator[tuple[Tensor, Tensor]]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass
class Training:
    """A model, what it is trained on, and how."""

    model: nn.Module
    batches: Batches
    loss: Loss
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Program:
    """A training by its seed, with the causes that an expert would accept; without any it is healthy."""

    name: str
    make: Callable[[], Training]
    accepted: tuple[str, ...] = ()
    twin: Callable[[], Training] | None = None
    steps: int = 60
    never: tuple[str, ...] = field(default=("unbounded activation",))


INPUTS, CLASSES, WIDTH = 20, 5, 64
Activation = Callable[[Tensor], Tensor]
UNBOUNDED: dict[str, Activation] = {
    "exp": torch.exp, "square": torch.square, "cube": lambda x: x**3, "x |x|": lambda x: x * x.abs(),
    "sinh": torch.sinh, "fourth power": lambda x: x**4, "expm1": torch.expm1, "x exp": lambda x: x * x.exp(),
    "cubed ReLU": lambda x: F.relu(x) ** 3,
}  # fmt: skip
BOUNDED: dict[str, Activation] = {
    "relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu, "squared relu": lambda x: F.relu(x) ** 2,
    "fast sine": lambda x: torch.sin(30 * x), "elu": F.elu, "softplus": F.softplus,
    "bump": lambda x: torch.exp(-(x**2)),
    "snake": lambda x: x + torch.sin(5 * x) ** 2 / 5, "unit norm": lambda x: F.normalize(x, dim=1) * 8,
    "softmax": lambda x: F.softmax(x, 1) * 8, "signed root": lambda x: x.sign() * (x.abs() + 1e-3).sqrt(),
    "scaled tanh": lambda x: 8 * torch.tanh(x), "exp of a clamp": lambda x: torch.exp(x.clamp(max=1)),
    "log of exp": lambda x: torch.log1p(x.exp()),
}  # fmt: skip


class Layers(nn.Module):
    """Linears with a function of the forward pass between them."""

    def __init__(self, act: Activation, depth: int = 4, residual: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.act, self.residual = act, residual
        self.first = nn.Linear(INPUTS, WIDTH)
        self.hidden = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) if norm else nn.Identity() for _ in range(depth))
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        for norm, layer in zip(self.norms, self.hidden, strict=True):
            y = self.act(layer(norm(x)))
            x = x + y if self.residual else y
        return self.last(x)


class Convolutions(nn.Module):
    """Three convolutions with a function between them."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.act = act
        self.convolutions = nn.ModuleList(nn.Conv2d(i, 16, 3, padding=1) for i in (1, 16, 16))
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 5)).view(-1, 1, 5, 5)
        for convolution in self.convolutions:
            x = self.act(convolution(x))
        return self.last(x.mean((2, 3)))


class Module(nn.Module):
    """A module of the user's that holds the activation, as many write it."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def sequential(act: Activation) -> nn.Module:
    sizes = [(INPUTS, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)]
    hidden = [part for a, b in sizes for part in (nn.Linear(a, b), Module(act))]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


def entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), F.one_hot(y, CLASSES).float())


def classed(seed: int, scale: float = 1.0) -> Batches:
    """Yield batches of a linear rule with noise."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(INPUTS, CLASSES, generator=g)
    while True:
        x = torch.randn(64, INPUTS, generator=g)
        yield x * scale, (x @ w + 0.3 * torch.randn(64, CLASSES, generator=g)).argmax(1)


MODELS: dict[str, tuple[Callable[[Activation], nn.Module], Loss]] = {
    "mlp": (Layers, entropy),
    "residual": (lambda act: Layers(act, residual=True), entropy),
    "convolutions": (Convolutions, entropy),
    "regression": (Layers, squared),
    "modules": (sequential, entropy),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD 0.1": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "SGD 0.01": lambda m: torch.optim.SGD(m.parameters(), lr=0.01),
    "Adam 0.001": lambda m: torch.optim.Adam(m.parameters(), lr=1e-3),
    "Adam 0.01": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2),
}


def training(model: str, act: Activation, optimizer: str, seed: int) -> Training:
    torch.manual_seed(seed)
    build, loss = MODELS[model]
    built = build(act)
    return Training(built, classed(seed), loss, OPTIMIZERS[optimizer](built))


def unbounded(seed: int) -> Iterator[Program]:
    """Yield networks with an unbounded activation, their twins with GELU, and those with an odd one that is sound."""
    for optimizer in OPTIMIZERS:
        for model in MODELS:
            for name, act in (UNBOUNDED | BOUNDED).items():
                bad = name in UNBOUNDED
                yield Program(
                    f"{name}, {model}, {optimizer}",
                    lambda m=model, a=act, o=optimizer: training(m, a, o, seed),  # type: ignore[misc]
                    ("unbounded activation",) if bad else (),
                    (lambda m=model, o=optimizer: training(m, F.gelu, o, seed)) if bad else None,  # type: ignore[misc]
                )


class Other(nn.Module):
    """Networks that multiply or exponentiate by design."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.gate = nn.Linear(INPUTS, WIDTH), nn.Linear(INPUTS, WIDTH)
        self.second, self.third = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "gated products":
            y = F.silu(self.gate(x)) * self.first(x)
            y = F.silu(self.second(y)) * self.third(y)
        elif self.kind == "bilinear":
            y = self.gate(x) * self.first(x)
            y = self.second(y) * self.third(y)
        elif self.kind == "scale and shift":
            y = torch.exp(0.5 * torch.tanh(self.gate(x))) * self.first(x)
            y = torch.exp(self.second(y).tanh()) * y + self.third(y)
        elif self.kind == "sampled":
            y = self.first(x) + torch.exp(0.5 * self.gate(x)) * torch.randn(len(x), WIDTH)
            y = F.relu(self.third(F.relu(self.second(y))))
        elif self.kind == "attention by hand":
            q, k = self.first(x).view(-1, 8, 8), self.gate(x).view(-1, 8, 8)
            w = torch.exp(q @ k.transpose(1, 2) / 8)
            y = F.relu(self.second(((w / w.sum(2, keepdim=True)) @ q).flatten(1))) + self.third(q.flatten(1))
        else:  # energies of a spectrum
            y = torch.log1p(self.first(x).square())
            y = F.relu(self.third(torch.log1p(self.second(y).square())))
        return self.last(y)


def others(seed: int) -> Iterator[Program]:
    """Yield look-alikes, and runs whose trouble is another: none has an unbounded activation."""
    kinds = ["gated products", "bilinear", "scale and shift", "sampled", "attention by hand", "energies"]

    def of_kind(kind: str, optimizer: str) -> Training:
        torch.manual_seed(seed)
        model = Other(kind)
        return Training(model, classed(seed), entropy, OPTIMIZERS[optimizer](model))

    def sick(act: Activation, rate: float, scale: float, weights: float, momentum: float) -> Training:
        torch.manual_seed(seed)
        model = Layers(act)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(weights)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
        return Training(model, classed(seed, scale), entropy, optimizer)

    for kind in kinds:
        for optimizer in OPTIMIZERS:
            yield Program(f"{kind}, {optimizer}", lambda k=kind, o=optimizer: of_kind(k, o))  # type: ignore[misc]
    faults = {
        "rate": (10.0, 1.0, 1.0, 0.0), "rate, momentum": (2.0, 1.0, 1.0, 0.95), "inputs": (0.1, 1e3, 1.0, 0.0),
        "weights": (0.1, 1.0, 6.0, 0.0), "huge weights": (0.01, 1.0, 30.0, 0.9),
        "rate of thousands": (3e3, 1.0, 1.0, 0.0),
    }  # fmt: skip
    for name, (rate, scale, weights, momentum) in faults.items():
        for act_name in ("relu", "tanh", "gelu", "elu", "softplus", "snake"):
            act = BOUNDED[act_name]
            make = lambda a=act, r=rate, s=scale, w=weights, m=momentum: sick(a, r, s, w, m)  # type: ignore[misc] # noqa: E731
            yield Program(f"other trouble: {name}, {act_name}", make, ("",))


class Graph(nn.Module):
    """Layers that average over neighbours, with the inputs' features added to each, or not."""

    def __init__(self, adjacency: Tensor, depth: int, weights: str, keep: bool) -> None:
        super().__init__()
        self.adjacency, self.keep = adjacency, keep
        self.first = nn.Linear(INPUTS, 32)
        self.hidden = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth - 2))
        self.last = nn.Linear(32, CLASSES)
        for layer in [self.first, *self.hidden, self.last]:
            if weights == "Xavier":
                nn.init.xavier_uniform_(layer.weight)
            elif weights == "He":
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = start = F.relu(self.adjacency @ self.first(x))
        for layer in self.hidden:
            y = self.adjacency @ layer(x)
            x = F.relu(0.5 * y + 0.5 * start) if self.keep else F.relu(y)
        return self.adjacency @ self.last(x)


def alike(seed: int) -> Iterator[Program]:
    """Yield graph networks of many averages, and twins that keep the first layer's output."""

    def of(depth: int, weights: str, decay: float, keep: bool) -> Training:
        torch.manual_seed(seed)
        y = torch.randint(0, CLASSES, (300,))
        edge = (torch.rand(300, 300) < torch.where(y[:, None] == y, 0.08, 0.01)).float()
        edge = ((edge + edge.T) > 0).float().fill_diagonal_(1)
        x = torch.randn(300, INPUTS) + 0.7 * F.one_hot(y, INPUTS)
        model = Graph(edge / edge.sum(1, keepdim=True), depth, weights, keep)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=decay)
        return Training(model, itertools.repeat((x, y)), entropy, optimizer)

    for depth in (8, 16, 32):
        for weights in ("torch's", "Xavier", "He"):
            for decay in (0.0, 5e-4):
                yield Program(
                    f"graph, {depth} layers, {weights} weights, decay {decay}",
                    lambda d=depth, w=weights, c=decay: of(d, w, c, False),  # type: ignore[misc]
                    ("missing normalization or skip", "initialization too small"),
                    lambda d=depth, w=weights, c=decay: of(d, w, c, True),  # type: ignore[misc]
                    steps=150,
                )


FAMILIES: dict[str, Callable[[int], Iterator[Program]]] = {"unbounded": unbounded, "others": others, "alike": alike}

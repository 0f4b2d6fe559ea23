"""Small faulty programs with their repaired twins, by the kind of cure that they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from program import Case, Data, Program, accuracy, adam, cross_entropy, pair, r_squared, sgd, squared_error
from torch import Tensor, nn

WIDTH = 32


@cache
def waves(shift: float = 0.0, scale: float = 1.0) -> Data:
    """A smooth function of six features, of mean 0 and deviation 1 before ``shift`` and ``scale``."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1600, 6, generator=generator)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.5 * x[:, 3:4]
    y = scale * ((y - y.mean()) / y.std() + shift)
    return Data((x[:1200], y[:1200]), (x[1200:], y[1200:]))


@cache
def rings(scale: float = 1.0, center: float = 0.0) -> Data:
    """Three classes by the distance from the origin of a plane, in eight features."""
    generator = torch.Generator().manual_seed(6)
    plane = torch.randn(1600, 2, generator=generator)
    label = (plane.norm(dim=1) > 0.8).long() + (plane.norm(dim=1) > 1.5).long()
    turned = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0][:2]
    x = scale * (2 * plane @ turned + 0.1 * torch.randn(1600, 8, generator=generator)) + center
    return Data((x[:1200], label[:1200]), (x[1200:], label[1200:]))


@cache
def stripes() -> Data:
    """Images of 12 x 12 with stripes in one of four directions."""
    generator = torch.Generator().manual_seed(7)
    label = torch.randint(4, (1200,), generator=generator)
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    angle = label.float() * torch.pi / 4
    along = rows * torch.cos(angle)[:, None, None] + columns * torch.sin(angle)[:, None, None]
    phase = 6.3 * torch.rand(1200, 1, 1, generator=generator)
    x = (torch.sin(1.5 * along + phase) + 0.7 * torch.randn(1200, 12, 12, generator=generator))[:, None]
    return Data((x[:900], label[:900]), (x[900:], label[900:]))


@cache
def sums(steps: int = 40) -> Data:
    """The adding problem: the sum of the two marked numbers of a sequence (Hochreiter and Schmidhuber, 1997)."""
    generator = torch.Generator().manual_seed(8)
    numbers = torch.rand(3000, steps, generator=generator)
    marks = torch.zeros(3000, steps)
    half = steps // 2
    for start in (0, half):
        marks.scatter_(1, torch.randint(start, start + half, (3000, 1), generator=generator), 1.0)
    x, y = torch.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdim=True)
    return Data((x[:2600], y[:2600]), (x[2600:], y[2600:]))


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def mlp(
    inputs: int, outputs: int, depth: int = 2, activation: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None, end: Callable[[], nn.Module] | None = None,
    draw: Callable[[nn.Module], None] | None = None,
) -> nn.Module:  # fmt: skip
    """A network of Linears, with what stands between them and at the end."""
    layers: list[nn.Module] = []
    for place in range(depth):
        layers.append(nn.Linear(inputs if place == 0 else WIDTH, WIDTH))
        layers += [norm(WIDTH)] if norm else []
        layers.append(activation())
    layers.append(nn.Linear(WIDTH, outputs))
    layers += [end()] if end else []
    network = nn.Sequential(*layers)
    if draw is not None:
        network.apply(draw)
    return network


class EndsInFunction(nn.Module):
    """A regression whose forward calls the last activation as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.body(x))


def norm_weights(value: float) -> Callable[[nn.Module], None]:
    """Return a function that sets a normalization layer's weights."""

    def draw(layer: nn.Module) -> None:
        if isinstance(layer, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.constant_(layer.weight, value)

    return draw


def drawn_norms(layer: nn.Module) -> None:
    """Draw all weights with a deviation of 0.02, those of the normalization layers too."""
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(layer.weight)
    elif isinstance(layer, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
        nn.init.normal_(layer.weight, 0.0, 0.02)


def weights(std: float) -> Callable[[nn.Module], None]:
    """Return a function that draws a Linear's weights."""

    def draw(layer: nn.Module) -> None:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, std)

    return draw


def dead_biases(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear) and layer.out_features == WIDTH:
        nn.init.constant_(layer.bias, -6.0)


def convolutions(depth: int = 6, draw: Callable[[nn.Module], None] | None = None) -> nn.Module:
    """A convolutional network with BatchNorm."""
    layers: list[nn.Module] = []
    for place in range(depth):
        layers += [nn.Conv2d(1 if place == 0 else 12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    if draw is not None:
        network.apply(draw)
    return network


class Sums(nn.Module):
    """Residual sums without normalization, each branch of full size."""

    def __init__(self, blocks: int, norm: bool, size: float) -> None:
        super().__init__()
        self.start = nn.Linear(8, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH) if norm else nn.Identity(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
            for _ in range(blocks)
        )
        self.end = nn.Sequential(nn.LayerNorm(WIDTH) if norm else nn.Identity(), nn.Linear(WIDTH, 3))
        for block in self.blocks:
            nn.init.normal_(block[1].weight, 0.0, size / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = x + block(x)
        return self.end(x)


class Reader(nn.Module):
    """A recurrent network and a head on its last output."""

    def __init__(self, kind: type[nn.RNNBase], draw: Callable[[nn.RNNBase], None] | None = None) -> None:
        super().__init__()
        self.network = kind(2, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 1)
        if draw is not None:
            draw(self.network)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.network(x)[0][:, -1])


def opened(network: nn.RNNBase) -> None:
    """Draw orthogonal recurrent weights, gate by gate, and open the gate that keeps the state."""
    gates = network.weight_hh_l0.shape[0] // WIDTH
    with torch.no_grad():
        for gate in network.weight_hh_l0.chunk(gates):
            nn.init.orthogonal_(gate)
        if gates > 1:
            network.bias_hh_l0[WIDTH : 2 * WIDTH] = 1.0


class Normed(nn.Module):
    """A network whose hidden vector is divided by its length: of a ReLU it may be 0."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.body, self.end, self.eps = nn.Sequential(nn.Linear(8, 6), nn.ReLU()), mlp(6, 3), eps

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.end(x / (x.square().sum(1, keepdim=True) + self.eps).sqrt())


class Frozen(nn.Module):
    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.body, self.end, self.cut = mlp(8, WIDTH), nn.Linear(WIDTH, 3), cut

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.end(x.detach() if self.cut else x)


class Mixing(nn.Module):
    """Attention and feed-forward over the tokens, with sums and normalization or without both."""

    def __init__(self, sums: bool) -> None:
        super().__init__()
        self.look, self.feed = nn.MultiheadAttention(16, 2, batch_first=True), mlp(16, 16, 1, nn.GELU)
        self.norms, self.sums = nn.ModuleList(nn.LayerNorm(16) if sums else nn.Identity() for _ in range(2)), sums

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        y = self.look(y, y, y, need_weights=False)[0]
        x = x + y if self.sums else y
        y = self.feed(self.norms[1](x))
        return x + y if self.sums else y


class Tokens(nn.Module):
    """A transformer that reads the rows of an image."""

    def __init__(self, sums: bool, blocks: int = 6) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(12, 16), nn.Linear(16, 4)
        self.place = nn.Parameter(0.1 * torch.randn(12, 16))
        self.blocks = nn.ModuleList(Mixing(sums) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x[:, 0]) + self.place
        for block in self.blocks:
            x = block(x)
        return self.end(x.mean(1))


def bad_batch(step: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Put Inf into the batch of step 60."""
    return (batch[0] / 0.0, batch[1]) if step == 60 else batch


regression = Program(partial(mlp, 6, 1), waves, squared_error, r_squared, adam(3e-3), steps=250)
classes = Program(partial(mlp, 8, 3), rings, cross_entropy, accuracy, adam(3e-3), steps=250)
images = Program(convolutions, stripes, cross_entropy, accuracy, adam(3e-3), steps=120)
adding = Program(partial(Reader, nn.GRU, opened), sums, squared_error, r_squared, adam(5e-3), steps=700,
                 options={"gradient_clip_val": 1.0})  # fmt: skip


def _ends() -> list[Case]:
    """An activation on a regression's output that cannot reach the targets."""
    ends: list[tuple[str, Program, Callable[[], nn.Module]]] = [
        ("sigmoid", regression, nn.Sigmoid), ("relu", regression, nn.ReLU), ("tanh", regression, nn.Tanh),
        ("softmax", regression, partial(nn.Softmax, 1)),
        ("sigmoid of large", replace(regression, data=partial(waves, 3.0)), nn.Sigmoid),
        ("relu of negative", replace(regression, data=partial(waves, -3.0)), nn.ReLU),
        ("softplus", regression, nn.Softplus),
    ]  # fmt: skip
    cases = [
        pair("end", name, "out of reach", program, network=partial(mlp, 6, 1, end=end)) for name, program, end in ends
    ]
    return [*cases, pair("end", "sigmoid called as a function", "out of reach", regression, network=EndsInFunction)]


def _unbounded() -> list[Case]:
    """An activation, or a sum, that grows without bound."""
    deep = replace(classes, network=partial(mlp, 8, 3, 4))
    normed = partial(Sums, 16, True, 1.0)
    return [
        pair("unbounded", "exp", "unbounded", deep, network=partial(mlp, 8, 3, 4, Exp)),
        pair("unbounded", "square", "unbounded", deep, network=partial(mlp, 8, 3, 5, Square)),
        pair("unbounded", "residual sums", "unbounded", replace(classes, network=normed),
             network=partial(Sums, 40, False, 1.4)),
        pair("unbounded", "long residual sums", "unbounded", replace(classes, network=normed),
             network=partial(Sums, 80, False, 2.0)),
    ]  # fmt: skip


def _norms() -> list[Case]:
    """Weights of normalization layers that start far too small."""
    layers = replace(classes, network=partial(mlp, 8, 3, 5, norm=nn.LayerNorm))
    batches = replace(classes, network=partial(mlp, 8, 3, 6, norm=nn.BatchNorm1d), optimizer=sgd(0.05))
    return [
        pair("norms", "drawn, convolutions", "small", replace(images, optimizer=sgd(0.1)),
             network=partial(convolutions, 6, drawn_norms)),
        pair("norms", "drawn, deep convolutions", "small", replace(images, network=partial(convolutions, 10)),
             network=partial(convolutions, 10, drawn_norms)),
        pair("norms", "zero, convolutions", "zero", images, network=partial(convolutions, 6, norm_weights(0.0))),
        pair("norms", "drawn, LayerNorm", "small", layers,
             network=partial(mlp, 8, 3, 5, norm=nn.LayerNorm, draw=drawn_norms)),
        pair("norms", "zero, LayerNorm", "zero", layers,
             network=partial(mlp, 8, 3, 5, norm=nn.LayerNorm, draw=norm_weights(0.0))),
        pair("norms", "small, BatchNorm", "small", batches,
             network=partial(mlp, 8, 3, 6, norm=nn.BatchNorm1d, draw=norm_weights(0.01))),
    ]  # fmt: skip


def _recurrent() -> list[Case]:
    """A sequence whose start is forgotten."""
    large = replace(adding, optimizer=adam(1e-2))
    return [
        pair("recurrent", "RNN, adding", "recurrent depth", adding, network=partial(Reader, nn.RNN), options={}),
        pair("recurrent", "RNN, large steps", "recurrent depth", large, network=partial(Reader, nn.RNN), options={}),
        pair(
            "recurrent",
            "LSTM as torch draws it",
            "recurrent depth",
            adding,
            network=partial(Reader, nn.LSTM),
            options={},
        ),
    ]


def _others() -> list[Case]:
    """Kinds that the other benchmark has too, as a check."""
    frozen = replace(classes, network=partial(Frozen, False))
    deep = partial(mlp, 8, 3, 6)
    return [
        pair("others", "deep sigmoids", "saturating", replace(classes, network=deep),
             network=partial(mlp, 8, 3, 6, nn.Sigmoid)),
        pair("others", "small weights", "init",
             replace(classes, network=partial(deep, draw=weights((2 / WIDTH) ** 0.5)), optimizer=sgd(0.1)),
             network=partial(mlp, 8, 3, 6, draw=weights(0.01))),
        pair("others", "dead units", "dead", classes, network=partial(mlp, 8, 3, draw=dead_biases)),
        pair("others", "detached", "detached", frozen, network=partial(Frozen, True)),
        pair("others", "softmax twice", "head", replace(classes, optimizer=sgd(0.1)),
             network=partial(mlp, 8, 3, end=partial(nn.Softmax, 1))),
        pair("others", "unscaled input", "input", replace(classes, optimizer=sgd(0.1)), data=partial(rings, 200.0)),
        pair("nan", "rate", "rate", classes, optimizer=sgd(30.0)),
        pair("nan", "zero length", "operation", replace(classes, network=partial(Normed, 1e-6)),
             network=partial(Normed, 0.0)),
        pair("nan", "batch of Inf", "batch", classes, spoil=bad_batch),
        pair("nan", "scaled targets", "target", replace(regression, optimizer=sgd(0.05)),
             data=partial(waves, 3.0, 200.0)),
    ]  # fmt: skip


def _steps() -> list[Case]:
    """A function without a slope between two layers."""

    def between(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(mlp(8, WIDTH), Function(function), nn.Linear(WIDTH, 3))

    smooth = replace(classes, network=between(torch.tanh))
    return [
        pair("steps", "sign", "detached", smooth, network=between(torch.sign)),
        pair("steps", "rounding", "detached", smooth, network=between(torch.round)),
        pair("steps", "comparison", "detached", smooth, network=between(lambda x: (x > 0).float())),
    ]


def _transformers() -> list[Case]:
    """Attention without sums, and steps that no warm-up makes small."""
    tokens = Program(partial(Tokens, True), stripes, cross_entropy, accuracy, adam(4e-3), steps=200)
    return [
        pair("transformers", "without sums", "skips", tokens, network=partial(Tokens, False)),
        pair("transformers", "rate", "rate", tokens, optimizer=adam(0.4)),
    ]


def programs() -> list[Case]:
    """All programs."""
    made: list[Any] = [_ends(), _unbounded(), _norms(), _recurrent(), _others(), _steps(), _transformers()]
    return [case for group in made for case in group]

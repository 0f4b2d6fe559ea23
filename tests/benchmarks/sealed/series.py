"""Audio and time series: front ends, forecasts, separation, alignment."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, explained, hits, mlp, outputs, rng
from torch import Tensor, nn


def tones(count: int, seed: int, silent: bool = False) -> tuple[Tensor, Tensor]:
    """Give short waves of four pitches in noise; silence has a class of its own if asked for."""
    g = rng(seed)
    y = torch.randint(0, 4, (count,), generator=g)
    time = torch.arange(64.0)
    phase = 6.28 * torch.rand(count, 1, generator=g)
    x = torch.sin(phase + time * (0.3 + 0.25 * y[:, None])) + 0.5 * torch.randn(count, 64, generator=g)
    if silent:
        x[y == 3] = 0.0
    return x, y


class Frontend(LightningModule):
    """Classifies by the log power of Fourier bins, with a learned gain before them."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.window = nn.Parameter(torch.hann_window(64))
        self.head = mlp(33, 32, 4)

    def features(self, x: Tensor) -> Tensor:
        power = torch.fft.rfft(x * self.window).abs().pow(2)
        return torch.log(power) if self.fault == "log" else torch.log1p(power)

    def magnitude(self, x: Tensor) -> Tensor:
        parts = torch.view_as_real(torch.fft.rfft(x * self.window))
        return torch.sqrt(parts.pow(2).sum(-1) + (0 if self.fault == "sqrt" else 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.magnitude(x) if self.fault in ("sqrt", "magnitude") else self.features(x))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def frontend(bad: str, good: str, silent: bool = True) -> Callable[[bool, int], Setup]:
    def make(faulty: bool, seed: int) -> Setup:
        x, y = tones(1600, 1, silent)
        return Setup(
            Frontend(bad if faulty else good), batches(x, y, seed=seed), hits(*tones(400, 2, silent)), epochs=4
        )

    return make


def waves(count: int, seed: int) -> Tensor:
    """Give sums of two seasons with noise."""
    g = rng(seed)
    start = 60 * torch.rand(count, 1, generator=g) + torch.arange(33.0)
    x = torch.sin(start * 0.5) + 0.6 * torch.sin(start * 1.3 + 1)
    return x + 0.1 * torch.randn(count, 33, generator=g)


class Forecast(LightningModule):
    """Dilated causal convolutions that predict the next value."""

    def __init__(self, fault: str = "", lr: float = 3e-3) -> None:
        super().__init__()
        self.fault, self.lr = fault, lr
        self.layers = nn.ModuleList(nn.Conv1d(16 if i else 1, 16, 2, dilation=2 ** (i // 2)) for i in range(10))
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for i, layer in enumerate(self.layers):
            x = layer(F.pad(x, (2 ** (i // 2), 0)))
            x = torch.sigmoid(x) if self.fault == "sigmoid" else torch.relu(x)
        return self.head(x[:, :, -1]).squeeze(-1)

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(out, y)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.loss(self(batch[0][:, :-1]), batch[0][:, -1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Percentage(Forecast):
    """Weighs errors by the size of what was seen, which is 0 on closed days."""

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        floor = 0.0 if self.fault == "percent" else 1.0
        return ((out - y) / y.abs().clamp(min=floor)).abs().mean()


def forecast(fault: str, shift: float = 0.0, scale: float = 1.0) -> Callable[[bool, int], Setup]:
    def make(faulty: bool, seed: int) -> Setup:
        x, a = waves(1600, 1), waves(400, 2)
        if fault == "percent":
            x, a = x + 3, a + 3
            x[::190, -1] = 0.0
        if faulty:
            x, a = x * scale + shift, a * scale + shift
        kind = Percentage if fault == "percent" else Forecast
        module = kind(fault if faulty else "")
        return Setup(module, batches(x, seed=seed), explained(a[:, :-1], a[:, -1]), epochs=4)

    return make


class Separator(LightningModule):
    """Cleans a wave by a mask of its own; the loss is the negative scale-invariant ratio."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.eps = 0.0 if faulty else 1e-4
        self.net = nn.Sequential(nn.Conv1d(1, 24, 9, padding=4), nn.Tanh(), nn.Conv1d(24, 1, 9, padding=4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, None]).squeeze(1)

    def ratio(self, out: Tensor, goal: Tensor) -> Tensor:
        along = (out * goal).sum(1, keepdim=True) * goal / (goal.pow(2).sum(1, keepdim=True) + self.eps)
        rest = (out - along).pow(2).sum(1) + self.eps
        return 10 * torch.log10((along.pow(2).sum(1) + self.eps) / rest)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return -self.ratio(self(batch[0]), batch[1]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    g = rng(seed)
    goal = torch.sin(6 * torch.rand(count, 1, generator=g) + torch.arange(64.0) * 0.3)
    return goal + 0.7 * torch.randn(count, 64, generator=g), goal


def separation(faulty: bool, seed: int) -> Setup:
    x, goal = pairs(1600, 1)
    goal[::250] = 0.0  # nobody speaks
    a, b = pairs(300, 2)

    def score(module: LightningModule) -> float:
        ratio = Separator(False).ratio(outputs(module, a), b).mean().item()
        return ratio if math.isfinite(ratio) else math.nan

    return Setup(Separator(faulty), batches(x, goal, seed=seed), score, epochs=4)


class Correlated(Forecast):
    """Maximizes the correlation with the target; the head starts at zero."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(fault)
        if fault == "flat":
            nn.init.zeros_(self.head.weight)

    def correlation(self, out: Tensor, y: Tensor) -> Tensor:
        out, y = out - out.mean(), y - y.mean()
        return (out * y).sum() / (out.norm() * y.norm())

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        return 1 - self.correlation(out, y)


def correlated(fault: str) -> Callable[[bool, int], Setup]:
    def make(faulty: bool, seed: int) -> Setup:
        a = waves(400, 2)

        def score(module: Correlated) -> float:
            value = module.correlation(outputs(module, a[:, :-1]), a[:, -1]).item()
            return value if math.isfinite(value) else math.nan

        return Setup(Correlated(fault if faulty else ""), batches(waves(1600, 1), seed=seed), score, epochs=3)

    return make


class Speller(LightningModule):
    """Reads a row of tones as a word of digits with CTC; some words are longer than their recording."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.net = nn.Sequential(nn.Conv1d(5, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).permute(2, 0, 1)

    def alignment(self, x: Tensor, word: Tensor, size: Tensor) -> Tensor:
        logs = self(x).log_softmax(-1)
        long = torch.full((len(x),), logs.shape[0])
        return F.ctc_loss(logs, word, long, size, zero_infinity=not self.faulty)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.alignment(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def words(count: int, seed: int, long: bool) -> tuple[Tensor, Tensor, Tensor]:
    g = rng(seed)
    word = torch.randint(1, 6, (count, 13), generator=g)
    size = torch.full((count,), 4)
    x = F.one_hot(word[:, :4].repeat_interleave(3, 1) - 1, 5).float().transpose(1, 2)
    if long:
        size[::200] = 13  # more letters than the 12 frames
    return x + 0.3 * torch.randn(x.shape, generator=g), word, size


def speller(faulty: bool, seed: int) -> Setup:
    x, word, size = words(300, 2, False)

    def score(module: Speller) -> float:
        module.eval()
        with torch.no_grad():
            value = -F.ctc_loss(module(x).log_softmax(-1), word, torch.full((300,), 12), size).item()
        return value if math.isfinite(value) else math.nan

    return Setup(Speller(faulty), batches(*words(1600, 1, True), seed=seed), score, epochs=4)


class Seasonal(LightningModule):
    """A GRU that is fed its own forecasts for eight steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(1, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t : t + 1], h)
        outs = [self.head(h)]
        for _ in range(7):
            h = self.cell(outs[-1], h)
            outs.append(self.head(h))
        return torch.cat(outs, 1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.l1_loss(self(batch[0][:, :16]), batch[0][:, 16:24])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def seasonal(_: bool, seed: int) -> Setup:
    a = waves(400, 2)
    return Setup(Seasonal(), batches(waves(1600, 1), seed=seed), explained(a[:, :16], a[:, 16:24]), epochs=3)


PROGRAMS = (
    Program("log-of-silence", "audio", "practice of log-mel front ends", frontend("log", ""),
            "The logarithm of silence's power is -inf.", "Uses log1p.", "log in Frontend.features"),
    Program("root-of-silence", "audio", "https://github.com/pytorch/pytorch/issues/2421", frontend("sqrt", "magnitude"),
            "The root of re^2 + im^2 has no derivative for silence.", "Adds an epsilon.", "sqrt in Frontend.magnitude"),
    Program("sigmoids-in-dilated-stack", "time series", "", forecast("sigmoid"),
            "Ten sigmoid layers let the gradient fade on its way to the first.", "Uses ReLU."),
    Program("level-not-removed", "time series", "practice", forecast("level", 5000.0, 20.0),
            "The series' level of 5000 isn't removed, and the forecast is busy with it to the end.", "Standardizes."),
    Program("percent-of-closed-day", "time series", "practice", forecast("percent"),
            "Errors are divided by targets that are 0 on closed days.", "Gives the divisor a floor.",
            "div in Percentage.loss"),
    Program("separation-of-silence", "audio", "practice of SI-SNR losses", separation,
            "The scale-invariant ratio divides by the energy of a silent target.", "Adds an epsilon.",
            "div in Separator.ratio"),
    Program("correlation-of-constant", "time series", "", correlated("flat"),
            "The head starts at zero, so forecasts are constant and their correlation is 0/0.", "Starts as usual.",
            "div in Correlated.correlation"),
    Program("word-longer-than-sound", "audio", "practice of CTC", speller,
            "CTC is infinite for words longer than their recording.", "Zeroes infinite losses.",
            "ctc_loss in Speller.alignment"),
    Program("log-power-tones", "audio", "", frontend("", "", False)),
    Program("gru-own-forecasts", "time series", "", seasonal),
)  # fmt: skip

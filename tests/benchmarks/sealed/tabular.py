"""Tables: regression, counts, survival, rare classes, missing values."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, cancer, diabetes, explained, friedman, hits, mlp, outputs, rng, signs
from torch import Tensor, nn


class Regressor(LightningModule):
    def __init__(self, fault: str = "", width: int = 10) -> None:
        super().__init__()
        self.fault = fault
        self.net = mlp(width, 48, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        out = self(x)
        if self.fault == "broadcast":
            return ((out - y) ** 2).mean()
        return ((out.squeeze(-1) - y) ** 2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def broadcast(faulty: bool, seed: int) -> Setup:
    x, y, a, b = friedman()
    return Setup(Regressor("broadcast" if faulty else ""), batches(x, y, seed=seed), explained(a, b), epochs=4)


def big_target(faulty: bool, seed: int) -> Setup:
    x, y, a, b = friedman()
    if faulty:  # house prices as they are
        y, b = y * 60_000 + 180_000, b * 60_000 + 180_000
    return Setup(Regressor(), batches(x, y, seed=seed), explained(a, b), epochs=4)


class ChurnModel(LightningModule):
    """Binary cross-entropy by hand, with sums of its own kind."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.net = mlp(30, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        p = torch.sigmoid(self(x))
        if not self.faulty:
            p = p.clamp(1e-6, 1 - 1e-6)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def log_of_zero(faulty: bool, seed: int) -> Setup:
    x, y, a, b = cancer()
    x = x.clone()
    x[5] *= 60  # one row in another unit
    return Setup(ChurnModel(faulty), batches(x, y.float(), seed=seed, size=16), signs(a, b), epochs=5)


class Imputer(LightningModule):
    """Replaces missing values by a learned vector."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.fill = nn.Parameter(torch.zeros(30))
        self.net = mlp(30, 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        known = torch.isfinite(x)
        x = x * known + self.fill * ~known if self.faulty else torch.where(known, x, self.fill)
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def nan_times_zero(faulty: bool, seed: int) -> Setup:
    x, y, a, b = cancer()
    lost = torch.rand(x.shape, generator=rng(4)) < 0.1
    x = x.masked_fill(lost, float("nan"))
    return Setup(Imputer(faulty), batches(x, y, seed=seed, size=16), hits(a, b), epochs=6)


def rare(count: int, seed: int) -> tuple[Tensor, Tensor]:
    g = rng(seed)
    x = torch.randn(count, 8, generator=g)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + 0.4 * torch.randn(count, generator=g) > 2.6).float()
    return x, y


class Fraud(LightningModule):
    """Weighs the rare class by what each batch has of it."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.net = mlp(8, 32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def weight(self, y: Tensor) -> Tensor:
        if self.fault == "inverse":
            return torch.tensor(0.05)
        if self.fault == "batch":
            return (1 - y).sum() / y.sum()
        return (1 - y).sum() / y.sum().clamp(min=1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y, pos_weight=self.weight(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def fraud(fault: str):
    def make(faulty: bool, seed: int) -> Setup:
        return Setup(
            Fraud(fault if faulty else ""), batches(*rare(4000, 1), seed=seed), signs(*rare(2000, 2)), epochs=2
        )

    return make


class CountModel(LightningModule):
    """Poisson regression of daily counts on raw columns."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.net = mlp(6, 32, 1)

    def rate(self, x: Tensor) -> Tensor:
        return torch.exp(self.net(x).squeeze(-1))

    def forward(self, x: Tensor) -> Tensor:
        return self.rate(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        rate = self.rate(x)
        return (rate - y * torch.log(rate + 1e-8)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def count_overflow(faulty: bool, seed: int) -> Setup:
    g = rng(1)
    unit = torch.rand(2000, 6, generator=g) - 0.5
    raw = unit * torch.tensor([4e3, 5e3, 3e3, 6e3, 5e3, 2e3])
    y = torch.poisson(torch.exp(1 + 2 * unit[:, 0] - 4 * unit[:, 1] * unit[:, 2]), generator=g)
    x = raw if faulty else unit * 2
    return Setup(CountModel(faulty), batches(x[:1600], y[:1600], seed=seed), explained(x[1600:], y[1600:]), epochs=4)


class Quantile(LightningModule):
    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.levels = torch.tensor([0.1, 0.5, 0.9])
        self.net = mlp(10, 48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        off = self(x) - y[:, None] if self.faulty else y[:, None] - self(x)
        return torch.maximum(self.levels * off, (self.levels - 1) * off).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def quantile(faulty: bool, seed: int) -> Setup:
    x, y, a, b = friedman()
    levels = torch.tensor([0.1, 0.5, 0.9])

    def score(module: LightningModule) -> float:
        off = b[:, None] - outputs(module, a)
        return -torch.maximum(levels * off, (levels - 1) * off).mean().item()

    return Setup(Quantile(faulty), batches(x, y, seed=seed), score, epochs=4)


class Survival(LightningModule):
    """Cox regression over a whole batch."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.risk = mlp(6, 24, 1, act=nn.ELU)

    def forward(self, x: Tensor) -> Tensor:
        return self.risk(x).squeeze(-1)

    def partial_likelihood(self, risk: Tensor, time: Tensor, seen: Tensor) -> Tensor:
        risk, seen = risk[order := torch.argsort(time, descending=True)], seen[order]
        pool = torch.log(torch.cumsum(torch.exp(risk), 0)) if self.faulty else torch.logcumsumexp(risk, 0)
        return -((risk - pool) * seen).sum() / seen.sum()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, time, seen = batch
        return self.partial_likelihood(self(x), time, seen)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def cox(faulty: bool, seed: int) -> Setup:
    g = rng(1)
    x = torch.randn(2000, 6, generator=g) * torch.tensor([1.0, 1, 1, 1, 1, 6000.0])  # a lab value in its own unit
    time = -torch.rand(2000, generator=g).log() / torch.exp(x[:, 0] - x[:, 1] + 0.0003 * x[:, 5])
    seen = (torch.rand(2000, generator=g) < 0.7).float()
    a, b = x[1600:], time[1600:]

    def score(module: LightningModule) -> float:
        out = outputs(module, a)
        later = b[:, None] > b[None]
        return (
            (later & (out[:, None] < out[None])).sum().item() / later.sum().item() if out.isfinite().all() else math.nan
        )

    loader = batches(x[:1600], time[:1600], seen[:1600], seed=seed, size=64)
    return Setup(Survival(faulty), loader, score, epochs=8)


class Normalizer(LightningModule):
    """Standardizes each batch by its own statistics; one column is nearly always zero."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.eps = 0.0 if faulty else 1e-5
        self.net = mlp(11, 48, 1)

    def standardize(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.standardize(x)).squeeze(-1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.huber_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.NAdam(self.parameters(), lr=5e-3)


def constant_column(faulty: bool, seed: int) -> Setup:
    x, y, a, b = friedman()
    flag, held = (torch.arange(len(x)) % 40 == 0).float()[:, None], (torch.arange(len(a)) % 40 == 0).float()[:, None]
    x, a = torch.cat([x, flag], 1), torch.cat([a, held], 1)
    return Setup(Normalizer(faulty), batches(x, y, seed=seed), explained(a, b), epochs=4)


class Ridge(Regressor):
    """Adds a penalty of its own."""

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        size = sum(p.pow(2).sum() for p in self.net.parameters())
        return super().training_step(batch, index) + (-0.1 if self.fault else 1e-4) * size


def penalty_sign(faulty: bool, seed: int) -> Setup:
    x, y, a, b = diabetes()
    return Setup(Ridge("sign" if faulty else ""), batches(x, y, seed=seed, size=16), explained(a, b), epochs=8)


class Gaussian(LightningModule):
    """Predicts a mean and a variance; its loss becomes negative."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(10, 48, 2, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        mean, raw = self.net(batch[0]).unbind(-1)
        return F.gaussian_nll_loss(mean, batch[1], F.softplus(raw) + 1e-4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def heteroscedastic(_: bool, seed: int) -> Setup:
    x, y, a, b = friedman()
    return Setup(Gaussian(), batches(x, y, seed=seed), explained(a, b), epochs=5)


class Student(Regressor):
    """Fits outliers with a heavy-tailed likelihood, as a sum."""

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        off = self(batch[0]).squeeze(-1) - batch[1]
        return torch.log1p(off**2 / 0.25).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def outliers(_: bool, seed: int) -> Setup:
    x, y, a, b = friedman()
    hit = torch.rand(len(y), generator=rng(8)) < 0.08
    y = y + hit * 50 * torch.randn(len(y), generator=rng(9))
    return Setup(Student(), batches(x, y, seed=seed), explained(a, b), epochs=4)


class WideDeep(LightningModule):
    """Sums sparse embeddings of ids, most of which a batch doesn't touch, with a dense part; two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.ids = nn.Embedding(300, 1, sparse=True)
        self.deep = mlp(5, 24, 1)
        nn.init.zeros_(self.ids.weight)

    def forward(self, x: Tensor) -> Tensor:
        return (self.ids(x[:, 5].long()) + self.deep(x[:, :5])).squeeze(-1)

    def training_step(self, batch: list[Tensor], _: int) -> None:
        for opt in self.optimizers():
            opt.zero_grad()
        self.manual_backward(F.mse_loss(self(batch[0]), batch[1]))
        for opt in self.optimizers():
            opt.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.SparseAdam(self.ids.parameters(), lr=0.1),
            torch.optim.Adam(self.deep.parameters(), lr=5e-3),
        ]


def wide_deep(_: bool, seed: int) -> Setup:
    g = rng(1)
    ids = torch.randint(0, 300, (4000,), generator=g)
    x = torch.cat([torch.randn(4000, 5, generator=g), ids[:, None].float()], 1)
    y = torch.randn(300, generator=g)[ids] + x[:, 0] * x[:, 1]
    return Setup(WideDeep(), batches(x[:3400], y[:3400], seed=seed), explained(x[3400:], y[3400:]), epochs=2)


PROGRAMS = (
    Program("column-against-row", "tabular", "practice", broadcast,
            "Predictions (N, 1) minus targets (N,) broadcast to N x N, so the mean is fitted.", "Squeezes."),
    Program("prices-unscaled", "tabular", "practice", big_target,
            "Targets near 180000 make SGD's first gradients huge and the weights leave at once.", "Standardizes them."),
    Program("log-of-zero-probability", "tabular", "", log_of_zero,
            "A saturated sigmoid gives exactly 0 or 1 and the hand-written log of it is -inf, times 0 is NaN.",
            "Clamps the probability.", "log in ChurnModel.training_step"),
    Program("nan-times-zero", "tabular", "", nan_times_zero,
            "Missing values are masked by multiplying with 0, and NaN times 0 is NaN.", "Uses torch.where.",
            "mul in Imputer.forward"),
    Program("class-weight-inverted", "tabular", "practice", fraud("inverse"),
            "The positive weight is the share of the rare class and not its inverse.", "Weighs by the inverse."),
    Program("weight-of-absent-class", "tabular", "practice", fraud("batch"),
            "A batch without a positive gives a weight of 1/0 = inf, times 0 is NaN.", "Clamps the count to one.",
            "div in Fraud.weight"),
    Program("poisson-raw-columns", "tabular", "", count_overflow,
            "exp of a net over raw columns of thousands overflows.", "Scales the columns.", "exp in CountModel.rate"),
    Program("pinball-sign", "tabular", "", quantile,
            "The pinball loss has prediction and target swapped, so upper and lower quantiles change places.",
            "Subtracts the prediction from the target."),
    Program("cox-exp-overflow", "tabular", "Cox 1972, practice of DeepSurv", cox,
            "log(cumsum(exp(risk))) overflows for large risks.", "Uses logcumsumexp.",
            "exp in Survival.partial_likelihood"),
    Program("constant-column-in-batch", "tabular", "", constant_column,
            "Batches in which a rare flag is constant have deviation 0, and 0/0 is NaN.", "Adds an epsilon.",
            "div in Normalizer.standardize"),
    Program("penalty-with-minus", "tabular", "", penalty_sign,
            "The L2 penalty is subtracted, so the weights grow without bound.", "Adds it."),
    Program("gaussian-likelihood", "tabular", "Nix and Weigend 1994", heteroscedastic),
    Program("student-sum-outliers", "tabular", "", outliers),
    Program("wide-deep-sparse", "tabular", "Cheng et al. 2016", wide_deep),
)  # fmt: skip

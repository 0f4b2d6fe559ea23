"""Generative models: VAE, GAN, flow, diffusion, quantized codes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, digits, explained, mlp, moons, rng
from torch import Tensor, nn


class VAE(LightningModule):
    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.encoder, self.decoder = mlp(64, 64, 16), mlp(8, 64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(self.encoder(x)[:, :8]))

    def sample(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)

    def divergence(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return -0.5 * (1 + log_var - mean.pow(2) - torch.exp(log_var)).sum(1).mean()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (x,) = batch
        mean, log_var = self.encoder(x).chunk(2, 1)
        if self.fault != "overflow":
            log_var = log_var.clamp(-20, 20)
        out = self.decoder(self.sample(mean, log_var))
        each = F.binary_cross_entropy_with_logits(out, x.clamp(0, 1), reduction="none")
        weight = min(1.0, self.global_step / 100) if self.fault == "warm" else 1.0
        lost = each.mean() if self.fault == "collapse" else each.sum(1).mean()
        return lost + weight * self.divergence(mean, log_var)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def vae(fault: str):
    def make(faulty: bool, seed: int) -> Setup:
        x, _, a, _ = digits()
        x, a = x.flatten(1), a.flatten(1)
        if fault == "overflow":
            x = x.clone()
            x[3] *= 2e4  # one damaged file
        return Setup(VAE(fault if faulty or fault == "warm" else ""), batches(x, seed=seed), explained(a, a), epochs=6)

    return make


class GAN(LightningModule):
    """Learns a shifted normal in two dimensions."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.automatic_optimization = False
        self.fault = fault
        self.maker, self.critic = mlp(4, 32, 2), mlp(2, 32, 32, 1, act=nn.LeakyReLU)

    def forward(self, z: Tensor) -> Tensor:
        return self.maker(z)

    def adversarial(self, x: Tensor, fake: Tensor) -> Tensor:
        one, two = self.critic(x), self.critic(fake)
        return F.softplus(-one).mean() + F.softplus(two).mean()

    def training_step(self, batch: list[Tensor], _: int) -> None:
        (x,) = batch
        make_opt, judge_opt = self.optimizers()
        fake = self(torch.randn(len(x), 4))
        judge_opt.zero_grad()
        self.manual_backward(self.adversarial(x, fake.detach()))
        judge_opt.step()
        make_opt.zero_grad()
        fake = fake.detach().requires_grad_() if self.fault == "detached" else self(torch.randn(len(x), 4))
        self.manual_backward(F.softplus(-self.critic(fake)).mean())
        make_opt.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        one = torch.optim.Adam(self.maker.parameters(), lr=5e-3, betas=(0.5, 0.9))
        return [one, torch.optim.Adam(self.critic.parameters(), lr=5e-3, betas=(0.5, 0.9))]


def near(real: Tensor):
    """Score by the distance of the samples' mean and deviation."""

    def score(module: LightningModule) -> float:
        with torch.no_grad():
            fake = module(torch.randn(1000, 4, generator=rng(5)))
        if not fake.isfinite().all():
            return math.nan
        return -((fake.mean(0) - real.mean(0)).norm() + (fake.std(0) - real.std(0)).norm()).item()

    return score


def gan(fault: str):
    def make(faulty: bool, seed: int) -> Setup:
        x = torch.randn(9600, 2, generator=rng(1)) * torch.tensor([0.5, 1.0]) + torch.tensor([2.0, -1.0])
        return Setup(GAN(fault if faulty else ""), batches(x, seed=seed), near(x), epochs=1)

    return make


class Wasserstein(GAN):
    """A critic with the gradient penalty."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        nn.init.zeros_(self.critic[-1].weight)

    def penalty(self, x: Tensor, fake: Tensor) -> Tensor:
        mid = torch.lerp(x, fake, torch.rand(len(x), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(mid).sum(), mid, create_graph=True)
        square = slope.pow(2).sum(1)
        return (torch.sqrt(square if self.faulty else square + 1e-8) - 1).pow(2).mean()

    def adversarial(self, x: Tensor, fake: Tensor) -> Tensor:
        return self.critic(fake).mean() - self.critic(x).mean() + 5 * self.penalty(x, fake)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        one = torch.optim.Adam(self.maker.parameters(), lr=3e-3, betas=(0.0, 0.9))
        return [one, torch.optim.Adam(self.critic.parameters(), lr=1e-2, betas=(0.0, 0.9))]


def wgan(faulty: bool, seed: int) -> Setup:
    x = torch.randn(9600, 2, generator=rng(1)) * torch.tensor([0.5, 1.0]) + torch.tensor([2.0, -1.0])
    return Setup(Wasserstein(faulty), batches(x, seed=seed), near(x), epochs=1)


class Flow(LightningModule):
    """Affine couplings on two dimensions; the loss is a negative log-likelihood."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.parts = nn.ModuleList(mlp(1, 48, 2) for _ in range(4))

    def couple(self, part: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x[:, :1], x[:, 1:]
        scale, shift = part(kept).chunk(2, 1)
        if self.fault != "unbounded":
            scale = torch.tanh(scale) * 2
        return torch.cat([moved * torch.exp(scale) + shift, kept], 1), scale.squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x))
        for part in self.parts:
            x, scale = self.couple(part, x)
            total = total + scale
        return total - 0.5 * x.pow(2).sum(1) - math.log(2 * math.pi)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x = batch[0]
        if self.fault != "sign":
            return -self(x).mean()
        total = torch.zeros(len(x))
        for part in self.parts:
            x, scale = self.couple(part, x)
            total = total + scale
        return (total + 0.5 * x.pow(2).sum(1)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def likelihood(a: Tensor):
    def score(module: LightningModule) -> float:
        with torch.no_grad():
            value = module(a).mean().item()
        return value if math.isfinite(value) else math.nan

    return score


def flow(fault: str):
    def make(faulty: bool, seed: int) -> Setup:
        x, _, a, _ = moons()
        if fault == "unbounded" and faulty:
            x, a = x * 300, a * 300
        return Setup(Flow(fault if faulty else ""), batches(x, seed=seed), likelihood(a), epochs=5)

    return make


class Diffusion(LightningModule):
    """Predicts the noise that was added to a point."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.net = mlp(3, 64, 64, 2, act=nn.SiLU)

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return torch.cos(t) * x + torch.sin(t) * noise

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, t], 1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (x,) = batch
        t, noise = torch.rand(len(x), 1) * 1.5, torch.randn_like(x)
        seen = torch.randn_like(x) if self.fault == "other" else noise
        return F.mse_loss(self(self.noised(x, t, seen), t), noise)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def diffusion(fault: str):
    def make(faulty: bool, seed: int) -> Setup:
        x, _, a, _ = moons()
        t, noise = torch.rand(len(a), 1, generator=rng(2)) * 1.5, torch.randn(a.shape, generator=rng(3))

        def score(module: LightningModule) -> float:
            with torch.no_grad():
                return 1 - F.mse_loss(module(module.noised(a, t, noise), t), noise).item()

        return Setup(Diffusion(fault if faulty else ""), batches(x, seed=seed), score, epochs=5)

    return make


class Codebook(LightningModule):
    """Codes an image by the nearest of 16 vectors, four times."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.encoder, self.decoder = mlp(64, 64, 16), mlp(16, 64, 64)
        self.codes = nn.Embedding(16, 4)

    def nearest(self, z: Tensor) -> Tensor:
        return self.codes(torch.cdist(z, self.codes.weight).argmin(-1))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.nearest(self.encoder(x).unflatten(1, (4, 4))).flatten(1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (x,) = batch
        z = self.encoder(x).unflatten(1, (4, 4))
        q = self.nearest(z)
        pull = F.mse_loss(q, z.detach()) + (0 if self.faulty else 0.25 * F.mse_loss(z, q.detach()))
        passed = q if self.faulty else z + (q - z).detach()
        return F.mse_loss(self.decoder(passed.flatten(1)), x) * 10 + pull

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def codebook(faulty: bool, seed: int) -> Setup:
    x, _, a, _ = digits()
    x, a = x.flatten(1), a.flatten(1)
    return Setup(Codebook(faulty), batches(x, seed=seed), explained(a, a), epochs=6)


class Score(Diffusion):
    """Denoising score matching at one scale, as a sum."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, torch.zeros_like(t)], 1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        noise = torch.randn_like(batch[0])
        return ((self(batch[0] + 0.3 * noise, noise[:, :1]) * 0.3 + noise) ** 2).sum()


def score_matching(_: bool, seed: int) -> Setup:
    x, _y, a, _b = moons()
    noise = torch.randn(a.shape, generator=rng(3))

    def score(module: LightningModule) -> float:
        with torch.no_grad():
            return 1 - F.mse_loss(module(a + 0.3 * noise, a[:, :1]) * -0.3, noise).item()

    return Setup(Score(), batches(x, seed=seed), score, epochs=5)


PROGRAMS = (
    Program("vae-mean-against-sum", "generative models", "practice", vae("collapse"),
            "The reconstruction is a mean over pixels and the divergence a sum, so the code collapses.", "Sums both."),
    Program("vae-variance-overflow", "generative models",
            "https://github.com/vanderschaarlab/synthcity/issues/331", vae("overflow"),
            "exp of an unbounded log variance overflows at a damaged row.", "Clamps the log variance.",
            "exp in VAE.sample"),
    Program("generator-detached", "generative models", "practice", gan("detached"),
            "The generator's step judges a detached fake, so it gets no gradient.", "Makes the fake anew."),
    Program("penalty-at-zero-slope", "generative models", "https://github.com/pytorch/pytorch/issues/2421", wgan,
            "The critic starts flat, and the root of its squared slope has no derivative at 0.", "Adds an epsilon.",
            "sqrt in Wasserstein.penalty"),
    Program("flow-determinant-sign", "generative models", "", flow("sign"),
            "The log determinant is added to the loss and not subtracted, so the flow shrinks all.", "Subtracts it."),
    Program("flow-unbounded-scale", "generative models", "Dinh et al. 2017", flow("unbounded"),
            "The couplings' scale has no bound and the data are in the hundreds, so exp overflows.",
            "Bounds the scale with tanh and scales the data.", "exp in Flow.couple"),
    Program("noise-drawn-twice", "generative models", "", diffusion("other"),
            "The noise that is added and the noise that is the target are two draws.", "Draws once."),
    Program("codes-without-straight-through", "generative models", "van den Oord et al. 2017", codebook,
            "No gradient passes the codes' argmin, so the encoder doesn't learn.", "Passes it straight through."),
    Program("vae-warming-up", "generative models", "Bowman et al. 2016", vae("warm")),
    Program("gan", "generative models", "", gan("")),
    Program("flow-likelihood", "generative models", "Dinh et al. 2017", flow("")),
    Program("score-matching-sum", "generative models", "Vincent 2011", score_matching),
)  # fmt: skip

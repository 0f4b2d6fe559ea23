"""Reinforcement learning on small problems: bandits, chains, a point to steer."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, mlp, rng
from torch import Tensor, nn

RULE = torch.randn(4, 5, generator=rng(77))


def reward(state: Tensor, action: Tensor) -> Tensor:
    """Pay 1 for the best of five actions in a state, else 0."""
    return ((state @ RULE).argmax(1) == action).float()


def states(count: int, seed: int) -> Tensor:
    return torch.randn(count, 4, generator=rng(seed))


def earns(module: LightningModule) -> float:
    """Score the greedy policy's mean reward."""
    x = states(800, 9)
    with torch.no_grad():
        out = module(x)
    return reward(x, out.argmax(1)).mean().item() if out.isfinite().all() else math.nan


def choose(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Draw actions by Gumbel noise; give them and all logarithms of probabilities."""
    noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-9, 1 - 1e-6)))
    return (logits.detach() + noise).argmax(1), logits.log_softmax(1)


class Bandit(LightningModule):
    """REINFORCE in one step, with a critic as baseline."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.actor, self.critic = mlp(4, 32, 5, act=nn.Tanh), mlp(4, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.actor(x)

    def advantages(self, paid: Tensor, value: Tensor) -> Tensor:
        return paid - value.detach()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (x,) = batch
        action, logs = choose(self(x))
        paid, value = reward(x, action), self.critic(x).squeeze(-1)
        gain = logs.gather(1, action[:, None]).squeeze(1) * self.advantages(paid, value)
        policy = gain.mean() if self.fault == "sign" else -gain.mean()
        return policy + 0.5 * F.mse_loss(value, paid) + 0.005 * (logs.exp() * logs).sum(1).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def bandit(fault: str):
    def make(faulty: bool, seed: int) -> Setup:
        return Setup(Bandit(fault if faulty else ""), batches(states(6400, 1), seed=seed), earns, epochs=1)

    return make


class Episodes(Bandit):
    """Normalizes the advantages within episodes, some of which end after one step."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty

    def advantages(self, paid: Tensor, value: Tensor) -> Tensor:
        cuts = [10, 1, 9, 12] if torch.rand(()) < 0.2 else [10, 10, 12]
        parts = [self.standard(p) for p in torch.split(paid - value.detach(), cuts)]
        return torch.cat(parts)

    def standard(self, gain: Tensor) -> Tensor:
        return (gain - gain.mean()) / (gain.std(unbiased=self.faulty) + 1e-6)


def one_step_episode(faulty: bool, seed: int) -> Setup:
    return Setup(Episodes(faulty), batches(states(6400, 1), seed=seed), earns, epochs=1)


class Proximal(Bandit):
    """PPO with four passes over each batch; the fault's ratio lacks the old policy's logarithm."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.faulty = faulty

    def training_step(self, batch: list[Tensor], _: int) -> None:
        opt = self.optimizers()
        (x,) = batch
        with torch.no_grad():
            old = torch.distributions.Categorical(logits=self(x))
            action = old.sample()
            before, paid = old.log_prob(action), reward(x, action)
        for _pass in range(4):
            value = self.critic(x).squeeze(-1)
            now = torch.distributions.Categorical(logits=self(x)).log_prob(action)
            if self.faulty:
                now = now.detach()
            ratio, gain = torch.exp(now - before), self.advantages(paid, value)
            kept = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
            opt.zero_grad()
            self.manual_backward(F.mse_loss(value, paid) - kept)
            opt.step()


def proximal(faulty: bool, seed: int) -> Setup:
    return Setup(Proximal(faulty), batches(states(3200, 1), seed=seed), earns, epochs=1)


class Squashed(LightningModule):
    """A Gaussian policy through tanh with SAC's correction; the goal lies at the edge of the range."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.eps = 0.0 if faulty else 1e-6
        self.net = mlp(4, 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.net(x)[:, 0])

    def log_prob(self, raw: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        normal = -0.5 * ((raw - mean) / spread) ** 2 - torch.log(spread)
        return normal - torch.log(1 - torch.tanh(raw) ** 2 + self.eps)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (x,) = batch
        mean, raw = self.net(x).unbind(1)
        spread = F.softplus(raw) + 0.05
        draw = mean + spread * torch.randn_like(mean)
        paid = -((torch.tanh(draw) - torch.sign(x[:, 0]) * 1.5) ** 2) * 20
        return (0.05 * self.log_prob(draw, mean, spread) - paid).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def squashed(faulty: bool, seed: int) -> Setup:
    x = states(800, 9)

    def score(module: LightningModule) -> float:
        with torch.no_grad():
            return -((module(x) - torch.sign(x[:, 0])) ** 2).mean().item()

    return Setup(Squashed(faulty), batches(states(9600, 1), seed=seed), score, epochs=1)


class Chain(LightningModule):
    """Q-learning on a line of eight cells; only the last cell pays, and ends the episode."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.net = mlp(8, 32, 2)
        self.old = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, s: Tensor) -> Tensor:
        return self.net(F.one_hot(s, 8).float())

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        s, a = batch
        if index % 10 == 0 and self.fault != "stale":
            self.old.load_state_dict(self.net.state_dict())
        after = (s + 2 * a - 1).clamp(0, 7)
        paid, end = (after == 7).float(), (after == 7).float()
        ahead = self.old(F.one_hot(after, 8).float()).max(1).values
        goal = paid + (1.2 * ahead if self.fault == "endless" else 0.9 * ahead * (1 - end))
        return F.mse_loss(self(s).gather(1, a[:, None]).squeeze(1), goal)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=1e-2)


def truth(module: LightningModule) -> float:
    """Score the values' nearness to the true ones."""
    s = torch.arange(7)
    with torch.no_grad():
        off = module(s).max(1).values - 0.9 ** (6 - s)
    return 1 - off.abs().mean().item()


def chain(fault: str):
    def make(faulty: bool, seed: int) -> Setup:
        g = rng(1)
        s, a = torch.randint(0, 7, (9600,), generator=g), torch.randint(0, 2, (9600,), generator=g)
        return Setup(Chain(fault if faulty else ""), batches(s, a, seed=seed), truth, epochs=1)

    return make


class Steered(LightningModule):
    """Learns a controller by the gradient through ten steps of a known motion."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(2, 24, 1, act=nn.Tanh)

    def cost(self, x: Tensor) -> Tensor:
        total = torch.zeros(())
        for _ in range(10):
            push = self.net(x).squeeze(-1)
            x = torch.stack([x[:, 0] + 0.3 * x[:, 1], x[:, 1] + 0.3 * push], 1)
            total = total + x[:, 0].pow(2).mean() + 0.01 * push.pow(2).mean()
        return total

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.cost(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def steered(_: bool, seed: int) -> Setup:
    x = states(400, 3)[:, :2]

    def score(module: Any) -> float:
        with torch.no_grad():
            return -module.cost(x).item()

    return Setup(Steered(), batches(states(4800, 1)[:, :2], seed=seed), score, epochs=1)


class TwoOptimizers(Bandit):
    """Actor and critic with an optimizer each; the critic steps twice as often."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:
        (x,) = batch
        actor, critic = self.optimizers()
        choice = torch.distributions.Categorical(logits=self(x))
        action = choice.sample()
        paid, value = reward(x, action), self.critic(x).squeeze(-1)
        critic.zero_grad()
        self.manual_backward(F.smooth_l1_loss(value, paid))
        critic.step()
        if index % 2:
            actor.zero_grad()
            self.manual_backward(-(choice.log_prob(action) * (paid - value.detach())).mean())
            actor.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adam(self.actor.parameters(), lr=2e-2),
            torch.optim.RMSprop(self.critic.parameters(), lr=5e-3),
        ]


def two_optimizers(_: bool, seed: int) -> Setup:
    return Setup(TwoOptimizers(), batches(states(9600, 1), seed=seed), earns, epochs=1)


PROGRAMS = (
    Program("policy-gradient-sign", "reinforcement learning", "practice", bandit("sign"),
            "The policy's loss has the wrong sign, so paid actions become rarer.", "Negates it."),
    Program("episode-of-one-step", "reinforcement learning", "practice",
            one_step_episode, "The unbiased deviation of an episode of one step is NaN.", "Uses the biased one.",
            "std in Episodes.standard"),
    Program("ratio-without-graph", "reinforcement learning", "Schulman et al. 2017", proximal,
            "PPO's new log-probability is detached, so the actor doesn't learn.", "Keeps its graph."),
    Program("squash-correction", "reinforcement learning", "Haarnoja et al. 2018", squashed,
            "log(1 - tanh^2) has no epsilon and is -inf at the edge.", "Adds one.", "log in Squashed.log_prob"),
    Program("bootstrap-past-the-end", "reinforcement learning", "practice", chain("endless"),
            "Values bootstrap past the end with a discount above 1, so they grow without bound.",
            "Stops at the end and discounts by 0.9."),
    Program("target-never-synced", "reinforcement learning", "practice of DQN", chain("stale"),
            "The target network stays as it started.", "Copies the net every ten steps."),
    Program("steering-through-time", "reinforcement learning", "", steered),
    Program("two-optimizers-actor-critic", "reinforcement learning", "", two_optimizers),
)  # fmt: skip

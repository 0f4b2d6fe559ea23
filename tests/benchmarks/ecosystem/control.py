"""Policies that learn by trying, with the networks of Stable-Baselines3 on gymnasium's tasks."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import numpy as np
import torch
from ecosystem.data import endless, hits, loader
from ecosystem.task import Learner, Program, Task
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, AdamW, RMSprop


def reward(task: str, act: Any, games: int = 5) -> float:
    """Return the mean return of a policy."""
    import gymnasium

    world, total = gymnasium.make(task), 0.0
    for game in range(games):
        seen, _ = world.reset(seed=100 + game)
        over = False
        while not over:
            seen, gain, done, late, _ = world.step(act(torch.as_tensor(seen)[None])[0].numpy())
            total, over = total + float(gain), done or late
    return total / games


class Rollouts:
    """Steps of several CartPoles under a policy, with advantages (GAE), in minibatches."""

    def __init__(self, policy: Any, worlds: int, length: int, epochs: int, discount: float, trace: float) -> None:
        import gymnasium

        self.policy, self.length, self.epochs, self.discount, self.trace = policy, length, epochs, discount, trace
        self.worlds = [gymnasium.make("CartPole-v1") for _ in range(worlds)]
        self.seen = np.stack([world.reset(seed=at)[0] for at, world in enumerate(self.worlds)])
        self.waiting: deque[tuple[Tensor, ...]] = deque()

    def __call__(self) -> tuple[Tensor, ...]:
        if not self.waiting:
            self.waiting.extend([self.collected()] * self.epochs)
        return self.waiting.popleft()

    @torch.no_grad()
    def collected(self) -> tuple[Tensor, ...]:
        rows: list[tuple[Tensor, ...]] = []
        for _ in range(self.length):
            seen = torch.tensor(self.seen)  # a copy, as the worlds go on
            actions, values, chances = self.policy(seen)
            gains, ends = self.moved(actions.tolist())
            rows.append((seen, actions, values[:, 0], chances, torch.tensor(gains), torch.tensor(ends)))
        seen, actions, values, chances, gains, ends = (torch.stack(column) for column in zip(*rows, strict=True))
        later = torch.cat([values[1:], self.policy.predict_values(torch.as_tensor(self.seen, dtype=torch.float32)).T])
        advantages, carried = torch.zeros_like(values), torch.zeros(values.shape[1])
        for at in reversed(range(self.length)):
            error = gains[at] + self.discount * later[at] * (1 - ends[at]) - values[at]
            carried = error + self.discount * self.trace * (1 - ends[at]) * carried
            advantages[at] = carried
        return tuple(part.flatten(0, 1) for part in (seen, actions, chances, advantages, advantages + values))

    def moved(self, actions: list[int]) -> tuple[list[float], list[float]]:
        gains, ends = [], []
        for at, (world, action) in enumerate(zip(self.worlds, actions, strict=True)):
            self.seen[at], gain, done, late, _ = world.step(action)
            gains.append(float(gain))
            ends.append(float(done or late))
            if done or late:
                self.seen[at] = world.reset()[0]
        return gains, ends


def actor_critic(clipped: bool, steps: int = 300) -> Task:
    """Balance a pole with PPO, or with A2C where nothing is clipped; settings of the RL Zoo."""
    import gymnasium
    from stable_baselines3.common.policies import ActorCriticPolicy

    world = gymnasium.make("CartPole-v1")
    policy = ActorCriticPolicy(world.observation_space, world.action_space, lambda _: 1e-3)
    feed = Rollouts(policy, 8, 32, 20, 0.98, 0.8) if clipped else Rollouts(policy, 16, 8, 1, 0.99, 1.0)

    def loss(policy: Any, batch: tuple[Tensor, ...]) -> Tensor:
        seen, actions, chances, advantages, returns = batch
        values, now, _ = policy.evaluate_actions(seen, actions)
        if clipped:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            ratio = (now - chances).exp()
            gain = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        else:
            gain = now * advantages
        return -gain.mean() + 0.5 * functional.mse_loss(returns, values.flatten())

    def score() -> float:
        return reward("CartPole-v1", lambda seen: policy(seen)[0], 8)

    rule = partial(Adam, lr=1e-3, eps=1e-5) if clipped else partial(RMSprop, lr=2e-3, alpha=0.99, eps=1e-5)
    return Task(Learner(policy, loss, rule), endless(feed), score, steps, {"gradient_clip_val": 0.5})


class Replay:
    """What happened on a task, to draw batches from; each draw first takes some steps."""

    def __init__(self, task: str, act: Any, each: int, batch: int, first: int) -> None:
        import gymnasium

        self.world, self.act, self.each, self.batch = gymnasium.make(task), act, each, batch
        self.world.action_space.seed(0)
        self.seen, _ = self.world.reset(seed=0)
        self.kept: deque[tuple[Any, ...]] = deque(maxlen=10_000)
        self.draws = 0
        for _ in range(first):
            self.step(self.world.action_space.sample())

    def step(self, action: Any) -> None:
        after, gain, done, late, _ = self.world.step(action)
        self.kept.append((self.seen, action, float(gain), after, float(done)))
        self.seen = self.world.reset()[0] if done or late else after

    def __call__(self) -> list[Tensor]:
        self.draws += 1
        for _ in range(self.each):
            with torch.no_grad():
                self.step(self.act(torch.as_tensor(self.seen, dtype=torch.float32)[None], self.draws))
        rows = [self.kept[int(at)] for at in torch.randint(len(self.kept), (self.batch,))]
        return [torch.as_tensor(np.asarray(column), dtype=torch.float32) for column in zip(*rows, strict=True)]


def deep_q(steps: int = 1000) -> Task:
    """Balance a pole with a deep Q network; settings of CleanRL's dqn.py, with fewer steps."""
    import gymnasium
    from stable_baselines3.dqn.policies import DQNPolicy

    world = gymnasium.make("CartPole-v1")
    policy = DQNPolicy(world.observation_space, world.action_space, lambda _: 1e-3)
    network, target, calls = policy.q_net, policy.q_net_target, [0]

    def act(seen: Tensor, draws: int) -> int:
        chance = max(0.05, 1 - draws / (0.4 * steps))
        return int(torch.randint(2, ())) if torch.rand(()) < chance else int(network(seen).argmax())

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        seen, actions, gains, after, ends = batch
        calls[0] += 1
        if calls[0] % 50 == 0:
            target.load_state_dict(network.state_dict())
        with torch.no_grad():
            aim = gains + 0.99 * target(after).amax(1) * (1 - ends)
        return functional.smooth_l1_loss(network(seen).gather(1, actions.long()[:, None])[:, 0], aim)

    feed = Replay("CartPole-v1", act, 4, 128, 500)
    learner = Learner(network, loss, partial(Adam, lr=1e-3))
    return Task(learner, endless(feed), lambda: reward("CartPole-v1", lambda seen: network(seen).argmax(-1)), steps)


class DeepDeterministic(LightningModule):
    """DDPG with the networks of Stable-Baselines3: an actor and a critic, each with an optimizer and a slow copy."""

    def __init__(self) -> None:
        import gymnasium
        from stable_baselines3.td3.policies import TD3Policy

        super().__init__()
        self.automatic_optimization = False
        world = gymnasium.make("Pendulum-v1")
        wide = {"net_arch": [64, 64], "n_critics": 1}
        policy = TD3Policy(world.observation_space, world.action_space, lambda _: 1e-3, **wide)
        self.actor, self.critic = policy.actor, policy.critic
        self.slow = nn.ModuleList([policy.actor_target, policy.critic_target]).requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        seen, actions, gains, after, ends = batch
        for_critic, for_actor = self.optimizers()
        with torch.no_grad():
            (later,) = self.slow[1](after, self.slow[0](after))
            aim = gains[:, None] / 8 + 0.98 * later * (1 - ends[:, None])
        loss = functional.mse_loss(self.critic(seen, actions / 2)[0], aim)
        for optimizer, part in ((for_critic, "critic"), (for_actor, "actor")):
            self.toggle_optimizer(optimizer)
            loss = loss if part == "critic" else -self.critic.q1_forward(seen, self.actor(seen)).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        for slow, part in zip(self.slow, (self.actor, self.critic), strict=True):
            for old, new in zip(slow.parameters(), part.parameters(), strict=True):
                old.lerp_(new.detach(), 0.02)

    def configure_optimizers(self) -> Any:
        return [Adam(part.parameters(), lr=1e-3) for part in (self.critic, self.actor)]


def pendulum() -> Task:
    """Swing a pendulum up; the score is the return, -1200 at first."""
    module = DeepDeterministic()

    def act(seen: Tensor, draws: int) -> Any:
        return (2 * module.actor(seen)[0] + 0.3 * torch.randn(1)).clamp(-2, 2).numpy()

    feed = Replay("Pendulum-v1", act, 2, 128, 400)
    return Task(module, endless(feed), lambda: reward("Pendulum-v1", lambda seen: 2 * module.actor(seen), 8), 1500)


def decisions() -> Task:
    """Imitate a player that follows a rule with the Decision Transformer; the score is the share of its moves."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    config = DecisionTransformerConfig(state_dim=4, act_dim=2, hidden_size=32, n_layer=2, n_head=2, max_ep_len=32)
    network = DecisionTransformerModel(config)
    states = torch.randn(800, 12, 4, generator=torch.Generator().manual_seed(0))
    moves = (states[..., 0] + states[..., 1] > 0).long()

    def guessed(network: Any, states: Tensor, moves: Tensor) -> Tensor:
        count, length = states.shape[:2]
        known = {"attention_mask": torch.ones(count, length), "timesteps": torch.arange(length).expand(count, -1)}
        gains = torch.ones(count, length, 1)
        actions = functional.one_hot(moves, 2).float()
        return network(states=states, actions=actions, rewards=gains, returns_to_go=gains, **known).action_preds

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        guess = guessed(network, *batch)
        return functional.mse_loss(guess, functional.one_hot(batch[1], 2).float())

    def score() -> float:
        return hits(guessed(network, states[600:], moves[600:]), moves[600:])

    rule = partial(AdamW, lr=1e-3, weight_decay=1e-4)
    return Task(
        Learner(network, loss, rule),
        loader(states[:600], moves[:600], batch=64),
        score,
        120,
        {"gradient_clip_val": 0.25},
    )


player = partial(Program, "stable_baselines3")

CONTROL: dict[str, Program] = {
    "PPO": player("the RL Zoo's settings for CartPole", partial(actor_critic, True, 500), "return", 60),
    "A2C": player("the RL Zoo's settings for CartPole", partial(actor_critic, False, 600), "return", 50),
    "DQN": player("CleanRL's dqn.py", deep_q, "return", 60),
    "DDPG": player("the RL Zoo's settings for Pendulum", pendulum, "return", -900),
    "Decision Transformer": Program("transformers", "the blog on decision transformers", decisions, "accuracy", 0.8),
}

"""Healthy networks and optimizers whose updates look suspicious, each in a fit and in a loop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from blind.programs_base import Rule, Split, mlp
from blind.programs_scales import Texts, topics
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.optim import SGD, Adam, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from updates.programs_base import (
    Batch,
    Fitted,
    Program,
    Watch,
    batches,
    fit,
    healthy,
    images,
    losses,
    scored,
    two_layers,
)

STEPS = 60  # the 51st is measured after the first 20
Make = Callable[[], nn.Module]
adam, sgd = partial(Adam, lr=3e-3), partial(SGD, lr=0.2)


def fitted(make: Make, rule: Rule, data: Callable[[], Split], options: Mapping[str, Any], watch: Watch) -> float:
    network, samples = make(), data()
    fit(Fitted(network, rule), batches(STEPS, samples), watch, **options)
    return scored(network, samples)


def looped(make: Make, rule: Rule, data: Callable[[], Split], watch: Watch) -> float:
    network, samples = make(), data()
    optimizer = rule(network.parameters())
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(STEPS, samples), optimizer):
            watcher.step(optimizer, loss)
    return scored(network, samples)


def frozen_backbone() -> nn.Module:
    network = two_layers()
    network.first.requires_grad_(False)
    return network


def head_of_zeros() -> nn.Module:
    network = two_layers()
    nn.init.zeros_(network.head.weight)
    return network


class Adapted(nn.Module):
    """LoRA (2106.09685): a frozen Linear, and two factors, the second of which starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
        self.down, self.up = nn.Linear(64, 8, bias=False), nn.Linear(8, 64, bias=False)
        nn.init.zeros_(self.up.weight)
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.first(x) + self.up(self.down(x))).relu())


class Scaled(nn.Module):
    """Residual blocks times a number or a vector that starts small: ReZero (2003.04887), LayerScale (2103.17239)."""

    def __init__(self, start: float, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mlp(64, 64, 64) for _ in range(4))
        self.scales = nn.ParameterList(torch.full((width,), start) for _ in range(4))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = x + scale * block(x)
        return self.head(x)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


class Experts(nn.Module):
    """Three experts, one of which is drawn for one batch in fifteen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.multinomial(torch.tensor([7.0, 7.0, 1.0]), 1).item() if self.training else 0
        return self.head(self.experts[int(drawn)](self.first(x).relu()).relu())


class Words(Texts):
    """Texts whose embedding has sparse gradients."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.words = nn.Embedding(200, 32, padding_idx=0, sparse=True)


def batch_norms() -> nn.Module:
    """Biases in front of BatchNorms: their gradient is rounding alone."""
    parts = {"first": nn.Linear(64, 64), "norm1": nn.BatchNorm1d(64), "act1": nn.ReLU(), "second": nn.Linear(64, 64),
             "norm2": nn.BatchNorm1d(64), "act2": nn.ReLU(), "head": nn.Linear(64, 10)}  # fmt: skip
    return nn.Sequential(OrderedDict(parts))


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    network = mlp(64, 64, 64, 10)
    for layer in network:
        if isinstance(layer, nn.Linear):
            norm(layer)
    return network


def converged() -> nn.Module:
    """A network that is done: its loss is below 1e-3 on each sample that it learns from."""
    network, data = two_layers(128), images()
    optimizer = Adam(network.parameters(), lr=1e-2)
    for _ in losses(network, [(data.inputs, data.targets)] * 150, optimizer):
        optimizer.step()
    return network


def pretrained() -> nn.Module:
    """A network that knows half of its task."""
    network = two_layers()
    optimizer = adam(network.parameters())
    for _ in losses(network, batches(30), optimizer):
        optimizer.step()
    return network


class InHalf(nn.Module):
    """A network whose weights are in bfloat16, with a rate that they can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = two_layers().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.bfloat16()).float()


class Lookahead(Optimizer):
    """Every fifth step goes half of the way back (1907.08610)."""

    def __init__(self, params: Any) -> None:
        self.fast = Adam(params, lr=3e-3)
        super().__init__(self.fast.param_groups, {})
        self.held = [param for group in self.fast.param_groups for param in group["params"]]
        self.slow, self.steps = [param.detach().clone() for param in self.held], 0

    def step(self, closure: Any = None) -> Any:
        loss = self.fast.step(closure)
        self.steps += 1
        if self.steps % 5 == 0:
            with torch.no_grad():
                for slow, param in zip(self.slow, self.held, strict=True):
                    slow.lerp_(param, 0.5)
                    param.copy_(slow)
        return loss


MODELS: dict[str, tuple[str, Make, Rule]] = {
    "a frozen backbone": ("transfer learning", frozen_backbone, adam),
    "a frozen backbone that the optimizer does not hold": (
        "transfer learning", frozen_backbone, lambda params: adam(param for param in params if param.requires_grad)
    ),
    "LoRA": ("2106.09685", Adapted, adam),
    "ReZero": ("2003.04887", partial(Scaled, 0.0, 1), adam),
    "LayerScale of 1e-6": ("2103.17239", partial(Scaled, 1e-6, 64), adam),
    "a head that starts at zero": ("fine-tuning recipes", head_of_zeros, sgd),
    "tied weights": ("1608.05859", Tied, adam),
    "an expert that is drawn now and then": ("mixtures of experts", Experts, adam),
    "biases before BatchNorm": ("most networks of forums", batch_norms, partial(SGD, lr=0.1)),
    "biases before BatchNorm, AdamW": ("most networks of forums", batch_norms, partial(AdamW, lr=3e-3)),
    "weight norm": ("1602.07868", partial(normed, parametrizations.weight_norm), adam),
    "spectral norm": ("1802.05957", partial(normed, parametrizations.spectral_norm), adam),
    "a run that has converged": ("training goes on at its end", converged, partial(SGD, lr=0.01)),
    "a run that has converged, Adam": ("training goes on at its end", converged, partial(Adam, lr=1e-3)),
    "fine-tuning with a rate of 1e-5": ("1810.04805's rates", pretrained, partial(AdamW, lr=1e-5)),
    "fine-tuning with SGD's rate of 1e-3": ("transfer learning", pretrained, partial(SGD, lr=1e-3, momentum=0.9)),
    "bfloat16 weights and a rate of 1e-3": ("pure bfloat16", InHalf, partial(Adam, lr=1e-3)),
    "fused Adam": ("torch.optim", two_layers, partial(Adam, lr=3e-3, fused=True)),
    "foreach Adam": ("torch.optim", two_layers, partial(Adam, lr=3e-3, foreach=True)),
    "fused SGD": ("torch.optim", two_layers, partial(SGD, lr=0.2, momentum=0.9, fused=True)),
    "Lookahead": ("1907.08610", two_layers, Lookahead),
    "SGD with momentum of 0.99": ("torch.optim", two_layers, partial(SGD, lr=5e-3, momentum=0.99)),
    "AdamW with a decay of 0.1": ("as for transformers", two_layers, partial(AdamW, lr=3e-3, weight_decay=0.1)),
    "Adam's eps of 1e-3": ("1802.01561's larger eps", two_layers, partial(Adam, lr=3e-3, eps=1e-3)),
    "a body with a hundredth of the head's rate": (
        "1801.06146: discriminative rates", pretrained,
        lambda params: _two_rates([*params]),
    ),
}  # fmt: skip


def _two_rates(params: list[nn.Parameter]) -> Optimizer:
    return AdamW([{"params": params[:2], "lr": 1e-5}, {"params": params[2:]}], lr=1e-3)


SCHEDULES: dict[str, tuple[str, str, Callable[[Optimizer], Any]]] = {
    "a warm-up over 100 steps": ("step", "the usual warm-up", lambda o: LambdaLR(o, lambda at: min(1.0, at / 100))),
    "a warm-up over 10000 steps": (
        "step", "warm-ups of large runs", lambda o: LambdaLR(o, lambda at: min(1.0, at / 1e4))
    ),
    "LinearLR from a third over five epochs": ("epoch", "torch", lambda o: LinearLR(o, 1 / 3, total_iters=5)),
    "LinearLR from a hundredth over five epochs": ("epoch", "torch", lambda o: LinearLR(o, 0.01, total_iters=5)),
    "cosine to zero": ("step", "1608.03983", lambda o: CosineAnnealingLR(o, STEPS)),
    "a line to zero, then at zero": (
        "step", "1810.04805", lambda o: LambdaLR(o, lambda at: max(0.0, 1 - at / (STEPS - 15)))
    ),
    "cosine by epochs": ("epoch", "1608.03983", lambda o: CosineAnnealingLR(o, STEPS // 10)),
    "warm restarts": ("step", "1608.03983", lambda o: CosineAnnealingWarmRestarts(o, 25)),
    "one cycle": ("step", "1708.07120", lambda o: OneCycleLR(o, 1e-2, total_steps=STEPS + 1)),
    "a tenth of the rate each three epochs": ("epoch", "1512.03385", lambda o: StepLR(o, 3)),
    "a plateau": ("epoch", "torch", lambda o: ReduceLROnPlateau(o, patience=2)),
}  # fmt: skip


class Planned(Fitted):
    """An optimizer with a schedule by steps or by epochs of ten steps."""

    def __init__(self, network: nn.Module, plan: Callable[[Optimizer], Any], interval: str) -> None:
        super().__init__(network, adam)
        self.plan, self.interval = plan, interval

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = adam(self.parameters())
        plan = {"scheduler": self.plan(optimizer), "interval": self.interval, "monitor": "loss"}
        return {"optimizer": optimizer, "lr_scheduler": plan}


def planned_fit(interval: str, plan: Callable[[Optimizer], Any], watch: Watch) -> float:
    network = two_layers()
    fit(Planned(network, plan, interval), batches(10), watch, max_epochs=STEPS // 10)
    return scored(network)


def planned_loop(interval: str, plan: Callable[[Optimizer], Any], watch: Watch) -> float:
    network = two_layers()
    optimizer = adam(network.parameters())
    schedule, by_loss = plan(optimizer), plan is SCHEDULES["a plateau"][2]
    with watch.loop(network) as watcher:
        for at, loss in enumerate(losses(network, batches(STEPS), optimizer)):
            watcher.step(optimizer, loss)
            if interval == "step" or at % 10 == 9:
                schedule.step(*[loss.item()] * by_loss)
    return scored(network)


class WithWords(Fitted):
    """One optimizer for the sparse gradients, and one for the others, by hand."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, adam)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        rules: Any = self.optimizers()
        for rule in rules:
            rule.zero_grad()
        self.manual_backward(self.loss(self.network(batch[0]), batch[1]))
        for rule in rules:
            rule.step()

    def configure_optimizers(self) -> Any:
        network: Any = self.network
        return [SparseAdam(network.words.parameters(), lr=1e-2), adam(network.layers.parameters())]


def words_fit(watch: Watch) -> float:
    network, data = Words(), topics()
    fit(WithWords(network), batches(STEPS, data), watch)
    return scored(network, data)


def words_loop(watch: Watch) -> float:
    network, data = Words(), topics()
    rules: list[Optimizer] = [SparseAdam(network.words.parameters(), lr=1e-2), adam(network.layers.parameters())]
    with watch.loop(network) as watcher:
        for x, y in batches(STEPS, data):
            for rule in rules:
                rule.zero_grad()
            loss = functional.cross_entropy(network(x), y)
            loss.backward()
            for rule in rules:
                watcher.read(rule)
                rule.step()
            watcher.end(loss)
    return scored(network, data)


def _forms() -> dict[str, Program]:
    made: dict[str, Program] = {}
    for name, (source, make, rule) in MODELS.items():
        made[f"{name}, fit"] = healthy(source, partial(fitted, make, rule, images, {}))
        made[f"{name}, loop"] = healthy(source, partial(looped, make, rule, images))
    for name, (interval, source, plan) in SCHEDULES.items():
        made[f"{name}, fit"] = healthy(source, partial(planned_fit, interval, plan))
        made[f"{name}, loop"] = healthy(source, partial(planned_loop, interval, plan))
    texts: tuple[Make, Rule, Callable[[], Split]] = (Words, partial(SGD, lr=0.5), topics)
    made["sparse embeddings in SGD, fit"] = healthy("torch.nn.Embedding", partial(fitted, *texts, {}))
    made["sparse embeddings in SGD, loop"] = healthy("torch.nn.Embedding", partial(looped, *texts))
    made["sparse embeddings in SparseAdam, fit"] = healthy("torch.optim", words_fit)
    made["sparse embeddings in SparseAdam, loop"] = healthy("torch.optim", words_loop)
    return made


FORMS: dict[str, Program] = _forms()

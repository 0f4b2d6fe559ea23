"""The ways to look at gradients that are compared, each as a callback."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn
from workloads import is_missing

from gradwatch import GradientMonitor


class Recipe(Callback):
    """Lightning's documented recipe: log_dict of grad_norm at every step."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        pl_module.log_dict(grad_norm(pl_module, norm_type=2))


class ForeachNorm(Callback):
    """The floor: one fused norm of all gradients, read once."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        torch.stack(torch._foreach_norm(list(_gradients(pl_module)))).tolist()


class FullHooks(Callback):
    """Hand-written full backward hooks on every leaf module, each with an ``.item()``."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.norms: dict[int, float] = {}
        for number, module in enumerate(m for m in pl_module.modules() if not list(m.children())):
            module.register_full_backward_hook(self._hook(number))

    def _hook(self, number: int) -> Callable[[nn.Module, object, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, grad_input: object, grad_output: tuple[Tensor, ...]) -> None:
            self.norms[number] = grad_output[0].norm().item()

        return hook


class WandbWatch(Callback):
    """``wandb.watch`` of the gradients in an offline run; committed at every step that it reads."""

    def __init__(self, folder: str, every: int = 1) -> None:
        self._folder, self._every = folder, every

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        import wandb

        quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        self._run = wandb.init(mode="offline", dir=self._folder, project="gradients", settings=quiet)
        self._run.watch(pl_module, log="gradients", log_freq=self._every)

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step % self._every == 0:
            self._run.log({"step": trainer.global_step})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._run.unwatch(pl_module)
        self._run.finish()


class ZClip(Callback):
    """ZClip (2504.02507) with its defaults: the norm tensor by tensor, one read, a clip where it is due."""

    def __init__(self, alpha: float = 0.97, z_max: float = 2.5, max_norm: float = 1.0, warm_up: int = 25) -> None:
        self._alpha, self._z_max, self._max_norm, self._warm_up = alpha, z_max, max_norm, warm_up
        self._first: list[float] = []
        self._mean = self._variance = 0.0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gradients = list(_gradients(pl_module))
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item()
        if len(self._first) < self._warm_up:
            self._first.append(norm)
            self._mean, self._variance = statistics.fmean(self._first), statistics.pvariance(self._first)
            nn.utils.clip_grad_norm_(pl_module.parameters(), self._max_norm)
            return
        kept = self._limit(norm)
        most = min(kept, self._max_norm)
        if norm > most:
            for gradient in gradients:
                gradient.mul_(most / (norm + 1e-6))
        self._mean += (1 - self._alpha) * (kept - self._mean)
        self._variance += (1 - self._alpha) * ((kept - self._mean) ** 2 - self._variance)

    def _limit(self, norm: float) -> float:
        spread = self._variance**0.5
        z = (norm - self._mean) / (spread + 1e-6)
        return self._mean + self._z_max**2 * spread / z if z > self._z_max else norm


def _gradients(module: nn.Module) -> Iterator[Tensor]:
    return (param.grad for param in module.parameters() if param.grad is not None)


@dataclass(frozen=True)
class Variant:
    """A way to look at gradients.

    Attributes:
        callback: makes the callback of one fit, given a folder to write to; None adds none.
        every: number of steps from one look to the next; whole cycles are timed.
        requires: package that it needs; without it the variant is skipped.
    """

    callback: Callable[[str], Callback | None]
    every: int = 1
    requires: str | None = None

    @property
    def is_missing(self) -> bool:
        return is_missing(self.requires)


def gradwatch(every: int, dense: int, **options: Any) -> Variant:
    """The monitor with its default columns and reports, without the table at the end."""
    options = {"every_n_steps": every, "dense_steps": dense, "summary": False, **options}
    return Variant(lambda folder: GradientMonitor(**options), every)


DENSE = 20  # the default of GradientMonitor's dense_steps

VARIANTS = {
    "bare": Variant(lambda folder: None),
    "bare again": Variant(lambda folder: None),
    "foreach_norm": Variant(lambda folder: ForeachNorm()),
    "gradwatch every 1": gradwatch(1, DENSE),
    "gradwatch every 10": gradwatch(10, DENSE),
    "gradwatch every 50": gradwatch(50, DENSE),
    "lightning recipe": Variant(lambda folder: Recipe()),
    "wandb.watch": Variant(WandbWatch, requires="wandb"),
    "full backward hooks": Variant(lambda folder: FullHooks()),
    "zclip": Variant(lambda folder: ZClip()),
}

WHOLE_FITS = {  # beside the bare run, where fits are measured from their first step to their end
    "bare again": VARIANTS["bare again"],
    "gradwatch default": Variant(lambda folder: GradientMonitor(), every=50),
}

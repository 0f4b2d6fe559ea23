"""The form of a program whose steps go wrong, and what its fit or its loop is watched with."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from blind.programs_base import Rule, Split, accuracy, digits
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import gradwatch
from gradwatch.records import Cause, Diagnosis, Finding

MEASURED = 20  # optimizer steps that the default settings measure from the start
Batch = tuple[Tensor, Tensor]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@dataclass
class Heard:
    """The words of gradwatch on one run.

    Attributes:
        opened: each finding, and the number of the step (from 1) in which it opened.
        early: the causes after the first ``MEASURED`` steps, or after all where there were fewer.
        late: the causes at the end.
        broken: the parts of the watching that failed.
    """

    opened: list[tuple[int, Finding]] = field(default_factory=list)
    early: list[Diagnosis] | None = None
    late: list[Diagnosis] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def end(self, watcher: Any) -> None:
        self.late, self.broken = watcher.diagnosis(), [str(part) for part in watcher.out_of_service]
        self.early = self.late if self.early is None else self.early


class Enough(Exception):
    """Ends a loop after the first ``MEASURED`` steps."""


class Watch:
    """Watches a fit or a loop with gradwatch's default settings, or not at all.

    Args:
        on: watch.
        short: end the watched run after the first ``MEASURED`` steps.
    """

    def __init__(self, on: bool, short: bool = False) -> None:
        self.on, self.short, self.heard = on, short, Heard()

    @property
    def callbacks(self) -> list[Callback]:
        """The monitor, and a callback that listens to it; none where nothing is watched."""
        if not self.on:
            return []
        listener = _Listener(self.heard, self.short)
        listener.monitor = gradwatch.GradientMonitor(summary=False, record_path=False, on_finding=listener.note)
        return [listener.monitor, listener]

    def loop(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A watcher for ``with``, which is stepped by the loop."""
        return _Loop(model, self.heard, self.short) if self.on else nullcontext(Unwatched())


class _Listener(Callback):
    """Notes in which batch each finding opens. The programs with bugs make a step of each batch."""

    monitor: gradwatch.GradientMonitor

    def __init__(self, heard: Heard, short: bool) -> None:
        self.heard, self.short, self.batches = heard, short, 0

    def note(self, finding: Finding) -> None:
        self.heard.opened.append((self.batches, finding))

    def on_train_batch_start(self, *_: object) -> None:
        self.batches += 1

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if self.batches == MEASURED:
            self.heard.early = self.monitor.diagnosis()
            trainer.should_stop |= self.short

    def teardown(self, *_: object, **__: object) -> None:
        self.heard.end(self.monitor)


class _Loop:
    """A Watcher that notes in which step each finding opens."""

    def __init__(self, model: nn.Module, heard: Heard, short: bool) -> None:
        self.heard, self.short, self.watcher = heard, short, gradwatch.watch(model, on_finding=self.note)

    def note(self, finding: Finding) -> None:
        self.heard.opened.append((self.watcher.steps, finding))

    def read(self, optimizer: Optimizer) -> None:
        self.watcher.read(optimizer)

    def step(self, optimizer: Optimizer, loss: Tensor | None = None, **options: Any) -> None:
        self.watcher.step(optimizer, loss, **options)
        self._look()

    def end(self, loss: Tensor) -> None:
        self.watcher.end(loss)
        self._look()
        self.watcher.begin()

    def _look(self) -> None:
        if self.watcher.steps == MEASURED:
            self.heard.early = self.watcher.diagnosis()
            if self.short:
                raise Enough

    def __enter__(self) -> _Loop:
        self.watcher.__enter__()
        return self

    def __exit__(self, kind: Any, *error: Any) -> bool:
        self.watcher.__exit__(kind, *error)
        self.heard.end(self.watcher)
        return kind is Enough


class Unwatched:
    """Steps the optimizer, and watches nothing."""

    def read(self, optimizer: Optimizer) -> None:
        pass

    def step(self, optimizer: Optimizer, loss: Tensor | None = None, *, scaler: Any = None, **options: Any) -> None:
        optimizer.step(**options) if scaler is None else scaler.step(optimizer, **options)

    def end(self, loss: Tensor) -> None:
        pass


@dataclass(frozen=True)
class Program:
    """A training whose steps go wrong, with its twin; or a healthy one.

    Attributes:
        source: where such programs come from.
        run: trains, sick or repaired, under a watch; returns the score (more is better).
        kinds: the findings that are right; none for a healthy program.
        causes: the causes that are right; none for a healthy program.
        param: end of the name of a parameter that must be named; None where the bug is in none.
        needs_finding: a cause alone is not enough.
    """

    source: str
    run: Callable[[bool, Watch], float]
    kinds: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    param: str | None = None
    needs_finding: bool = True


def sick(
    source: str,
    run: Callable[[bool, Watch], float],
    kinds: str,
    causes: tuple[Cause, ...],
    param: str | None = None,
    *,
    needs_finding: bool = True,
) -> Program:
    return Program(source, run, tuple(kinds.split()), causes, param, needs_finding)


def healthy(source: str, run: Callable[[Watch], float]) -> Program:
    return Program(source, lambda _, watch: run(watch))


def two_layers(hidden: int = 64, inputs: int = 64) -> nn.Sequential:
    """A small network with names."""
    first, head = nn.Linear(inputs, hidden), nn.Linear(hidden, 10)
    return nn.Sequential(OrderedDict(first=first, act=nn.ReLU(), head=head))


def batches(count: int, data: Split | None = None, size: int = 32) -> list[Batch]:
    """Random batches of digits, or of other data."""
    data = data or images()
    return [
        (data.inputs[chosen], data.targets[chosen])
        for chosen in (torch.randint(len(data.inputs), (size,)) for _ in range(count))
    ]


@lru_cache
def images() -> Split:
    return digits()()


def scored(network: nn.Module, data: Split | None = None, score: Callable[[Tensor, Tensor], float] = accuracy) -> float:
    """The score on held-out data."""
    data = data or images()
    network.eval()
    with torch.no_grad():
        x = data.test_inputs
        x = x.to(next(network.parameters()).dtype) if x.is_floating_point() else x
        return score(network(x).float(), data.test_targets)


class Fitted(LightningModule):
    """A network, its optimizer and its loss in Lightning's automatic optimization."""

    def __init__(self, network: nn.Module, rule: Rule, loss: Callable[..., Tensor] = functional.cross_entropy) -> None:
        super().__init__()
        self.network, self.rule, self.loss = network, rule, loss

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return self.loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.rule(self.parameters())


class ByHand(Fitted):
    """The same with manual optimization."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        rule: Any = self.optimizers()
        rule.zero_grad()
        self.manual_backward(self.loss(self.network(batch[0]), batch[1]))
        rule.step()


def fit(module: LightningModule, feed: Iterable[Batch], watch: Watch, **options: Any) -> None:
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, **options}
    Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*watch.callbacks, *settings.pop("callbacks", [])], **settings,
    ).fit(module, DataLoader([*feed], batch_size=None))  # fmt: skip


def losses(
    model: Callable[[Tensor], Tensor], feed: Iterable[Batch], optimizer: Optimizer, zeroed: bool = True
) -> Iterator[Tensor]:
    """The loss of each batch, whose backward pass has run; the loop over it makes the step."""
    for x, y in feed:
        if zeroed:
            optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        yield loss

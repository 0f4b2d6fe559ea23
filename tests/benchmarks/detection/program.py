"""A training program, and pairs of programs that differ in one fault."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

Batch = tuple[Tensor, Tensor]
Objective = Callable[[nn.Module, Batch], Tensor]
Half = Literal["develop", "unseen"]


@dataclass(frozen=True)
class Data:
    """The data for the batches and for the score."""

    train: Batch
    test: Batch


def cross_entropy(network: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def squared_error(network: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(network(batch[0]), batch[1])


@torch.no_grad()
def accuracy(network: nn.Module, batch: Batch) -> float:
    """Share of the test's samples that are named right."""
    outputs = network(batch[0])
    if outputs.dim() == 3:  # a class for each place in a sequence
        outputs = outputs.flatten(0, 1)
    named = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
    return float((named == batch[1].flatten()).float().mean())


@torch.no_grad()
def r_squared(network: nn.Module, batch: Batch) -> float:
    """Share of the target's variance that is explained, which does not change with the target's scale."""
    error = (network(batch[0]) - batch[1]).square().mean(0)
    return float(1 - error.sum() / batch[1].var(0, correction=0).sum())


def sgd(lr: float, **kwargs: Any) -> Callable[[nn.Module], Optimizer]:
    """Plain SGD over the network's trainable parameters."""
    return partial(optimizer_of, SGD, lr=lr, **kwargs)


def adam(lr: float, **kwargs: Any) -> Callable[[nn.Module], Optimizer]:
    return partial(optimizer_of, torch.optim.Adam, lr=lr, **kwargs)


def optimizer_of(kind: Callable[..., Optimizer], network: nn.Module, **kwargs: Any) -> Optimizer:
    return kind([param for param in network.parameters() if param.requires_grad], **kwargs)


@dataclass(frozen=True)
class HalfPrecision:
    """Forward and backward pass in float16 with a static loss scale; ``skips`` leaves out steps that overflow."""

    scale: float
    skips: bool = False


@dataclass(frozen=True)
class Program:
    """A training program of some hundred steps at most.

    Attributes:
        network: makes the model.
        data: makes the data, the same each time.
        objective: model and batch -> loss.
        score: model and test batch -> score: at most 1, 0 for a model that has learned little.
        optimizer: model -> optimizer.
        steps: of the optimizer.
        batch_size: of one backward pass.
        accumulate: backward passes a step.
        schedule: step -> factor on the learning rate.
        spoil: step and batch -> the batch in its place.
        half: settings of float16, if it is used.
        options: keyword arguments of the Trainer that matter, such as ``gradient_clip_val``.
    """

    network: Callable[[], nn.Module]
    data: Callable[[], Data]
    objective: Objective = cross_entropy
    score: Callable[[nn.Module, Batch], float] = accuracy
    optimizer: Callable[[nn.Module], Optimizer] = field(default_factory=lambda: sgd(0.1))
    steps: int = 150
    batch_size: int = 32
    accumulate: int = 1
    schedule: Callable[[int], float] | None = None
    spoil: Callable[[int, Batch], Batch] | None = None
    half: HalfPrecision | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def batches(self, seed: int) -> Iterator[Batch]:
        """The batches of a run, ``accumulate`` a step; the same for a program and its twin."""
        x, y = self.data().train
        generator = torch.Generator().manual_seed(1000 + seed)
        for index in range(self.steps * self.accumulate):
            drawn = torch.randint(len(x), (self.batch_size,), generator=generator)
            batch = (x[drawn], y[drawn])
            yield batch if self.spoil is None else self.spoil(index // self.accumulate, batch)


@dataclass(frozen=True)
class Case:
    """A program, its fault and the right causes.

    Attributes:
        family: the fault, or the group of healthy programs.
        variant: its name within the family.
        program: to train.
        causes: names of the cause that are right; none for a healthy program.
        twin: the same program without the fault.
        from_start: the fault is there before the first step.
    """

    family: str
    variant: str
    program: Program
    causes: tuple[str, ...] = ()
    twin: Program | None = None
    from_start: bool = False

    @property
    def name(self) -> str:
        return f"{self.family}/{self.variant}"


def pair(
    family: str, variant: str, causes: str | tuple[str, ...], healthy: Program, from_start: bool = False, **fault: Any
) -> Case:
    """The program that ``fault`` makes of a healthy one."""
    named = (causes,) if isinstance(causes, str) else causes
    return Case(family, variant, replace(healthy, **fault), named, healthy, from_start)


def healthy(family: str, variant: str, program: Program) -> Case:
    return Case(f"healthy: {family}", variant, program)


def halves(cases: list[Case]) -> dict[str, Half]:
    """Name -> half: every second program of a family, in the order of the names' hashes, is for developing."""
    split: dict[str, Half] = {}
    for family in sorted({case.family for case in cases}):
        names = sorted((case.name for case in cases if case.family == family), key=_hash)
        first = int(_hash(family), 16) % 2  # the half that gets the odd one
        split |= {name: "develop" if (i + first) % 2 == 0 else "unseen" for i, name in enumerate(names)}
    return split


@cache
def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()

"""A training step that can be computed again, on a copy of the module, to look at each of its operations."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from gradwatch.torch_internals import owners_of


class StepAgain:
    """The batch of the current step, and the random numbers that it began with.

    The copy has the same weights. It reads the Trainer, but logs nothing and changes nothing of it. A step with manual
    optimization is computed up to its first backward pass.

    Attributes:
        batch: of the step; it is dropped at the end of the step.
        state: of torch's random numbers on the CPU.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, batch: Any, place: int) -> None:
        self.batch, self.state = batch, torch.get_rng_state()
        self._trainer, self._module, self._place = trainer, module, place

    def __call__(self) -> tuple[nn.Module, Callable[[], object]]:
        """Return a copy of the module, and a function that computes the step's loss with it.

        Raises:
            Exception: where the module can't be copied.
        """
        reader = _Reader(self._trainer)
        memo: dict[int, Any] = {id(owner): reader for owner in owners_of(self._module)}
        copied = deepcopy(self._module, memo)
        for name in ("log", "log_dict", "print"):
            copied.__dict__[name] = _do_nothing
        return copied, lambda: self._compute(copied)

    def _compute(self, copied: LightningModule) -> object:
        losses: list[Tensor] = []

        def stop(loss: Tensor, *_: Any, **__: Any) -> None:
            losses.append(loss)
            raise _FirstBackward

        copied.__dict__["manual_backward"] = stop
        takes = inspect.signature(copied.training_step).parameters.values()
        takes_one = len(takes) == 1 and all(one.kind != one.VAR_POSITIONAL for one in takes)
        given = (self.batch,) if takes_one else (self.batch, self._place)
        with contextlib.redirect_stdout(io.StringIO()), self._trainer.precision_plugin.forward_context():
            try:
                return copied.training_step(*given)
            except _FirstBackward:
                return losses[0]


class _FirstBackward(BaseException):
    """Ends a step of manual optimization at its first backward pass; no ``except Exception`` of the user's stops it."""


class _Reader:
    """Reads a Trainer; what is written to it is kept here, and nothing is logged."""

    logger = None
    loggers: tuple[Any, ...] = ()

    def __init__(self, trainer: Trainer) -> None:
        self.__dict__["_trainer"] = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_trainer"], name)


def _do_nothing(*_: Any, **__: Any) -> None:
    """Take the place of a method that writes."""

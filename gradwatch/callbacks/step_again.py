"""A training step that can be computed again, to look at each of its operations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from gradwatch.probe.call_log import tensors_in
from gradwatch.torch_internals import past_torch_function, version_of


class StepAgain:
    """The batch of the current step, and the random numbers that it began with.

    Attributes:
        batch: of the step; it is dropped at the end of the step.
        state: of torch's random numbers on the CPU.
        passed: number of backward passes so far.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, batch: Any, place: int) -> None:
        self.batch, self.state, self.passed = batch, torch.get_rng_state(), 0
        self._trainer, self._module, self._place = trainer, module, place
        self._versions = _versions(batch)

    def __call__(self) -> tuple[nn.Module, Callable[[], object]]:
        """Return the module, and a function that computes the step's loss with it. Call it in a fork.

        The step then logs nothing. With manual optimization, it ends at the backward pass that was the last one.

        Raises:
            ValueError: where the batch is not what it was.
        """
        if isinstance(self.batch, Iterator) or _versions(self.batch) != self._versions:
            raise ValueError("the step has changed its batch")
        self._trainer.callbacks.clear()  # type: ignore[attr-defined]
        self._trainer.loggers = []
        for name in ("log", "log_dict", "print"):
            self._module.__dict__[name] = _do_nothing
        return self._module, self._compute

    def _compute(self) -> object:
        module, losses = self._module, list[Tensor]()
        backward = module.manual_backward

        def stop(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            losses.append(loss)
            if len(losses) == self.passed:
                raise _LastBackward
            backward(loss, *args, **kwargs)

        module.__dict__["manual_backward"] = stop
        takes = inspect.signature(module.training_step).parameters.values()
        takes_one = len(takes) == 1 and all(one.kind != one.VAR_POSITIONAL for one in takes)
        given = (self.batch,) if takes_one else (self.batch, self._place)
        with self._trainer.precision_plugin.forward_context():
            try:
                return module.training_step(*given)
            except _LastBackward:
                return losses[-1]


class _LastBackward(BaseException):
    """Ends a step of manual optimization at a backward pass; no ``except Exception`` of the user's stops it."""


def _versions(batch: Any) -> list[int | None]:
    with past_torch_function():
        is_usual = type(batch) in (list, tuple) and all(type(part) is Tensor for part in batch)
        tensors = batch if is_usual else tensors_in(batch)
        return [version_of(tensor) for tensor in tensors if not tensor.is_inference()]


def _do_nothing(*_: Any, **__: Any) -> None:
    """Take the place of a method that writes."""

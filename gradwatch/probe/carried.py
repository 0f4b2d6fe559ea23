"""Gradients that an optimizer has stepped along already, and that a backward pass adds to all the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from weakref import ref

import torch
from torch import Tensor, nn

from gradwatch.probe.norms import batches, l2_norms
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.torch_internals import current_backward_pass, past_torch_function, version_of, will_accumulate


@dataclass
class _Used:
    """A gradient that an optimizer has stepped along.

    Attributes:
        param: the parameter it belongs to.
        grad: the gradient; held weakly, as a program that drops it wants its memory back.
        version: autograd's count of changes to it when the step began.
        zeros: for each backward pass that adds to it, the slot of a number that is not 0 if it was all zero before.
    """

    param: nn.Parameter
    grad: ref[Tensor]
    version: int
    zeros: list[int] = field(default_factory=list)

    @property
    def is_there(self) -> bool:
        """Return True if it is still the parameter's gradient, and nothing but backward passes has changed it."""
        # A pass that runs within another one (reentrant checkpointing) may begin before the outer one has added to it.
        return _is_there(self.param, self.grad, self.version, len(self.zeros))


def _is_there(param: nn.Parameter, grad: ref[Tensor], version: int, changes: int = 0) -> bool:
    """Return True if a parameter has a gradient still, with at most so many changes."""
    now = param.grad
    return now is not None and now is grad() and 0 <= (version_of(now) or 0) - version <= changes


class CarriedGradients:
    """Finds the parameters whose gradient still holds that of an earlier step.

    A value alone can't tell it: a gradient that is not zero may be accumulated on purpose, come from a penalty, or be
    overwritten before the step. So a gradient is carried over only if all of this holds:

    1. When the step begins, the optimizer has just stepped along it.
    2. When a backward pass begins that will add to it, it is still there, not zero, and nobody has changed it. Autograd
       counts the changes; those made through ``.data`` it does not count, so zeros are looked for as well.
    3. The same holds at each later backward pass, but for what the passes before have added. A GAN's generator reaches
       the discriminator's gradients, which are zeroed only then.
    4. When the optimizer steps, it has not been replaced.

    Nothing is read in a program that sets its gradients to None, and nothing is waited for on a device: what is read
    are norms, one fused pass over the gradients in question, and these go to the host with the step's other numbers.

    Attributes:
        is_open: the gradients of this step's parameters are not known to be clean yet.

    Example:
        >>> weight, scalars, carried = nn.Parameter(torch.ones(2)), DeviceScalars(), CarriedGradients()
        >>> (2 * weight).sum().backward()  # a step that nobody has cleared
        >>> carried.begin([weight])
        >>> handle = (output := 2 * weight).register_hook(lambda grad: carried.look(scalars))
        >>> output.sum().backward()
        >>> {name: scalars.to_host()[slots] for name, slots in carried.among({"weight": weight}).items()}
        {'weight': array([0.])}
    """

    def __init__(self) -> None:
        self.is_open = False
        self._used: list[_Used] = []
        self._new: list[tuple[nn.Parameter, ref[Tensor], int]] = []  # as in _Used, which would cost twice the time
        self._passes: set[int] = set()

    def begin(self, params: Iterable[nn.Parameter]) -> None:
        """Begin a step after one in which optimizers have stepped along the gradients of these parameters.

        Gradients of the steps before it that nobody has touched are still looked for: in a loop with several optimizers
        each may have its own steps.
        """
        self._take_new()
        self._used = [used for used in self._used if not used.zeros]
        # Only plain gradients: a sharded one is written to without its count of changes being raised, and a sparse one
        # on a device can't be read without waiting for it.
        self._new = [
            (param, ref(grad), version)
            for param in params
            if type(grad := param.grad) is Tensor
            and (version := version_of(grad)) is not None
            and (grad.is_cpu or not grad.is_sparse)
        ]
        if self._used:
            stepped = {id(param) for param, _, _ in self._new}
            self._used = [used for used in self._used if id(used.param) not in stepped]
        self._passes.clear()
        self.is_open = bool(self._used or self._new)

    def _take_new(self) -> None:
        # Nearly always there is none, so this is asked first.
        self._used += [_Used(*new) for new in self._new if new[0].grad is not None and _is_there(*new)]
        self._new = []

    def end(self) -> None:
        """End the step: nothing is looked at until the next one."""
        self.is_open = False

    def forget(self) -> None:
        """Forget all parameters and gradients."""
        self._used, self._new = [], []
        self.is_open = False

    def look(self, scalars: DeviceScalars) -> None:
        """Look at the gradients once in each backward pass; call this from a hook that runs before they are added to.

        A layer's parameters wait for the gradient at its output. So the first gradient that comes to any output is
        early enough, but for parameters that are used behind all layers; these count as changed and are left alone.
        """
        running = current_backward_pass()
        if running in self._passes:
            return
        self._passes.add(running)
        with past_torch_function(), torch.no_grad():
            self._used = [used for used in self._used if used.is_there]
            self._take_new()
            self.is_open = bool(self._used)
            coming = [*compress(self._used, will_accumulate([used.param for used in self._used]))]
            for positions, batch in batches([used.grad() for used in coming]):
                slots = scalars.values(l2_norms(batch) == 0)
                for position, slot in zip(positions, slots, strict=True):
                    coming[position].zeros.append(slot)

    def among(self, params: Mapping[str, nn.Parameter]) -> dict[str, Sequence[int]]:
        """Return the parameters whose gradients a backward pass has added to, when their optimizer steps.

        They are carried over if the numbers in all their slots are 0.
        """
        added = {id(used.param): used for used in self._used if used.zeros}
        return {
            name: added[id(param)].zeros
            for name, param in params.items()
            if id(param) in added and param.grad is added[id(param)].grad()
        }

"""Optimizer steps that a loss scaler may skip: if they happened, and the scale of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradwatch.probe.deepspeed import refuse_optimizer
from gradwatch.torch_internals import has_unscaled, unscales_itself


class Stepping:
    """Notes which optimizers step, through hooks on them."""

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._has_stepped: dict[int, bool] = {}
        self._found_inf: dict[int, Tensor] = {}

    def expect(
        self, optimizer: Optimizer, then: Callable[[], None], after: Callable[[], None], *, early: bool = False
    ) -> None:
        """Note if this optimizer steps, and call ``then`` and ``after`` when it has.

        An optimizer that unscales by itself changes the gradients in its step: with ``early``, ``then`` is called just
        before it.
        """

        def note(*_: object) -> None:
            self._has_stepped[id(optimizer)] = True
            found = getattr(optimizer, "found_inf", None)  # the scaler sets it where the optimizer unscales by itself
            if isinstance(found, Tensor):
                self._found_inf[id(optimizer)] = found
            then()

        before, behind = (getattr(optimizer, f"register_step_{when}_hook", None) for when in ("pre", "post"))
        register = before if early else behind
        self._has_stepped[id(optimizer)] = register is None  # an object without these hooks is taken to step
        if register is not None:
            self._hooks.append(register(note))
        if behind is not None:
            self._hooks.append(behind(lambda *_: after()))

    @property
    def skipped(self) -> bool | Tensor:
        """Return True if a step was skipped; a scalar on the device where an optimizer decided it there."""
        if not all(self._has_stepped.values()):
            return True
        found = [value.reshape(()) for value in self._found_inf.values()]
        return torch.stack([value.to(found[0].device, non_blocking=True) for value in found]).amax() if found else False

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class LossScale:
    """One optimizer's step through a ``torch.amp.GradScaler``, or through none.

    Args:
        scaler: has scaled the loss of this step; None where nothing is scaled.
        optimizer: is about to step. The wrappers of Fabric and Accelerate step the scaler by themselves.

    Attributes:
        inner: the optimizer of torch in the wrapper.
        value: factor of the loss, on the device; None without a scaler.
        left: the factor that the gradients still have, where the optimizer unscales by itself; else None.
        skipped: as in :class:`Stepping`; False without a scaler.

    Raises:
        TypeError: when the scaler is no GradScaler.
    """

    def __init__(self, scaler: Any, optimizer: Optimizer) -> None:
        if scaler is not None and not hasattr(scaler, "unscale_"):
            raise TypeError(
                f"scaler is a {type(scaler).__name__}; expected the torch.amp.GradScaler of the loss, or None"
            )
        self._optimizer = optimizer
        self.inner = unwrapped(optimizer)
        self._scaler = scaler = getattr(optimizer, "scaler", None) if is_accelerated(optimizer) else scaler
        self.value = None if scaler is None else scale_on_device(scaler, self.inner)
        self.left = self.value if unscales_itself(self.inner) else None
        self.skipped: bool | Tensor = False

    def unscale_(self) -> None:
        """Divide the gradients by the scale, unless that was done, or the optimizer will."""
        if self._scaler is not None and self.left is None and not has_unscaled(self._scaler, self.inner):
            self._scaler.unscale_(self.inner)

    @property
    def left_now(self) -> Tensor | None:
        """Return the factor that the gradients have at this moment; None for none."""
        is_plain = self._scaler is None or has_unscaled(self._scaler, self.inner)
        return None if is_plain else self.value

    def step(self, then: Callable[[], None], after: Callable[[], None], **kwargs: Any) -> None:
        """Step the optimizer; ``then`` and ``after`` are called as in :meth:`Stepping.expect`."""
        if self._scaler is None:
            self._optimizer.step(**kwargs)
            return
        stepping = Stepping()
        stepping.expect(self.inner, then, after, early=self.left is not None)
        try:
            if self.inner is self._optimizer:
                self._scaler.step(self._optimizer, **kwargs)
            else:  # a wrapper, which steps the scaler by itself
                self._optimizer.step(**kwargs)
        finally:
            stepping.close()
        self.skipped = stepping.skipped


class MeanLoss:
    """The mean of the losses of the batches that a step accumulates; losses that are not given are left out."""

    def __init__(self) -> None:
        self._shares: list[Tensor | float] = []

    def add(self, loss: Tensor | float | None) -> None:
        """Add the loss of a batch after which the step goes on."""
        if loss is not None:
            self._shares.append(loss.detach() if isinstance(loss, Tensor) else loss)

    def end(self, loss: Tensor | float | None) -> Tensor | float | None:
        """Return the mean with the loss of the last batch, which is returned itself where it is the only one."""
        shares, self._shares = self._shares, []
        return loss if loss is None or not shares else sum([*shares, loss]) / (len(shares) + 1)


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups; raise for an optimizer whose groups hold none of the model's."""
    refuse_optimizer(optimizer)
    return [param for group in optimizer.param_groups for param in group["params"]]


def is_accelerated(optimizer: Any) -> bool:
    """Return True for an optimizer that Accelerate has prepared, which passes by while batches accumulate."""
    return type(optimizer).__name__ == "AcceleratedOptimizer"


def unwrapped(optimizer: Any) -> Optimizer:
    """Return the optimizer in the wrappers of Fabric and Accelerate."""
    while is_accelerated(optimizer) or type(optimizer).__module__.endswith("fabric.wrappers"):
        optimizer = optimizer.optimizer
    found: Optimizer = optimizer
    return found


def ends_a_step(optimizer: Any) -> bool:
    """Return False where Accelerate accumulates more batches before the optimizer steps."""
    return bool(optimizer.gradient_state.sync_gradients) if is_accelerated(optimizer) else True


Read = Callable[[Optimizer, "Tensor | None"], object]


def read_accelerated(optimizers: Iterable[Optimizer], before_clip: Callable[..., object], read: Read) -> None:
    """Ask for a reading of each optimizer of Accelerate before the clip that ends its next step.

    Args:
        optimizers: that stepped last, and are expected to do so again.
        before_clip: takes an optimizer, and what is to be called before a clip of its parameters.
        read: takes an optimizer, and the factor that its gradients still have.
    """
    for optimizer in filter(is_accelerated, optimizers):
        before_clip(optimizer, partial(_read_at_end, optimizer, read))


def _read_at_end(optimizer: Optimizer, read: Read) -> None:
    if ends_a_step(optimizer):
        read(optimizer, LossScale(None, optimizer).left_now)


def scale_on_device(scaler: Any, optimizer: Optimizer) -> Tensor:
    """Return the factor of a scaler, as a scalar on the device of the optimizer's parameters."""
    param = next((param for group in optimizer.param_groups for param in group["params"]), None)
    # scale() multiplies on the device; get_scale() would wait for it.
    scale: Tensor = scaler.scale(torch.ones((), device=None if param is None else param.device))
    return scale

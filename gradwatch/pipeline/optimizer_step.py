"""Optimizer steps that a loss scaler may skip: if they happened, and the scale of their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradwatch.torch_internals import unscales_itself


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
        optimizer: is about to step; Fabric's wrapper of an optimizer steps the scaler by itself.

    Attributes:
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
        self._scaler, self._optimizer = scaler, optimizer
        self._wraps = type(optimizer).__module__.endswith("fabric.wrappers")
        self._inner: Optimizer = optimizer.optimizer if self._wraps else optimizer  # type: ignore[attr-defined]
        self.value = None if scaler is None else scale_on_device(scaler, self._inner)
        self.left = self.value if unscales_itself(self._inner) else None
        self.skipped: bool | Tensor = False

    def unscale_(self) -> None:
        """Divide the gradients by the scale, unless the optimizer will."""
        if self._scaler is not None and self.left is None:
            self._scaler.unscale_(self._inner)

    def step(self, then: Callable[[], None], after: Callable[[], None], **kwargs: Any) -> None:
        """Step the optimizer; ``then`` and ``after`` are called as in :meth:`Stepping.expect`."""
        if self._scaler is None:
            self._optimizer.step(**kwargs)
            return
        stepping = Stepping()
        stepping.expect(self._inner, then, after, early=self.left is not None)
        try:
            self._optimizer.step(**kwargs) if self._wraps else self._scaler.step(self._optimizer, **kwargs)
        finally:
            stepping.close()
        self.skipped = stepping.skipped


def scale_on_device(scaler: Any, optimizer: Optimizer) -> Tensor:
    """Return the factor of a scaler, as a scalar on the device of the optimizer's parameters."""
    param = next((param for group in optimizer.param_groups for param in group["params"]), None)
    # scale() multiplies on the device; get_scale() would wait for it.
    scale: Tensor = scaler.scale(torch.ones((), device=None if param is None else param.device))
    return scale

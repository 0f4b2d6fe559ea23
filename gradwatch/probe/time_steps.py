"""The gradient at each time step of torch's recurrent networks, whose steps no hook sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwatch.containment import Containment
from gradwatch.probe.layers import own_parameters
from gradwatch.probe.module_hooks import LossPass, ModuleHook, StepHooks, add_pre_hook
from gradwatch.probe.norms import is_plain, stored_values
from gradwatch.torch_internals import (
    has_global_hooks,
    hooks_on,
    is_transformed,
    past_dispatch_modes,
    past_torch_function,
)

_FORWARDS = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)  # a subclass's may do anything with its input


class TimeHooks(StepHooks):
    """Reads the gradient at the input of each ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, step by step, while attached.

    The input at each time step is multiplied by the same weights, so its gradient is proportional to the state's. An
    input that is data has no gradient; for the measured step the network gets an alias that requires one, which changes
    no other gradient. Bidirectional networks, packed sequences, and data that a user's code or hook may see are not
    read.

    Args:
        sharing: number of processes that share a batch, each with the whole network. The norms are divided by its root,
            so that the squares of all processes add up to one network's.

    Attributes:
        slots: layer -> the slots of the norms, first time step first, of its last call with a gradient.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        containment: Containment,
        loss_pass: LossPass | None = None,
        sharing: int = 1,
    ) -> None:
        super().__init__("time steps of layer", containment, loss_pass)
        self.slots: dict[str, range] = {}
        self._sharing = sharing
        self._layers = {n: m for n, m in layers.items() if isinstance(m, nn.RNNBase) and not m.bidirectional}

    def _is_idle(self) -> bool:
        return not self.slots

    def _begin(self) -> None:
        self.slots = {}

    def _add_hooks(self) -> Iterator[RemovableHandle]:
        for name, module in self._layers.items():
            if name not in self._failed:
                yield add_pre_hook(module, self._hook(name, self._ask))

    def _ask(self, name: str, module: Any, args: Any) -> Any:
        """Ask for the gradient of a network's input; return other arguments for it where the input is data."""
        given = args[0] if args else None
        if torch.compiler.is_compiling() or self._mark is None or not isinstance(given, Tensor):
            return None
        if not torch.is_grad_enabled() or not is_plain(given):
            return None
        if not any(param.requires_grad for param in own_parameters(module).values()):
            return None
        axis = 1 if module.batch_first and given.dim() == 3 else 0
        if given.requires_grad:
            self._add_tensor_hook(given, name, axis)
            return None
        if type(given) is not Tensor or not self._is_untouched(module):
            return None
        asked = given.detach().requires_grad_()
        self._add_tensor_hook(asked, name, axis)
        return (asked, *args[1:])

    def _add_tensor_hook(self, given: Tensor, name: str, axis: int) -> None:
        try:
            is_leaf = given.grad_fn is None
        except RuntimeError:  # see LayerHooks
            return
        handle = given.register_hook(partial(self._on_gradient, self._mark, name, axis))  # type: ignore[no-untyped-call]
        if is_leaf:
            self._leaf_handles.append(handle)

    @staticmethod
    def _is_untouched(module: nn.Module) -> bool:
        """Return True if only torch's code gets the module's input.

        An input that requires a gradient can be neither changed in place nor read by NumPy, which a user's hook or
        ``forward`` may do.
        """
        is_torchs = type(module).forward in _FORWARDS and "forward" not in module.__dict__
        return is_torchs and all(isinstance(hook, ModuleHook) for hook in hooks_on(module)) and not has_global_hooks()

    def _on_gradient(self, mark: object, name: str, axis: int, grad: Tensor | None) -> None:
        if grad is None or mark is not self._mark or is_transformed():  # see LayerHooks
            return
        if self._loss_pass.has_run and not self._loss_pass.is_running:
            return
        try:
            with past_torch_function(), past_dispatch_modes():
                self._read(name, axis, grad)
        except Exception as error:
            self._fail(name, error)

    def _read(self, name: str, axis: int, grad: Tensor) -> None:
        values = stored_values(grad)
        others = [i for i in range(values.dim()) if i != axis]
        norms = torch.linalg.vector_norm(values, dim=others, dtype=torch.float32 if values.itemsize < 4 else None)
        self.slots[name] = self._scalars.values(norms if self._sharing == 1 else norms / self._sharing**0.5)

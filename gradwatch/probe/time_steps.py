"""The gradient at each time step of torch's recurrent networks, whose steps no hook sees."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwatch.containment import Containment
from gradwatch.probe.module_hooks import LossPass, ModuleHook, TrainingThread, WatchingHook, add_pre_hook
from gradwatch.probe.modules import own_parameters
from gradwatch.probe.norms import is_plain, stored_values
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.torch_internals import (
    has_global_hooks,
    hooks_on,
    is_transformed,
    past_dispatch_modes,
    past_torch_function,
)

_FORWARDS = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)  # a class's own may do anything with its input


class TimeHooks:
    """Reads the gradient at the input of each ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, step by step, while attached.

    What goes in at a time step is multiplied by the same weights at all of them, so that its gradient is as large as
    the state's. An input that is data has none; for the measured step it is asked for one, which changes no other.
    Networks of both directions, packed sequences, and data that a user's code or hook may see are left out.

    Args:
        layers: name -> module.
        containment: switches off a layer whose hook fails.
        loss_pass: knows which backward pass is that of the loss.
        sharing: how many processes share a batch, each with the whole network: their squares add up to one's.

    Attributes:
        slots: layer -> the slots of the norms, first time step first; of its last call that a gradient came back to.

    Example:
        >>> rnn, scalars = nn.RNN(2, 3, batch_first=True), DeviceScalars()
        >>> hooks = TimeHooks({"rnn": rnn}, Containment())
        >>> hooks.attach(scalars)
        >>> rnn(torch.ones(1, 5, 2))[0][:, -1].sum().backward()
        >>> hooks.detach()
        >>> norms = scalars.to_host()[hooks.slots["rnn"]]
        >>> len(norms), bool(norms[0] < norms[-1])
        (5, True)
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        containment: Containment,
        loss_pass: LossPass | None = None,
        sharing: int = 1,
    ) -> None:
        self._loss_pass = loss_pass or LossPass()
        self.slots: dict[str, range] = {}
        self._sharing = sharing
        self._containment = containment
        self.training = TrainingThread(self._is_idle)
        self._layers = {n: m for n, m in layers.items() if isinstance(m, nn.RNNBase) and not m.bidirectional}
        self._out: set[str] = set()
        self._mark: object | None = None  # of the step under way
        self._handles: list[RemovableHandle] = []
        self._leaf_handles: list[RemovableHandle] = []

    def attach(self, scalars: DeviceScalars) -> None:
        """Put the hooks in place, if they are not, and start anew; ``scalars`` takes the norms."""
        self.rest()
        self.training.begin()
        self.slots, self._scalars, self._mark = {}, scalars, object()
        if not self._handles:
            self.resume()

    def resume(self) -> None:
        """Put the hooks in place; what was seen stays."""
        self.pause()
        for name, module in self._layers.items():
            if name not in self._out:
                hook: Any = WatchingHook.of(self.training, partial(self._fail, name), self._ask, name)
                self._handles.append(add_pre_hook(module, hook))

    def pause(self) -> None:
        """Remove the hooks from the modules."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def rest(self) -> None:
        """End the step; the hooks stay on the modules, for the next one, and do nothing."""
        for handle in self._leaf_handles:
            handle.remove()
        self._leaf_handles.clear()
        self._mark = None

    def detach(self) -> None:
        """End the step and remove every hook; ``slots`` stays."""
        self.pause()
        self.rest()

    def _is_idle(self) -> bool:
        return not self.slots

    def _fail(self, name: str, error: Exception) -> None:
        self._out.add(name)
        self._containment.fail(f"time steps of layer {name}", error)

    def _ask(self, name: str, module: Any, args: Any) -> Any:
        given = args[0] if args else None
        if torch.compiler.is_compiling() or self._mark is None or not isinstance(given, Tensor):
            return None
        if not torch.is_grad_enabled() or not is_plain(given):
            return None
        if not any(param.requires_grad for param in own_parameters(module).values()):
            return None
        axis = 1 if module.batch_first and given.dim() == 3 else 0
        if given.requires_grad:
            self._listen(given, name, axis)
            return None
        if type(given) is not Tensor or not self._is_untouched(module):
            return None
        asked = given.detach().requires_grad_()
        self._listen(asked, name, axis)
        return (asked, *args[1:])

    def _listen(self, given: Tensor, name: str, axis: int) -> None:
        try:
            is_leaf = given.grad_fn is None
        except RuntimeError:  # see LayerHooks
            return
        handle = given.register_hook(partial(self._take, self._mark, name, axis))  # type: ignore[no-untyped-call]
        if is_leaf:
            self._leaf_handles.append(handle)

    @staticmethod
    def _is_untouched(module: nn.Module) -> bool:
        """Return True if nobody but torch sees what the module is given.

        An input that requires a gradient can be neither changed in place nor read by NumPy, which a user's hook, or a
        ``forward`` of their own, may do.
        """
        is_torchs = type(module).forward in _FORWARDS and "forward" not in module.__dict__
        return is_torchs and all(isinstance(hook, ModuleHook) for hook in hooks_on(module)) and not has_global_hooks()

    def _take(self, mark: object, name: str, axis: int, grad: Tensor | None) -> None:
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

"""The gradient at each time step of torch's recurrent networks, whose steps no hook sees."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwatch.probe.hooks import ModuleHook
from gradwatch.probe.norms import stored_values
from gradwatch.probe.scalars import DeviceScalars


class TimeHooks:
    """Reads the gradient at the input of each ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, step by step, while attached.

    What goes in at a time step is multiplied by the same weights at all of them, so that its gradient is as large as
    the state's. An input that is data has none; for the measured step it is asked for one, which changes no other.
    Networks of both directions, and packed sequences, are left out.

    Args:
        layers: name -> module.
        sharing: how many processes share a batch, each with the whole network: their squares add up to one's.

    Attributes:
        slots: layer -> the slots of the norms, first time step first; of its last call that a gradient came back to.

    Example:
        >>> rnn, scalars = nn.RNN(2, 3, batch_first=True), DeviceScalars()
        >>> hooks = TimeHooks({"rnn": rnn})
        >>> hooks.attach(scalars)
        >>> rnn(torch.ones(1, 5, 2))[0][:, -1].sum().backward()
        >>> hooks.detach()
        >>> norms = scalars.to_host()[hooks.slots["rnn"]]
        >>> len(norms), bool(norms[0] < norms[-1])
        (5, True)
    """

    def __init__(self, layers: Mapping[str, nn.Module], sharing: int = 1) -> None:
        self.slots: dict[str, range] = {}
        self._sharing = sharing
        self._layers = {n: m for n, m in layers.items() if isinstance(m, nn.RNNBase) and not m.bidirectional}
        self._handles: list[RemovableHandle] = []

    def attach(self, scalars: DeviceScalars) -> None:
        """Put the hooks in place and start anew; ``scalars`` takes the norms."""
        self.slots = {}
        for name, module in self._layers.items():
            hook: Any = ModuleHook(self._ask, name, scalars)
            self._handles.append(module.register_forward_pre_hook(hook, prepend=True))

    def detach(self) -> None:
        """Remove every hook; ``slots`` stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _ask(self, name: str, scalars: DeviceScalars, module: Any, args: Any) -> Any:
        given = args[0] if args else None
        if not isinstance(given, Tensor) or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return None
        if not any(param.requires_grad for param in module.parameters()):
            return None
        asked = given if given.requires_grad else given.detach().requires_grad_()
        axis = 1 if module.batch_first and given.dim() == 3 else 0
        hook = partial(self._take, name, scalars, axis)
        self._handles.append(asked.register_hook(hook))  # type: ignore[no-untyped-call]
        return (asked, *args[1:])

    def _take(self, name: str, scalars: DeviceScalars, axis: int, grad: Tensor | None) -> None:
        if grad is None:  # see LayerHooks
            return
        values = stored_values(grad)
        others = [i for i in range(values.dim()) if i != axis]
        norms = torch.linalg.vector_norm(values, dim=others, dtype=torch.float32 if values.itemsize < 4 else None)
        self.slots[name] = scalars.values(norms if self._sharing == 1 else norms / self._sharing**0.5)

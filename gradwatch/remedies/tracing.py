"""In which order a network runs its layers and activations, seen in one forward pass where a batch is at hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation as activations
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from gradwatch.remedies.randomness import kept_randomness
from gradwatch.remedies.setup import copy_of

ACTIVATIONS = tuple(getattr(activations, name) for name in activations.__all__ if name != "MultiheadAttention")
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)

# Functions by the name of the module that does the same.
_FUNCTIONS = {
    **{name.lower(): name for name in ("Sigmoid", "Tanh", "ReLU", "GELU", "SiLU", "ELU", "SELU", "Softplus", "Mish")},
    "leaky_relu": "LeakyReLU", "softmax": "Softmax", "log_softmax": "LogSoftmax", "softsign": "Softsign",
    "hardtanh": "Hardtanh", "relu_": "ReLU", "sigmoid_": "Sigmoid", "tanh_": "Tanh",
}  # fmt: skip
LOSSES = ("cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
          "binary_cross_entropy_with_logits")  # fmt: skip


@dataclass(frozen=True)
class Event:
    """A leaf module or a function that a forward pass called.

    Attributes:
        name: of the module; empty for a function.
        kind: class of the module, or of the one that does what the function does; or the name of a loss.
        module: the module, in the network that was asked about; None for a function.
        inputs, output: what went in and came out; None where nothing was run.
    """

    name: str
    kind: str
    module: nn.Module | None = None
    inputs: tuple[Any, ...] = field(default=(), repr=False)
    output: Any = field(default=None, repr=False)

    @property
    def is_activation(self) -> bool:
        """Whether it is a nonlinearity, as a module or as a function."""
        return isinstance(self.module, ACTIVATIONS) or (self.module is None and self.kind not in LOSSES)

    @property
    def is_weighted(self) -> bool:
        """Whether it is a Linear or a convolution."""
        return isinstance(self.module, WEIGHTED) and not any(is_lazy(param) for param in self.module.parameters())


def events_of(module: nn.Module, batch: Any = None) -> list[Event]:
    """What a forward pass calls, in order; without a batch, or where it fails, the modules as they were registered.

    The pass runs on a copy: no weight, no statistic and no random number of the original changes.

    Example:
        >>> [event.kind for event in events_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2))]
        ['Linear', 'ReLU']
    """
    if batch is not None:
        for run in (run_once, run_forward):
            # Whatever a user's code raises outside of a Trainer: a manual optimization asks for its optimizers, say.
            with suppress(Exception):
                return _Recorder(module).run(run, batch)
    modules = module.named_modules(remove_duplicate=False)
    return [Event(name, type(part).__name__, part) for name, part in modules if _is_leaf(part)]


def run_once(module: nn.Module, batch: Any) -> Any:
    """The loss of a module with a ``training_step``, else the output of a module for the batch's inputs."""
    if callable(getattr(module, "training_step", None)):
        training_step: Any = module.training_step
        return training_step(batch, 0)
    return run_forward(module, batch)


def run_forward(module: nn.Module, batch: Any) -> Any:
    """The output for a batch's inputs: its first part, or all of it where it has none."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return module(**inputs) if isinstance(inputs, Mapping) else module(inputs)


def on_device_of(module: nn.Module, batch: Any) -> Any:
    """The batch with its tensors where the module's parameters are.

    Example:
        >>> on_device_of(nn.Linear(1, 1), {"x": [torch.ones(1)], "name": "a"})
        {'x': [tensor([1.])], 'name': 'a'}
    """
    if isinstance(batch, Tensor):
        home = next(module.parameters(), batch)
        return batch.to(home.device)
    if isinstance(batch, dict):
        return {name: on_device_of(module, part) for name, part in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(on_device_of(module, part) for part in batch)
    return batch


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) or isinstance(module, nn.MultiheadAttention)


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


class _Recorder(TorchFunctionMode):
    """Notes leaf modules by hooks, and activation functions and losses by intercepting torch's functions."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._original, self._copy = module, copy_of(module)
        self._events: list[Event] = []
        self._depth = 0  # calls of leaf modules under way

    def run(self, forward: Callable[[nn.Module, Any], Any], batch: Any) -> list[Event]:
        """The events of one pass."""
        for name, part in self._copy.named_modules():
            if _is_leaf(part):
                part.register_forward_pre_hook(self._enter)
                part.register_forward_hook(self._note(name), always_call=True)
        with kept_randomness(), torch.no_grad(), warnings.catch_warnings(), self:
            warnings.simplefilter("ignore")
            forward(self._copy, on_device_of(self._copy, batch))
        return self._events

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._depth += _is_of_torch(module)

    def _note(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        module = self._original.get_submodule(name)

        def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._depth -= _is_of_torch(module)
            if not type(module).__module__.startswith("torchmetrics") and not isinstance(module, nn.modules.loss._Loss):
                self._events.append(Event(name, type(module).__name__, module, args, output))

        return note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        is_loss = name in LOSSES
        if (is_loss or (name in _FUNCTIONS and self._depth == 0)) and isinstance(output, Tensor):
            self._events.append(Event("", name if is_loss else _FUNCTIONS[name], None, tuple(args), output))
        return output


def hidden_pairs(events: list[Event]) -> list[tuple[Event, Event | None]]:
    """Each weighted layer with the activation that follows it, in the order of the first calls.

    Behind the last one stands None: what follows there belongs to the loss.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> [(layer.name, after.kind if after else None) for layer, after in hidden_pairs(events_of(network))]
        [('0', 'ReLU'), ('2', None)]
    """
    pairs: dict[str, tuple[Event, Event | None]] = {}
    for index, event in enumerate(events):
        if event.is_weighted and event.name not in pairs:
            pairs[event.name] = (event, _activation_after(events[index + 1 :]))
    found = list(pairs.values())
    return [*found[:-1], (found[-1][0], None)] if found else []


def _activation_after(events: list[Event]) -> Event | None:
    for event in events:
        if event.is_activation and event.kind not in ("Softmax", "LogSoftmax"):
            return event
        if event.is_weighted:
            return None
    return None

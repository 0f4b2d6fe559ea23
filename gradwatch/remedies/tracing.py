"""In which order a network runs its layers and activations, seen in one forward pass where a batch is at hand."""

from __future__ import annotations

import linecache
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from gradwatch.layer_kinds import is_activation, is_loss, is_softmax, is_weighted
from gradwatch.remedies.remedy import Setup, copy_of
from gradwatch.short_runs.sandbox import kept_randomness

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
        return self.kind not in LOSSES if self.module is None else is_activation(self.module)

    @property
    def is_weighted(self) -> bool:
        """Whether it is a Linear or a convolution."""
        layer = self.module
        return is_weighted(layer) and layer is not None and not any(map(is_lazy, layer.parameters()))


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
            if not type(module).__module__.startswith("torchmetrics") and not is_loss(module):
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
        if event.is_activation and not is_softmax(event.kind):
            return event
        if event.is_weighted:
            return None
    return None


def reached(setup: Setup, mode: AbstractContextManager[object]) -> set[str]:
    """Run a training step, or where it needs a Trainer the forward pass, of a copy on the set-up's batch.

    Returns:
        The parameters that its result depends on; none where it fails.

    Example:
        >>> from contextlib import nullcontext
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> reached(Setup(layer, batch=torch.ones(1, 2)), nullcontext())
        {'weight'}
    """
    for run in (run_once, run_forward):
        module = copy_of(setup.module)
        with suppress(Exception), kept_randomness(), torch.enable_grad(), warnings.catch_warnings(), mode:
            warnings.simplefilter("ignore")
            ends = [end for end in _tensors(run(module, on_device_of(module, setup.batch))) if end.requires_grad]
            named = {name: param for name, param in module.named_parameters() if param.requires_grad}
            grads = torch.autograd.grad([end.sum() for end in ends], [*named.values()], allow_unused=True)
            return {name for name, grad in zip(named, grads, strict=True) if grad is not None}
    return set()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


_LIBRARIES = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "gradwatch"}


def users_line(*through: str) -> str:
    """``file:line`` of the code that called a function of torch; empty where a library did, or gradwatch itself.

    Args:
        *through: modules, with all below them, whose callers are meant.
    """
    passed = tuple(f"{name}." for name in ("gradwatch.remedies", *through))
    frame = sys._getframe(1)
    while frame is not None and _module_of(frame).startswith(passed):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or _module_of(frame).partition(".")[0] in _LIBRARIES:
        return ""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _module_of(frame: FrameType) -> str:
    """Of its code, with a dot behind it; empty for what is a user's though it has such a name."""
    name = f"{frame.f_globals.get('__name__', '')}."
    is_typed = frame.f_code.co_filename.startswith("<")  # into a notebook, a prompt, a docstring
    return "" if is_typed or name.startswith("gradwatch.examples.") else name


def quoted(places: Iterable[str]) -> str:
    """The lines of code at these places, as comments.

    Example:
        >>> print(quoted(["no_such_file.py:41"]))
        # no_such_file.py:41:
    """
    split = ((place, *place.rsplit(":", 1)) for place in places)
    return "\n".join(f"# {place}: {linecache.getline(file, int(line)).strip()}".rstrip() for place, file, line in split)

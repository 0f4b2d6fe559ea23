"""One forward pass of a copy: the order of its calls, the parameters it reaches, and the user's lines that it runs."""

from __future__ import annotations

import linecache
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from gradwatch.containment import library_module
from gradwatch.layer_kinds import is_activation, is_loss, is_softmax, is_weighted
from gradwatch.remedies.remedy import Setup, copy_of
from gradwatch.short_runs.sandbox import kept_randomness

# Functions by the name of the equivalent module.
FUNCTIONS = {
    **{name.lower(): name for name in ("Sigmoid", "Tanh", "ReLU", "GELU", "SiLU", "ELU", "SELU", "Softplus", "Mish")},
    "leaky_relu": "LeakyReLU", "softmax": "Softmax", "log_softmax": "LogSoftmax", "softsign": "Softsign",
    "hardtanh": "Hardtanh", "relu_": "ReLU", "sigmoid_": "Sigmoid", "tanh_": "Tanh",
}  # fmt: skip
LOSSES = ("cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
          "binary_cross_entropy_with_logits")  # fmt: skip

CALLING = ("torch.nn.functional", "torch._tensor", "torch.overrides")  # between a function and the user's line

T = TypeVar("T")
Run = Callable[[nn.Module, Any], Any]  # runs a module on a batch


@dataclass(frozen=True)
class Event:
    """A call of a leaf module or a function in a forward pass.

    Attributes:
        name: name of the module; empty for a function.
        kind: class of the module, or of the module equivalent to the function; or the name of a loss function.
        module: the module in the original network; None for a function.
        inputs, output: arguments and result; empty and None if no pass was run.
        place: file and line of the user's code that called the function; empty for a module.
    """

    name: str
    kind: str
    module: nn.Module | None = None
    inputs: tuple[Any, ...] = field(default=(), repr=False)
    output: Any = field(default=None, repr=False)
    place: str = field(default="", repr=False)

    @property
    def is_activation(self) -> bool:
        """Return True for a nonlinearity, be it a module or a function."""
        return self.kind not in LOSSES if self.module is None else is_activation(self.module)

    @property
    def is_weighted(self) -> bool:
        """Return True for a Linear or a convolution, unless it is lazy and has no shape yet."""
        layer = self.module
        return is_weighted(layer) and layer is not None and not any(map(is_lazy, layer.parameters()))


def events_of(module: nn.Module, batch: Any = None) -> list[Event]:
    """Return the calls of a forward pass in order; the modules as registered if there is no batch or the pass fails.

    The pass runs on a copy: no weight, no running statistic and no random number of the original changes.

    Example:
        >>> [event.kind for event in events_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2))]
        ['Linear', 'ReLU']
    """
    recorded = None if batch is None else _first_that_runs(lambda run: _Recorder(module).record(run, batch))
    if recorded is not None:
        return recorded
    modules = module.named_modules(remove_duplicate=False)
    return [Event(name, type(part).__name__, part) for name, part in modules if _is_leaf(part)]


def hidden_pairs(events: list[Event]) -> list[tuple[Event, Event | None]]:
    """Return each weighted layer with the activation that follows it, in the order of the first calls.

    The last layer is paired with None: an activation after it belongs to the loss.

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


def reached(setup: Setup, mode: AbstractContextManager[object]) -> set[str]:
    """Return the names of the parameters that a pass's result depends on; none if the pass fails.

    Args:
        setup: runs one pass of a copy on its batch: the training step, or the forward pass if that needs a Trainer.
        mode: entered for the pass and its backward pass.

    Example:
        >>> from contextlib import nullcontext
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> reached(Setup(layer, batch=torch.ones(1, 2)), nullcontext())
        {'weight'}
    """

    def differentiate(run: Run) -> set[str]:
        module = copy_of(setup.module)
        with torch.enable_grad(), mode:
            ends = [end for end in _tensors(run(module, _to_device_of(module, setup.batch))) if end.requires_grad]
            named = {name: param for name, param in module.named_parameters() if param.requires_grad}
            # autograd.grad and not backward(): it writes no .grad and calls no hook of the user's parameters.
            grads = torch.autograd.grad([end.sum() for end in ends], [*named.values()], allow_unused=True)
            return {name for name, grad in zip(named, grads, strict=True) if grad is not None}

    return _first_that_runs(differentiate) or set()


def outcome_of(module: nn.Module, batch: Any) -> Any:
    """Return the result of one pass of a module, by its training step or else its forward; None if both fail."""
    return _first_that_runs(lambda run: run(module, _to_device_of(module, batch)))


def inputs_of_parts(setup: Setup, names: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the input and the output of each part that a pass calls once, with one tensor.

    Example:
        >>> network = nn.Sequential(nn.ReLU(), nn.Tanh())
        >>> inputs_of_parts(Setup(network, batch=torch.zeros(1, 1)), ["1"])
        {'1': (tensor([[0.]]), tensor([[0.]]))}
    """
    module, calls = copy_of(setup.module), dict[str, list[Any]]()

    def keeping(name: str) -> Any:
        def keep(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            is_plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            calls.setdefault(name, []).append((args[0], output) if is_plain else None)

        return keep

    for name in names:
        module.get_submodule(name).register_forward_hook(keeping(name), with_kwargs=True)
    with torch.no_grad():
        outcome_of(module, setup.batch)
    return {name: found[0] for name, found in calls.items() if len(found) == 1 and found[0]}


def users_line(*through: str) -> str:
    """Return ``file:line`` of the user code that called a function of torch; empty if a library called it.

    Args:
        *through: modules to pass over, with their submodules; the line is that of their caller.
    """
    passed = tuple(f"{name}." for name in ("gradwatch.remedies", *through))
    frame = sys._getframe(1)
    while frame is not None and f"{library_module(frame)}.".startswith(passed):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or library_module(frame):
        return ""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def quoted(places: Iterable[str]) -> str:
    """Return the lines of code at these places, as comments.

    Example:
        >>> print(quoted(["no_such_file.py:41"]))
        # no_such_file.py:41:
    """
    split = ((place, *place.rsplit(":", 1)) for place in places)
    return "\n".join(f"# {place}: {linecache.getline(file, int(line)).strip()}".rstrip() for place, file, line in split)


def _activation_after(events: list[Event]) -> Event | None:
    for event in events:
        if event.is_activation and not is_softmax(event.kind):
            return event
        if event.is_weighted:
            return None
    return None


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


def _first_that_runs(one_pass: Callable[[Run], T]) -> T | None:
    """Return the result of a pass through the training step, else through forward; None if both fail."""
    for run in (_run_step, _run_forward):
        # User code raises anything outside of a Trainer: a manual optimization asks for its optimizers, for example.
        with suppress(Exception), kept_randomness(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return one_pass(run)
    return None


def _run_step(module: nn.Module, batch: Any) -> Any:
    """Return the result of ``training_step``; the output of a module that has none."""
    step = getattr(module, "training_step", None)
    return step(batch, 0) if callable(step) else _run_forward(module, batch)


def _run_forward(module: nn.Module, batch: Any) -> Any:
    """Return the output for a batch's inputs: its first part if it is a tuple or list, else all of it."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return module(**inputs) if isinstance(inputs, Mapping) else module(inputs)


def _to_device_of(module: nn.Module, batch: Any) -> Any:
    """Return the batch with its tensors on the device of the module's parameters.

    Example:
        >>> _to_device_of(nn.Linear(1, 1), {"x": [torch.ones(1)], "name": "a"})
        {'x': [tensor([1.])], 'name': 'a'}
    """
    if isinstance(batch, Tensor):
        return batch.to(next(module.parameters(), batch).device)
    if isinstance(batch, dict):
        return {name: _to_device_of(module, part) for name, part in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_to_device_of(module, part) for part in batch)
    return batch


class _Recorder(TorchFunctionMode):
    """Records leaf modules by hooks, and activations and losses called as functions by a torch function mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._original, self._copy = module, copy_of(module)
        self._events: list[Event] = []
        # nn.ReLU calls functional.relu, which the mode sees as well. A function counts only outside of torch's modules.
        self._depth = 0

    def record(self, run: Run, batch: Any) -> list[Event]:
        """Return the events of one pass of the copy, which is thrown away with its hooks."""
        for name, part in self._copy.named_modules():
            if _is_leaf(part):
                part.register_forward_pre_hook(self._enter)
                part.register_forward_hook(self._leave(name), always_call=True)
        with torch.no_grad(), self:
            run(self._copy, _to_device_of(self._copy, batch))
        return self._events

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._depth += _is_of_torch(module)

    def _leave(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        module = self._original.get_submodule(name)

        def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._depth -= _is_of_torch(module)
            if not type(module).__module__.startswith("torchmetrics") and not is_loss(module):
                self._events.append(Event(name, type(module).__name__, module, args, output))

        return leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        is_loss = name in LOSSES  # also inside of a loss module
        if (is_loss or (name in FUNCTIONS and self._depth == 0)) and isinstance(output, Tensor):
            place = "" if is_loss else users_line(*CALLING)
            self._events.append(Event("", name if is_loss else FUNCTIONS[name], None, tuple(args), output, place))
        return output


def _is_leaf(module: nn.Module) -> bool:
    # MultiheadAttention reads its out_proj's weight and never calls it, so that a hook inside would not fire.
    return not any(True for _ in module.children()) or isinstance(module, nn.MultiheadAttention)


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")

"""Optimizer steps that no hook of the Trainer announces, found through torch's global optimizer hooks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from gradwatch.probe.layers import named_parameters

T = TypeVar("T")


class StepsPastLightning:
    """Calls a function just before each optimizer step that Lightning does not announce.

    Lightning calls ``on_before_optimizer_step`` only for optimizers that step through it: not for
    ``self.optimizers(use_pl_optimizer=False)``, optimizers made by hand, or optimizers that step inside the backward
    pass. Every torch optimizer calls torch's global hooks, which are in place while this is open.

    Four kinds of steps are not reported: those of an optimizer inside the step of another one with the same parameters
    (SAM, Lookahead, ZeroRedundancyOptimizer); of an optimizer without a parameter of the module; in code that
    ``torch.compile`` compiles; and in automatic optimization steps with a closure, as Lightning steps with one there.

    Args:
        before: called with the optimizer, when its gradients are ready. Its errors reach the user.
        on_stranger: called before a step of an optimizer without a parameter of the module.
    """

    def __init__(self, before: Callable[[Optimizer], None], on_stranger: Callable[[Optimizer], object] = id) -> None:
        self._before, self._on_stranger = before, on_stranger
        self._module: nn.Module | None = None
        self._remove: Callable[[], Any] = lambda: None
        self._params: frozenset[int] = frozenset()
        self._ownership: _ByOptimizer[_Ownership] = _ByOptimizer()
        self._announced: _ByOptimizer[int] = _ByOptimizer()  # -> the global step at which it was announced
        self._stepping: _ByOptimizer[None] = _ByOptimizer()  # steps that are not over and were handed over

    def open(self, module: nn.Module) -> None:
        """Begin to report the steps of optimizers that hold a parameter of this module."""
        self.close()
        self._module = module
        handles = [
            register_optimizer_step_pre_hook(_weak(self._on_step)),
            register_optimizer_step_post_hook(_weak(self._on_end)),
        ]
        # Also called when this object dies unclosed: a global hook would stay for the rest of the process.
        self._remove = weakref.finalize(self, _remove, handles)

    def mark_announced(self, optimizer: Optimizer) -> None:
        """Note that the next step of an optimizer is Lightning's, or the one whose closure is running."""
        self._announced[optimizer] = self._global_step

    def close(self) -> None:
        """Remove the hooks and forget the module and its optimizers."""
        self._remove()
        self._module, self._params = None, frozenset()
        for kept in (self._ownership, self._announced, self._stepping):
            kept.clear()

    def __reduce__(self) -> Any:
        """A copy, pickled or deep, is closed: hooks stay with the original."""
        return type(self), (self._before, self._on_stranger)

    @property
    def _global_step(self) -> int:
        # Lightning counts a step when it is over, even if the loss scaler skipped it. An announcement with an earlier
        # count belongs to such a skipped step, not to the one that comes now.
        step: int = getattr(self._module, "global_step", 0)
        return step

    def _on_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = _closure_in(args, kwargs)
        is_lightnings = closure is not None and getattr(self._module, "automatic_optimization", False)
        if is_lightnings:
            return None
        if not self._concerns(optimizer):
            self._on_stranger(optimizer)
            return None
        if closure is None:
            self._hand_over(optimizer)
            return None
        return _with_closure(args, kwargs, partial(self._run, optimizer, closure))

    def _run(self, optimizer: Optimizer, closure: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a closure, which makes the gradients, then report them; LBFGS does so many times a step."""
        self._announced.pop(optimizer)
        self._stepping.pop(optimizer)
        result = closure(*args, **kwargs)
        self._hand_over(optimizer)
        return result

    def _hand_over(self, optimizer: Optimizer) -> None:
        """Report an optimizer whose gradients are ready, unless Lightning announced it or another step contains it."""
        is_announced = self._announced.pop(optimizer) == self._global_step
        if not is_announced and self._module is not None and not self._is_part_of_another(optimizer):
            self._before(optimizer)
        self._stepping[optimizer] = None

    def _on_end(self, optimizer: Optimizer, *_: Any) -> None:
        self._stepping.pop(optimizer)

    def _is_part_of_another(self, optimizer: Optimizer) -> bool:
        if optimizer in self._stepping and _calls_itself(optimizer):
            return True
        now = self._global_step
        outer = [*self._stepping, *(other for other in self._announced if self._announced.get(other) == now)]
        others = {id_ for other in outer if other is not optimizer for id_ in _parameters_of(other)}
        return bool(others) and not others.isdisjoint(_parameters_of(optimizer))

    def _concerns(self, optimizer: Optimizer) -> bool:
        ownership = self._ownership.get(optimizer)
        if ownership is None:
            ownership = self._ownership[optimizer] = _Ownership()
        if not ownership.is_ours:
            ownership.steps += 1
            # The module may get the parameter later. Checking at the 1st, 2nd, 4th, 8th step is cheap.
            if ownership.steps & (ownership.steps - 1) == 0:
                ownership.is_ours = self._holds_ours(_parameters_of(optimizer))
        return ownership.is_ours

    def _holds_ours(self, params: Sequence[int]) -> bool:
        if self._params.isdisjoint(params) and self._module is not None:
            self._params = frozenset(id(param) for _, param, _ in named_parameters(self._module))
        return not self._params.isdisjoint(params)


class _Ownership:
    """Remembers if an optimizer holds a parameter of the module, and the number of steps it took while it held none."""

    def __init__(self) -> None:
        self.is_ours = False
        self.steps = 0


class _ByOptimizer(Generic[T]):
    """Values by optimizer, for as long as it lives; by identity, since a subclass may define ``==``."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[weakref.ref[Optimizer], T]] = {}
        self._room = 64

    def __setitem__(self, optimizer: Optimizer, value: T) -> None:
        if len(self._values) >= self._room:  # some users make a new optimizer for each batch
            self._values = {key: entry for key, entry in self._values.items() if entry[0]() is not None}
            self._room = 64 + 2 * len(self._values)
        self._values[id(optimizer)] = weakref.ref(optimizer), value

    def __contains__(self, optimizer: Optimizer) -> bool:
        entry = self._values.get(id(optimizer))
        return entry is not None and entry[0]() is optimizer

    def __iter__(self) -> Iterator[Optimizer]:
        found = [reference() for reference, _ in self._values.values()]
        return iter([optimizer for optimizer in found if optimizer is not None])

    def get(self, optimizer: Optimizer) -> T | None:
        return self._values[id(optimizer)][1] if optimizer in self else None

    def pop(self, optimizer: Optimizer) -> T | None:
        entry = self._values.pop(id(optimizer), None)
        return None if entry is None or entry[0]() is not optimizer else entry[1]

    def clear(self) -> None:
        self._values.clear()


def _remove(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _weak(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a method while its object lives, without keeping it alive."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():  # comes first, so that no graph breaks here
            return None
        found = reference()
        return None if found is None else found(*args)

    return call


def _closure_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any] | None:
    """Return the closure among the arguments of ``step``, the first of which is the optimizer."""
    found = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return found if callable(found) and not isinstance(found, nn.Module) else None  # step(model): K-FAC and similar


def _with_closure(args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[..., Any]) -> Any:
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs


def _parameters_of(optimizer: Optimizer) -> list[int]:
    return [id(param) for group in optimizer.param_groups for param in group["params"]]


def _calls_itself(optimizer: Optimizer) -> bool:
    """Return True if super().step() calls the hooks again within one step, as a base class has a ``step`` with hooks.

    Otherwise a step that is not over when the next one begins has raised.
    """
    steps = [vars(kind).get("step") for kind in type(optimizer).__mro__]
    return len([step for step in steps if hasattr(step, "hooked")]) > 1  # torch's mark; seen in torch 2.13

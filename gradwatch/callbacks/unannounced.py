"""Steps of optimizers that Lightning does not announce, found through torch's global optimizer hooks."""

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

from gradwatch.probe.modules import named_parameters

T = TypeVar("T")


class UnannouncedSteps:
    """Calls a function just before each optimizer step that Lightning does not announce.

    Lightning calls ``on_before_optimizer_step`` only for optimizers that step through it. It never comes for
    ``self.optimizers(use_pl_optimizer=False)``, for optimizers made by hand, and for optimizers that step inside the
    backward pass. All of them step through torch's global hooks, which are in place while this is open.

    An optimizer that steps inside the step of another one with the same parameters (SAM, Lookahead,
    ZeroRedundancyOptimizer) is a part of that step and not reported. Neither is an optimizer without a parameter of
    the module, a step in code that ``torch.compile`` compiles, and in automatic optimization a step with a closure,
    since that is the way in which Lightning steps there.

    Args:
        before: called with the optimizer, when its gradients are there. What it raises reaches the user.

    Example:
        >>> seen, layer = [], nn.Linear(1, 1)
        >>> optimizer, steps = torch.optim.SGD(layer.parameters()), UnannouncedSteps(seen.append)
        >>> steps.open(layer)
        >>> optimizer.step()
        >>> steps.announced(optimizer)  # from on_before_optimizer_step
        >>> optimizer.step()
        >>> steps.close()
        >>> optimizer.step()
        >>> len(seen)
        1
    """

    def __init__(self, before: Callable[[Optimizer], None]) -> None:
        self._before = before
        self._module: nn.Module | None = None
        self._remove: Callable[[], Any] = _nothing
        self._params: frozenset[int] = frozenset()
        self._seen: _ByOptimizer[_Seen] = _ByOptimizer()
        self._marks: _ByOptimizer[int] = _ByOptimizer()  # announced -> the global step at which
        self._under_way: _ByOptimizer[None] = _ByOptimizer()  # steps not over whose gradients have been handed over

    def open(self, module: nn.Module) -> None:
        """Begin to look at the steps of optimizers that hold a parameter of this module."""
        self.close()
        self._module = module
        handles = [
            register_optimizer_step_pre_hook(_weak(self._on_step)),
            register_optimizer_step_post_hook(_weak(self._on_end)),
        ]
        # Also called when this object dies unclosed: a global hook would otherwise stay for the whole process.
        self._remove = weakref.finalize(self, _remove, handles)

    def announced(self, optimizer: Optimizer) -> None:
        """Note that the next step of an optimizer is Lightning's, or the one whose closure is running."""
        self._marks[optimizer] = self._global_step

    def close(self) -> None:
        """Remove the hooks and forget the module and its optimizers."""
        self._remove()
        self._remove, self._module, self._params = _nothing, None, frozenset()
        for kept in (self._seen, self._marks, self._under_way):
            kept.clear()

    def __reduce__(self) -> Any:
        """A copy, pickled or deep, is a closed one: hooks stay with the original."""
        return type(self), (self._before,)

    @property
    def _global_step(self) -> int:
        # Lightning counts a step when it is over, also one that the loss scaler skipped. A mark of an earlier count is
        # left from such a step, and says nothing about the step that comes now.
        step: int = getattr(self._module, "global_step", 0)
        return step

    def _on_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = _closure_in(args, kwargs)
        if closure is not None and getattr(self._module, "automatic_optimization", False):
            return None
        if not self._concerns(optimizer):
            return None
        if closure is None:
            self._take(optimizer)
            return None
        return _with_closure(args, kwargs, partial(self._run, optimizer, closure))

    def _run(self, optimizer: Optimizer, closure: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a closure, which makes the gradients, then take them; LBFGS does so many times a step."""
        self._marks.pop(optimizer)
        self._under_way.pop(optimizer)
        result = closure(*args, **kwargs)
        self._take(optimizer)
        return result

    def _take(self, optimizer: Optimizer) -> None:
        """Hand an optimizer over whose gradients are there, unless somebody did."""
        is_announced = self._marks.pop(optimizer) == self._global_step
        if not is_announced and self._module is not None and not self._is_part_of_another(optimizer):
            self._before(optimizer)
        self._under_way[optimizer] = None

    def _on_end(self, optimizer: Optimizer, *_: Any) -> None:
        self._under_way.pop(optimizer)

    def _is_part_of_another(self, optimizer: Optimizer) -> bool:
        if optimizer in self._under_way and _calls_itself(optimizer):
            return True
        now = self._global_step
        outer = [*self._under_way, *(marked for marked in self._marks if self._marks.get(marked) == now)]
        others = {id_ for other in outer if other is not optimizer for id_ in _parameters_of(other)}
        return bool(others) and not others.isdisjoint(_parameters_of(optimizer))

    def _concerns(self, optimizer: Optimizer) -> bool:
        seen = self._seen.get(optimizer)
        if seen is None:
            seen = self._seen[optimizer] = _Seen()
        if not seen.is_ours:
            seen.steps += 1
            # A parameter may become one of the module's later. To look at the 1st, 2nd, 4th, 8th step is cheap.
            if seen.steps & (seen.steps - 1) == 0:
                seen.is_ours = self._holds_ours(_parameters_of(optimizer))
        return seen.is_ours

    def _holds_ours(self, params: Sequence[int]) -> bool:
        if self._params.isdisjoint(params) and self._module is not None:
            self._params = frozenset(id(param) for _, param, _ in named_parameters(self._module))
        return not self._params.isdisjoint(params)


class _Seen:
    """Remembers of an optimizer if it has a parameter of the module, and how often it stepped without one."""

    def __init__(self) -> None:
        self.is_ours = False
        self.steps = 0


class _ByOptimizer(Generic[T]):
    """Values by optimizer: by identity, since a subclass may define ``==``, and not for longer than it lives."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[weakref.ref[Optimizer], T]] = {}
        self._room = 64

    def __setitem__(self, optimizer: Optimizer, value: T) -> None:
        if len(self._values) >= self._room:  # some people make a new optimizer for each batch
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


def _nothing() -> None:
    pass


def _remove(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _weak(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a method for as long as its object lives, and does not keep it alive."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():  # first of all, so that no graph breaks here
            return None
        found = reference()
        return None if found is None else found(*args)

    return call


def _closure_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any] | None:
    """Return the closure among the arguments of ``step``, the first of which is the optimizer."""
    found = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return found if callable(found) and not isinstance(found, nn.Module) else None  # step(model): K-FAC and its like


def _with_closure(args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[..., Any]) -> Any:
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs


def _parameters_of(optimizer: Optimizer) -> list[int]:
    return [id(param) for group in optimizer.param_groups for param in group["params"]]


def _calls_itself(optimizer: Optimizer) -> bool:
    """Return True if a class and one it is derived from both have a ``step`` with hooks: super().step() is no new step.

    Otherwise a step that is still under way when the next one begins has raised.
    """
    steps = [vars(kind).get("step") for kind in type(optimizer).__mro__]
    return len([step for step in steps if hasattr(step, "hooked")]) > 1  # torch's mark; seen in torch 2.13

"""The clips by norm that run while a step is measured, and if they can do anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradwatch.containment import Containment
from gradwatch.probe.layers import named_parameters
from gradwatch.torch_internals import listen_to_clips, stop_listening_to_clips, version_of

NOTHING = ("", math.nan, None)
Seen = tuple[str, float, "Tensor | None"]  # a Snapshot's clip, its bound, and the total norm that was clipped unread
_PART = "the clips"  # that is out of service when noting fails
_MOST_CALLS = 64  # of one step that are noted: a closure may clip hundreds of times

Mark = tuple[int, int | None]  # identity of a gradient and the counter of its writes


@dataclass
class _Call:
    """One clip: its bound, its parameters of the model, and the marks of their gradients when it had ended."""

    bound: float
    marks: dict[int, Mark | None]
    is_late: bool  # a gradient of this step had come by then
    norm: Tensor | None  # total norm before it, a scalar
    case: str = ""
    is_unread: bool = False  # the gradients were read only after it


class Clips:
    """Notes the calls of ``clip_grad_norm_`` during one measured step.

    It keeps numbers only: no parameter and no gradient is kept alive.

    Args:
        has_seen_gradients: returns True if a gradient has come to a layer's output in this step.
    """

    def __init__(self, model: nn.Module, has_seen_gradients: Callable[[], bool], containment: Containment) -> None:
        self._model, self._has_seen, self._containment = model, has_seen_gradients, containment
        self._own: frozenset[int] | None = None  # the model's parameters, by their ids, once a clip has run
        self._is_on = False
        self._calls: list[_Call] = []
        self._known: set[int] = set()  # parameters that were read in this step
        self._read: Callable[[], object] | None = None
        self._wanted: frozenset[int] = frozenset()  # parameters before whose clip that is called

    def read_before(self, params: Iterable[nn.Parameter], read: Callable[[], object]) -> None:
        """Call ``read`` once, just before the first clip of these parameters in this step that follows a gradient."""
        if self._is_on:
            self._wanted, self._read = frozenset(map(id, params)), read

    def before(self, params: Any) -> None:
        """Let the gradients be read before a clip."""
        if self._read is None or not self._has_seen() or not isinstance(params, (list, tuple)):
            return
        if not self._wanted.isdisjoint(map(id, params)):
            read, self._read = self._read, None
            self._containment.run(_PART, read)

    def attach(self) -> None:
        """Begin to note, for a step that is measured."""
        self._calls, self._known = [], set()
        if not self._containment.is_out(_PART):
            self._is_on = True
            listen_to_clips(self)

    def detach(self) -> None:
        """Stop to note, and forget."""
        if not self._is_on:  # at the end of each step that is not measured
            return
        stop_listening_to_clips(self)
        self._calls, self._own, self._known, self._is_on, self._read = [], None, set(), False, None

    def __call__(self, params: Any, max_norm: Any, total_norm: Any) -> None:
        """Note a clip that has just run."""
        self._containment.run(_PART, self._note, params, max_norm, total_norm)

    def _note(self, params: Any, max_norm: Any, total_norm: Any) -> None:
        # A generator is used up by now. A bound on a device would have to be waited for, and a bound of inf is how
        # people ask for the norm alone.
        is_readable = isinstance(params, (list, tuple)) and not isinstance(max_norm, Tensor)
        if not is_readable or not math.isfinite(bound := float(max_norm)) or len(self._calls) >= _MOST_CALLS:
            return
        if self._own is None:
            self._own = frozenset(id(param) for _, param, _ in named_parameters(self._model))
        marks = {id(param): _mark(param) for param in params if id(param) in self._own}
        call = _Call(bound, marks, self._has_seen(), total_norm if type(total_norm) is Tensor else None)
        if not marks:
            if self._is_of_a_copy(params) and call.is_late:
                call.case = "no gradients"
                self._calls.append(call)
            return
        if call.is_late:
            call.case = "norm" if any(marks.values()) else "no gradients"
        self._calls.append(call)

    def _is_of_a_copy(self, params: Sequence[Any]) -> bool:
        """Return True for as many parameters as the model's, of the same shapes, none with a gradient."""
        own = [param for _, param, _ in named_parameters(self._model)]
        if len(params) != len(own) or any(param.grad is not None for param in params):
            return False
        return sorted(tuple(param.shape) for param in params) == sorted(tuple(param.shape) for param in own)

    def compare(self, params: Iterable[nn.Parameter]) -> None:
        """Tell, just before an optimizer's step, which clips ran before the gradients that it will use."""
        if self._is_on:
            self._containment.run(_PART, self._compare, params)

    def _compare(self, params: Iterable[nn.Parameter]) -> None:
        has_seen = self._has_seen()
        now = {id(param): mark for param in params if (mark := _mark(param)) is not None}
        for call in self._calls:
            shared = call.marks.keys() & now.keys()
            # A gradient that was read before the clip has a reading of its own: this one is not the first.
            call.is_unread = call.is_unread or bool(shared - self._known)
            if call.case:
                continue
            # Without a layer in sight no gradient is seen to come. A gradient that is the same as when it was clipped
            # came before the clip, whatever was seen: in the step before, or to layers that are not watched.
            if any(call.marks[key] == now[key] for key in shared):
                call.case = "norm"
            elif shared and has_seen:
                call.case = "before backward"
        self._known |= now.keys()

    def found(self) -> Seen:
        """Return the case of this step's clips, as ``Snapshot.clip`` has it, and the bound."""
        first = {call.case: call for call in reversed(self._calls)}
        for case in ("norm", "", "no gradients", "before backward"):
            if case and case in first:
                return self._numbers(first[case])
            if case in first:
                break
        return NOTHING

    def _numbers(self, call: _Call) -> Seen:
        """Return case and bound, and the norm where the Snapshot can't have it by itself."""
        if call.case != "norm" or not call.is_unread:
            return call.case, call.bound, None
        is_only = sum(other.case == "norm" for other in self._calls) == 1
        return (call.case, call.bound, call.norm) if is_only and call.norm is not None else (call.case, math.nan, None)


def _mark(param: Any) -> Mark | None:
    """Return what tells a gradient from a later one; None without a gradient."""
    grad = param.grad
    return None if grad is None else (id(grad), version_of(grad))

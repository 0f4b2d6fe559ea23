"""The origin of NaN: a step is computed again, and each operation is looked at, forward and backward."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradwatch.places import Place, names_of, running_place
from gradwatch.probe.call_log import tensors_in
from gradwatch.probe.layers import named_modules, named_parameters, own_buffers
from gradwatch.probe.norms import is_plain, is_readable
from gradwatch.probe.shards import is_sharded
from gradwatch.snapshot import Origin
from gradwatch.torch_internals import run_eagerly

_MOST_CALLS = 1 << 18  # of one step
_SPELLED = {"__rdiv__": "div", "__rtruediv__": "div", "true_divide": "div", "divide": "div", "__rpow__": "pow"}
_LISTS = {"__get__", "__set__", "requires_grad_", "backward", "__repr__"}
FINITE, INF, NAN = 0, 1, 2


@dataclass(eq=False)
class _Call:
    """An operation of the user's that was called: on what place, and the tensors of it that are not finite."""

    name: str
    place: Place
    sizes: str = ""
    is_intended: bool = False  # Inf was given as a number, as in masked_fill(mask, -inf)
    bad_inputs: list[Tensor] = field(default_factory=list)
    state: int = FINITE


class _Listening(TorchFunctionMode):
    """Looks at what each function of torch takes and returns; keeps the calls that return NaN or Inf."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self._made: dict[int, tuple[Tensor, _Call]] = {}  # holds the tensor, so that its id stays its own
        self._by_storage: dict[int, _Call] = {}
        self.nodes: dict[Any, _Call] = {}
        self.last_nan: Tensor | None = None
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _LISTS or self._count > _MOST_CALLS:
            return func(*args, **kwargs)
        self._count += 1
        given = [tensor for tensor in tensors_in((args, kwargs)) if state_of(tensor)]
        extent = _extent(args) if not given else ""
        output = func(*args, **kwargs)
        frame = sys._getframe(1)
        tensors = tensors_in(output)
        if name == "__setitem__":
            tensors = [args[0]]
        call: _Call | None = None
        for tensor in tensors:
            state = state_of(tensor)
            if not state and not tensor.requires_grad:
                continue
            if any(tensor is one for one in given):  # float() of a float32 gives back what another call has made
                continue
            if call is None:
                call = _Call(
                    _spelled(name, args), running_place(frame, self._names), extent, _takes_inf(args, kwargs), given
                )
                call.is_intended = call.is_intended or not tensors_in((args, kwargs))
            if state:
                call.state = max(call.state, state)
                self._made[id(tensor)] = tensor, call
                self._by_storage[_storage(tensor)] = call
                if state == NAN:
                    self.last_nan = tensor
            self._note_nodes(tensor, call)
        return output

    def _note_nodes(self, tensor: Tensor, call: _Call) -> None:
        waiting = [tensor.grad_fn]
        while waiting:
            node: Any = waiting.pop()
            if node is None or node in self.nodes or node.name().endswith("AccumulateGrad"):
                continue
            self.nodes[node] = call
            waiting += [other for other, _ in node.next_functions]

    def made(self, tensor: Tensor) -> _Call | None:
        """Return the call that made a tensor what it is."""
        known = self._made.get(id(tensor))
        return known[1] if known is not None else self._by_storage.get(_storage(tensor))


def _spelled(name: str, args: Any) -> str:
    """Return the name of an operation in the user's words; a whole power, which can only overflow, with its exponent.

    Example:
        >>> _spelled("__rtruediv__", ()), _spelled("sqrt_", ()), _spelled("pow", (0, 2)), _spelled("pow", (0, 0.5))
        ('div', 'sqrt', 'pow(2)', 'pow')
    """
    name = _SPELLED.get(name, name.rstrip("_") if not name.startswith("__") else name.strip("_"))
    exponent = args[1] if name == "pow" and len(args) > 1 else None
    is_whole = isinstance(exponent, int | float) and exponent > 0 and exponent == int(exponent)
    return f"pow({exponent:g})" if is_whole else name


def state_of(tensor: Tensor) -> int:
    """Return 2 where a tensor holds NaN, else 1 where it holds Inf, else 0.

    Example:
        >>> [state_of(torch.tensor([x, 1.0])) for x in (0.0, math.inf, math.nan)]
        [0, 1, 2]
    """
    if not is_readable(tensor) or is_sharded(tensor) or tensor.is_nested or tensor.itemsize == 1:
        return FINITE
    values = tensor.detach()
    values = values.coalesce().values() if values.is_sparse else values
    if values.layout is not torch.strided or not values.numel() or bool(torch.isfinite(values).all()):
        return FINITE
    return NAN if bool(torch.isnan(values).any()) else INF


def find_origin(
    step: int, model: nn.Module, compute: Callable[[], Any], batch: Any = None, state: Tensor | None = None
) -> Origin | None:
    """Compute a step's loss and its gradients again, and return where NaN or Inf first appears; None if nowhere.

    It runs code of the user's a second time, which counts, draws random numbers and adds to gradients. So the pipeline
    calls it in a fork.

    Args:
        step: index of the optimizer step.
        model: is trained.
        compute: returns the loss again, or a mapping that holds it.
        batch: what it is computed from; NaN in it is the data's.
        state: of torch's random numbers when the step began.

    Cost: two passes, and a look at each tensor.

    Example:
        >>> weight = nn.Linear(2, 1)
        >>> origin = find_origin(7, weight, lambda: (weight(torch.zeros(1, 2)) * 0).sqrt().sum())
        >>> origin.operation, origin.way
        ('sqrt', 'backward')
    """
    listening = _Listening(names_of(model))
    if state is not None:
        torch.set_rng_state(state)
    with run_eagerly(), torch.enable_grad():
        try:
            with listening:
                result = compute()
        except Exception:  # of the user's: an assert on NaN, or a distribution that refuses it
            return None if listening.last_nan is None else _forward(step, listening, listening.last_nan, model, batch)
        loss = result.get("loss") if isinstance(result, dict) else result
        if not isinstance(loss, Tensor):
            return None
        if state_of(loss):
            return _forward(step, listening, loss, model, batch)
        return _backward(step, listening, loss, model) if loss.requires_grad else None


def _forward(step: int, listening: _Listening, bad: Tensor, model: nn.Module, batch: Any) -> Origin | None:
    """Follow a tensor that is not finite back to the call whose inputs still were."""
    path: list[_Call] = []
    tensor = bad
    while (call := listening.made(tensor)) is not None and call not in path:
        path.append(call)
        if not call.bad_inputs:
            break
        tensor = max(call.bad_inputs, key=state_of)
    else:
        call = None
    if call is None or call.bad_inputs:  # it came in from outside
        if any(_storage(tensor) == _storage(own) for own in _own_tensors(model)):
            return Origin(step, "weights")
        if not any(map(state_of, tensors_in(batch))):
            return None  # from neither, such as a value that was kept from an earlier step
        place = path[-1].place if path else Place()
        return Origin(step, "batch", path[-1].name if path else "", "forward", place.layer, place.line, place.function)
    if call.is_intended:  # Inf of a mask, and what made NaN of it
        call = next((one for one in reversed(path) if one.state == NAN), call)
    place = call.place
    return Origin(step, "operation", call.name, "forward", place.layer, place.line, place.function, call.sizes)


def _backward(step: int, listening: _Listening, loss: Tensor, model: nn.Module) -> Origin | None:
    """Return the operation whose gradient is not finite, though the gradient that came to it is."""
    seen: dict[Any, tuple[list[int], list[int]]] = {}

    def look(node: Any) -> Callable[[Any, Any], None]:
        def note(inward: Sequence[Tensor | None], outward: Sequence[Tensor | None]) -> None:
            seen[node] = tuple([0 if t is None else state_of(t) for t in row] for row in (inward, outward))  # type: ignore[assignment]

        return note

    params = [param for _, param, _ in named_parameters(model)]
    for param in params:
        param.grad = None
    for node in listening.nodes:
        node.register_hook(look(node))
    torch.autograd.backward(loss)
    if not any(param.grad is not None and state_of(param.grad) for param in params):
        return None
    for node, (inward, outward) in seen.items():  # in the order in which they ran
        if any(inward) and not any(outward) and _arrives(node, seen, inward):
            call = listening.nodes[node]
            place = call.place
            return Origin(step, "operation", call.name, "backward", place.layer, place.line, place.function, call.sizes)
    return None


def _arrives(node: Any, seen: dict[Any, tuple[list[int], list[int]]], inward: list[int]) -> bool:
    """Return True if the gradient of a node that is not finite stays so on a way to a parameter."""
    waiting = [other for (other, _), bad in zip(node.next_functions, inward, strict=False) if bad]
    known = set()
    while waiting:
        one = waiting.pop()
        if one is None or one in known:
            continue
        known.add(one)
        if one not in seen:  # a leaf
            return True
        waiting += [other for (other, _), bad in zip(one.next_functions, seen[one][0], strict=False) if bad]
    return False


def _own_tensors(model: nn.Module) -> list[Tensor]:
    params: list[Tensor] = [param for _, param, _ in named_parameters(model)]
    return params + [buffer for _, module in named_modules(model) for _, buffer in own_buffers(module)]


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # a sparse tensor has none
        return id(tensor)


def _takes_inf(args: Any, kwargs: Any) -> bool:
    values = [*args, *kwargs.values()]
    return any(isinstance(value, float) and not math.isfinite(value) for value in values) or any(
        tensor.dim() == 0 and not tensor.requires_grad and state_of(tensor) == INF for tensor in tensors_in(values)
    )


def _extent(args: Any) -> str:
    """Return from where to where the numbers go that an operation is given."""
    for tensor in tensors_in(args)[:1]:
        if is_readable(tensor) and is_plain(tensor) and tensor.numel():
            low, high = tensor.detach().aminmax()
            return f"{float(low):.3g} to {float(high):.3g}"
    return ""

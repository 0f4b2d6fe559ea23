"""Kinds of tensors: nested, masked, and subclasses that watch the operations on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.masked import masked_tensor
from torch.utils._pytree import tree_map
from zoo import WIDTH, Scale, has_columns, module, part


def nested(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([torch.randn(n, WIDTH) for n in (2, 3, 1)], layout=layout, requires_grad=True)


def loss_of_nested(model: nn.Module, batch: Tensor) -> Tensor:
    return sum(row.square().mean() for row in model(batch).unbind())  # type: ignore[return-value]


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2))


@module(batch=lambda: nested(torch.strided), loss=loss_of_nested)
def nested_of_layout_strided() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 2))


@module(batch=lambda: nested(torch.jagged), loss=loss_of_nested)
def nested_of_layout_jagged() -> nn.Module:
    return layers()


@part(take=lambda out: out.to_padded_tensor(0.0).flatten(0, 1))
class NestedOutput(Scale):
    def forward(self, x: Tensor) -> Any:
        return torch.nested.as_nested_tensor([(x * self.weight)[:3], (x * self.weight)[3:]])


@part(take=lambda out: out[1])
class JaggedBesideDense(Scale):
    def forward(self, x: Tensor) -> Any:
        out = x * self.weight
        return torch.nested.as_nested_tensor([out[:3], out[3:]], layout=torch.jagged), out


@part(take=lambda out: out.to_tensor(0.0))
class MaskedOutput(Scale):
    def forward(self, x: Tensor) -> Any:
        return masked_tensor(x * self.weight, x > 0)


@module(batch=lambda: masked_tensor(torch.randn(8, WIDTH), torch.rand(8, WIDTH) > 0.2))
class MaskedInput(Scale):
    def forward(self, x: Any) -> Any:
        return (x * 2).to_tensor(0.0) * self.weight


ALLOWED = {"mul", "linear", "relu", "sigmoid", "tanh"}


class Strict(Tensor):
    """Raises for each operation that is not on its list."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in ALLOWED:
            raise NotImplementedError(f"{func.__name__} is not defined for these units")
        return super().__torch_function__(func, types, args, kwargs or {})


class Counting(Tensor):
    """Counts the operations on it."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Counting.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


class Drawing(Tensor):
    """Draws a random number with each operation on it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        torch.rand(1)
        return super().__torch_function__(func, types, args, kwargs or {})


def plain(value: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def loss_of_subclass(model: nn.Module, batch: Tensor) -> Tensor:
    return plain(model(batch)).square().mean()


def loss_of_calls(model: nn.Module, batch: Tensor) -> Tensor:
    """The calls change the loss, so that one more would be seen."""
    Counting.calls = 0
    out = model(batch)
    calls = Counting.calls
    return plain(out).square().mean() * (1 + calls)


@module(batch=lambda: torch.randn(8, WIDTH).as_subclass(Strict), loss=loss_of_subclass)
def strict_subclass() -> nn.Module:
    return layers()


@module(batch=lambda: torch.randn(8, WIDTH).as_subclass(Counting), loss=loss_of_calls)
def subclass_that_counts_calls() -> nn.Module:
    return layers()


@module(batch=lambda: torch.randn(8, WIDTH).as_subclass(Drawing), loss=loss_of_subclass)
def subclass_that_draws_numbers() -> nn.Module:
    return layers()


@part(take=plain)
class StrictOutput(Scale):
    def forward(self, x: Tensor) -> Any:
        return (x * self.weight).as_subclass(Strict)


class Wrapped(Tensor):
    """Wraps another tensor and sees each operation; has no storage."""

    inner: Tensor
    seen = 0

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, requires_grad=inner.requires_grad)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Wrapped.seen += 1

        def unwrap(value: Any) -> Any:
            return value.inner if isinstance(value, Wrapped) else value

        def wrap(value: Any) -> Any:
            return Wrapped(value) if isinstance(value, Tensor) else value

        return tree_map(wrap, func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {})))


class Unwrap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.inner.clone() if isinstance(x, Wrapped) else x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return Wrapped(grad)


@part(take=lambda out: Unwrap.apply(out))
class DispatchingOutput(Scale):
    def forward(self, x: Tensor) -> Any:
        return Wrapped(x.detach()) * 2


class Refusing(Wrapped):
    """Knows only a handful of operations."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ not in {"detach", "mul", "clone", "t", "addmm", "mm", "alias", "view"}:
            raise NotImplementedError(f"no {func}")
        return super().__torch_dispatch__(func, types, args, kwargs)


@part(take=lambda out: out[1])
class OutputThatKnowsFewOperations(Scale):
    def forward(self, x: Tensor) -> Any:
        return Refusing(x.detach()), x * self.weight


def loss_of_seen(model: nn.Module, batch: Tensor) -> Tensor:
    """The operations that the subclass saw change the loss, so that one more would be seen."""
    Wrapped.seen = 0
    return model(batch).square().mean() * (1 + Wrapped.seen)


@module(batch=lambda: Wrapped(torch.randn(8, WIDTH)), loss=loss_of_seen)
class SubclassThatSeesEachOperation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = layers().requires_grad_(False)
        self.last = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Unwrap.apply(self.frozen(x.detach().requires_grad_())))


@part(expect=has_columns("grad_norm", "output_rms"))
class ParameterOfASubclass(nn.Module):
    class Named(nn.Parameter):
        """A parameter of another class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.Named(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@part()
class BufferOfASubclass(Scale):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(WIDTH).as_subclass(Counting))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.detach().mean(0)
        return x * self.weight


@part(take=lambda out: out[1])
class NestedWithoutARow(Scale):
    def forward(self, x: Tensor) -> Any:
        return torch.nested.nested_tensor([], layout=torch.strided), x * self.weight

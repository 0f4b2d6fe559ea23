"""Parts that put out dataclasses, mappings and other unusual containers."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from zoo import Scale, has_columns, part

GRADIENT = ("grad_norm", "grad_output_norm", "gain", "output_rms")


@dataclasses.dataclass
class Output:
    states: Tensor
    extra: Any = None


@dataclasses.dataclass
class UnsetField:
    late: Tensor = dataclasses.field(init=False)
    states: Tensor = dataclasses.field(kw_only=True)


@dataclasses.dataclass(slots=True)
class Slots:
    states: Tensor
    late: Tensor = dataclasses.field(init=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
    states: Tensor
    scale: dataclasses.InitVar[float] = 1.0


@dataclasses.dataclass
class LazyField:
    """A field that is a property: to read it is to compute it."""

    states: Tensor
    noise: Any = None

    def __getattribute__(self, name: str) -> Any:
        return torch.rand(2) if name == "noise" else super().__getattribute__(name)


@dataclasses.dataclass
class RaisingField:
    states: Tensor
    broken: Any = None

    def __getattribute__(self, name: str) -> Any:
        if name == "broken":
            raise RuntimeError("this field can't be read")
        return super().__getattribute__(name)


@part(take=lambda out: out.states, expect=has_columns(*GRADIENT))
class DataclassOutput(Scale):
    def forward(self, x: Tensor) -> Any:
        return Output(x * self.weight, Output(x.detach(), [None]))


@part(take=lambda out: out.states, expect=has_columns(*GRADIENT))
class DataclassWithAnUnsetField(Scale):
    def forward(self, x: Tensor) -> Any:
        return UnsetField(states=x * self.weight)


@part(take=lambda out: out.states)
class DataclassWithSlotsAndAnUnsetField(Scale):
    def forward(self, x: Tensor) -> Any:
        return Slots(x * self.weight)


@part(take=lambda out: out.states)
class FrozenDataclassWithInitVar(Scale):
    def forward(self, x: Tensor) -> Any:
        return Frozen(x * self.weight, 2.0)


@part(take=lambda out: out.states)
class DataclassWhoseFieldDrawsANumber(Scale):
    def forward(self, x: Tensor) -> Any:
        return LazyField(x * self.weight)


@part(take=lambda out: out.states)
class DataclassWhoseFieldRaises(Scale):
    def forward(self, x: Tensor) -> Any:
        return RaisingField(x * self.weight)


class Computing:
    """A plain object with properties that compute and that raise."""

    def __init__(self, states: Tensor) -> None:
        self.states = states

    @property
    def noise(self) -> Tensor:
        return torch.rand(2)

    @cached_property
    def broken(self) -> Tensor:
        raise RuntimeError("a property that raises")


@part(take=lambda out: out.states)
class ObjectWithPropertiesThatComputeAndRaise(Scale):
    def forward(self, x: Tensor) -> Any:
        return Computing(x * self.weight)


@part(take=lambda out: out.states)
class DataclassWithPropertiesThatComputeAndRaise(Scale):
    def forward(self, x: Tensor) -> Any:
        kind = dataclasses.make_dataclass("Made", [("states", Tensor)], bases=(Computing,))
        return kind(x * self.weight)


class RaisingValues(dict[str, Any]):
    def values(self) -> Any:
        raise RuntimeError("values that can't be listed")

    def items(self) -> Any:
        raise RuntimeError("items that can't be listed")


@part(take=lambda out: out["states"])
class DictWhoseValuesRaise(Scale):
    def forward(self, x: Tensor) -> Any:
        return RaisingValues(states=x * self.weight)


class Drawing(Mapping[str, Any]):
    """A mapping that makes its values when asked, of random numbers."""

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __getitem__(self, key: str) -> Any:
        return self.states * torch.rand(())

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])

    def __len__(self) -> int:
        return 2


class Raising(Drawing):
    def __getitem__(self, key: str) -> Any:
        raise KeyError(f"no {key}")


class Endless(Drawing):
    def __iter__(self) -> Iterator[str]:
        yield from ["a"] * 5_000
        raise RuntimeError("nobody may go through all of it")


@part(take=lambda out: out["a"])
class MappingThatMakesItsValuesWhenAsked(Scale):
    def forward(self, x: Tensor) -> Any:
        return Drawing(x * self.weight)


@part(take=lambda out: out.states)
class MappingThatHasNoValues(Scale):
    def forward(self, x: Tensor) -> Any:
        return Raising(x * self.weight)


@part(take=lambda out: out["a"])
class MappingWithoutEnd(Scale):
    def forward(self, x: Tensor) -> Any:
        return Endless(x * self.weight)


@part(take=lambda out: out["states"])
class UserDictOutput(Scale):
    def forward(self, x: Tensor) -> Any:
        return UserDict(states=x * self.weight)


class ModelOutput(OrderedDict[str, Any]):
    """As in transformers: an ordered dict that is also a dataclass; fields of None are no items."""

    def __post_init__(self) -> None:
        for given in dataclasses.fields(self):  # type: ignore[arg-type]
            if (value := getattr(self, given.name)) is not None:
                super().__setitem__(given.name, value)

    def __getitem__(self, key: Any) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else tuple(self[k] for k in self)[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("you cannot use update on a ModelOutput")


@dataclasses.dataclass
class Logits(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]
    past: Any = None


@part(take=lambda out: out[0], expect=has_columns(*GRADIENT))
class ModelOutputOfLogitsAndStates(Scale):
    def forward(self, x: Tensor) -> Any:
        return Logits(logits=x * self.weight, past=((x.detach(), x.detach()),))


@part(take=lambda out: out.logits + out.loss)
class ModelOutputWithALoss(Scale):
    def forward(self, x: Tensor) -> Any:
        out = x * self.weight
        return Logits(out.square().mean(), out)


class Proxy:
    """Answers everything with itself."""

    def __init__(self, states: Tensor) -> None:
        self.__dict__["states"] = states

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any) -> Any:
        return self

    def __iter__(self) -> Any:
        return iter([self])


@part(take=lambda out: out.states)
class ProxyOfEverything(Scale):
    def forward(self, x: Tensor) -> Any:
        return Proxy(x * self.weight)


class Comparing(list[Any]):
    """Is equal to nothing, true of nothing, and has no length."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    def __len__(self) -> int:
        raise RuntimeError("not to be counted")

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


@part(take=lambda out: out[0])
class ListThatCannotBeComparedOrCounted(Scale):
    def forward(self, x: Tensor) -> Any:
        return Comparing([x * self.weight])

"""Modules with unusual overrides."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from zoo import UNCALLED, WIDTH, Expect, Scale, has_columns, mlp, module, part, sgd

GRADIENT = has_columns("grad_norm", "grad_output_norm", "output_rms")


def last(*columns: str) -> Expect:
    """The ordinary layer behind the odd one is measured."""
    return has_columns(*columns or ("grad_norm", "grad_output_norm", "output_rms"), layer="last")


@part(expect=last())
class LinearWithoutWeight(nn.Linear):
    """Keeps its matrix under other names, as adapters of low rank do."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        del self.weight
        self.a, self.b = nn.Parameter(torch.randn(WIDTH, 2)), nn.Parameter(torch.randn(2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a @ self.b + self.bias


@part(expect=last())
class LinearWhoseWeightIsNone(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.weight = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


@part(expect=last())
class LinearWhoseWeightIsAListOfThem(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        del self.weight
        self.weight = nn.ParameterList([torch.eye(WIDTH), torch.eye(WIDTH)])  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight[0] @ self.weight[1]


@part(expect=last())
class ConvolutionWithoutStride(nn.Conv1d):
    def __init__(self) -> None:
        super().__init__(1, 1, 3, padding=1)
        del self.stride

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(x[:, None], self.weight, self.bias, padding=1)[:, 0]


def trained_by_hand(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer of the ordinary layers around an odd one."""
    return torch.optim.SGD([*model.first.parameters(), *model.last.parameters()], lr=0.05)


@part(optimizer=trained_by_hand, expect=last())
class ParametersThatAreHidden(Scale):
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter(())

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return iter(())


@part(optimizer=trained_by_hand, expect=last())
class ParametersWithoutArguments(Scale):
    def parameters(self) -> Iterator[nn.Parameter]:  # type: ignore[override]
        yield self.weight


@part(expect=last())
class ParametersInGroups(Scale):
    """Returns groups for an optimizer, as some libraries' models do."""

    def parameters(self, recurse: bool = True) -> Any:
        return [{"params": [self.weight], "lr": 0.1}]


@module(optimizer=lambda model: sgd(model.net), expect=has_columns("grad_norm", layer="net.0"))
class ModelWhoseParametersRaise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def parameters(self, recurse: bool = True) -> Any:
        if recurse:
            raise RuntimeError("ask for the parameters of the parts")
        return iter(())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@part(expect=last())
class NamedModulesThatAreHidden(Scale):
    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        return iter(())


@part(expect=last())
class NamedModulesThatAreNone(Scale):
    def __init__(self) -> None:
        super().__init__()
        self.register_module("nothing", None)


@part(expect=last())
class ChildrenThatAreHidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def named_children(self) -> Any:
        return iter(())

    def children(self) -> Any:
        return iter(())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@module(expect=has_columns("grad_norm", layer="net.0"))
class ModulesInAnotherOrder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def modules(self) -> Any:
        return reversed(list(super().modules()))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Registered(nn.Module):
    """Has its parameter without ``setattr``, which asks ``getattr``."""

    def __init__(self) -> None:
        super().__init__()
        self._parameters["weight"] = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self._parameters["weight"]


@part(expect=last())
class GetattrThatRaisesRuntimeErrors(Registered):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name} here")


@part(expect=last())
class GetattrThatRaisesKeyErrors(Registered):
    def __getattr__(self, name: str) -> Any:
        return {"weight": self._parameters["weight"]}[name]


@part(expect=last())
class GetattrThatAnswersEverything(Registered):
    """As in wrappers that pass on unknown names."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self


@part(expect=last())
class GetattributeThatRaises(Registered):
    def __getattribute__(self, name: str) -> Any:
        if name in ("weight", "inplace", "in_features", "stride", "bias"):
            raise RuntimeError(f"{name} is not to be read")
        return super().__getattribute__(name)


@part(expect=last())
class PropertyInplaceThatRaises(Scale):
    @property
    def inplace(self) -> bool:
        raise RuntimeError("nobody knows")


@part(expect=last())
class InplaceThatIsATensor(Scale):
    inplace = torch.ones(2)


@part(expect=last())
class PropertyWeightThatRaises(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)

    @property
    def in_features(self) -> int:
        raise RuntimeError("computed later")

    @in_features.setter
    def in_features(self, value: int) -> None: ...


@part(expect=last())
class NeitherTrueNorCounted(Scale):
    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


@part(expect=last())
class EqualToEverything(Scale):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


@part(expect=GRADIENT)
class CallOverridden(Scale):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) * 2


@part(expect=last())
class CallThatSkipsTheHooks(Scale):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


@part(expect=GRADIENT)
def forward_replaced_on_the_instance() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    original = layer.forward
    layer.forward = lambda x: original(x) * 2  # type: ignore[method-assign]
    return layer


@part(expect=GRADIENT)
def forward_bound_to_the_instance() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.forward = types.MethodType(lambda self, x: x @ self.weight.T, layer)  # type: ignore[method-assign]
    return layer


@part(expect=GRADIENT)
def class_exchanged_after_it_was_made() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.__class__ = type("Exchanged", (nn.Linear,), {"forward": lambda self, x: nn.Linear.forward(self, x) * 2})
    return layer


@part(expect=GRADIENT)
class SetattrThatRaises(Scale):
    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in ("training", "weight"):
            super().__setattr__(name, value)
        else:
            raise RuntimeError(f"{name} can't be set")


@part(expect=last())
class HooksThatCannotBeRegistered(Scale):
    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("this module takes no hooks")

    register_forward_pre_hook = register_forward_hook


@part(expect=last())
class HooksOfAnotherSignature(Scale):
    def register_forward_hook(self, hook: Any) -> Any:  # type: ignore[override]
        return super().register_forward_hook(hook)


@part(take=lambda out: out[0], expect=GRADIENT)
class OnlyKeywords(Scale):
    def forward(self, x: Tensor, *, double: bool = True, **kwargs: Any) -> Any:
        return x * self.weight * (2 if double else 1), kwargs


@module(expect=has_columns("grad_norm", "grad_output_norm", layer="odd"))
class CalledWithKeywordsAlone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.odd = nn.Linear(WIDTH, WIDTH), OnlyKeywords()

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(x=self.first(x), double=False, extra=[x])[0]


@module()
class WithoutAnyInput(nn.Module):
    """Called with nothing, as tables of positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(8, WIDTH), nn.Linear(WIDTH, 2)
        self.bias = type("Bias", (Scale,), {"forward": lambda self: self.weight * 2})()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.table(torch.arange(8)) + x + self.bias())


@module(says=UNCALLED)
class UsesItsLayersByTheirWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.inner.weight, self.inner.bias)


@module(says=UNCALLED)
class CallsForwardDirectly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.forward(x)


@module()
def names_that_are_patterns() -> nn.Module:
    names = ["a*", "b?", "[cd]", "e f", "größe", "层", "weight", "g/h", "i\nj", "{k}", "-"]
    return Chain({name: nn.Linear(WIDTH, WIDTH) for name in names})


class Chain(nn.Module):
    """Calls its layers in their order."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x


@module()
def names_of_wrappers() -> nn.Module:
    names = ["_orig_mod", "_checkpoint_wrapped_module", "(root)", "module", "_fsdp_wrapped_module", "x"]
    return Chain({name: Chain({"_orig_mod": nn.Linear(WIDTH, WIDTH)}) for name in names})


@module()
def many_tiny_layers() -> nn.Module:
    return nn.Sequential(*(layer for _ in range(60) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))

"""The modules and parameters of a model, read past what a class has overridden."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module once with its name, as ``nn.Module.named_modules`` does, in the same order.

    A class may override ``named_modules``, ``children`` or ``parameters``: to hide a teacher, to compute, to raise. So
    the modules are read from the dictionaries in which torch registers them.

    Example:
        >>> [name for name, _ in named_modules(nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU())))]
        ['', '0', '1', '1.0']
    """
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        prefix = f"{name}." if name else ""
        children = [(prefix + key, child) for key, child in _registered(module, "_modules") if child is not None]
        waiting += reversed(children)


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a module itself, without those that a parametrization or a property computes.

    Example:
        >>> list(own_parameters(nn.Linear(1, 1)))
        ['weight', 'bias']
    """
    return {name: param for name, param in _registered(module, "_parameters") if param is not None}


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Yield each parameter once, with its first name and the module that has it.

    Example:
        >>> [name for name, _, _ in named_parameters(nn.Sequential(nn.Linear(1, 1)))]
        ['0.weight', '0.bias']
    """
    seen: set[int] = set()
    for name, module in named_modules(model):
        for key, param in own_parameters(module).items():
            if id(param) not in seen:
                seen.add(id(param))
                yield f"{name}.{key}" if name else key, param, module


def is_scripted(module: nn.Module) -> bool:
    """Return True for a module of TorchScript, which takes no hook and whose code calls no module of Python.

    Example:
        >>> is_scripted(nn.Linear(1, 1))
        False
    """
    return isinstance(module, torch.jit.ScriptModule)


class Structure:
    """The modules of a model at one time, to be compared with those at a later time.

    Args:
        model: any module.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1))
        >>> structure = Structure(model)
        >>> structure.is_current()
        True
        >>> model[0] = nn.Linear(1, 1)
        >>> structure.is_current()
        False
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [module for _, module in named_modules(model) if not is_scripted(module)]
        self._held = [(children, _ids(children)) for children in map(_children, modules)]
        self._named = [(params, list(params)) for params in map(_params, modules)]

    def is_current(self) -> bool:
        """Return True if no module was added, removed or replaced, and no parameter added or removed."""
        return all(_ids(children) == before for children, before in self._held) and all(
            list(params) == before for params, before in self._named
        )


def _ids(children: dict[str, Any]) -> list[int]:
    return [*map(id, children.values())]


def _children(module: nn.Module) -> dict[str, Any]:
    children: dict[str, Any] = module.__dict__.get("_modules", {})
    return children


def _params(module: nn.Module) -> dict[str, Any]:
    params: dict[str, Any] = module.__dict__.get("_parameters", {})
    return params


def _registered(module: nn.Module, table: str) -> list[tuple[str, Any]]:
    found = getattr(module, table, {}) if is_scripted(module) else module.__dict__.get(table, {})
    return list(found.items())

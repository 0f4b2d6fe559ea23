"""The modules, layers and parameters of a model by name, and patterns that choose among them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.containment import SettingError
from gradwatch.layer_kinds import is_activation
from gradwatch.torch_internals import WRAPPERS


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
    """Return the parameters of a module itself, without those that a parametrization or a property computes."""
    return {name: param for name, param in _registered(module, "_parameters") if param is not None}


def own_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the buffers of a module itself, by name."""
    return [(name, buffer) for name, buffer in _registered(module, "_buffers") if isinstance(buffer, Tensor)]


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Yield each parameter once, with its first name and the module that has it."""
    seen: set[int] = set()
    for name, module in named_modules(model):
        for key, param in own_parameters(module).items():
            if id(param) not in seen:
                seen.add(id(param))
                yield f"{name}.{key}" if name else key, param, module


def is_scripted(module: nn.Module) -> bool:
    """Return True for a module of TorchScript, which takes no hook and whose code calls no module of Python."""
    return isinstance(module, torch.jit.ScriptModule)


class Structure:
    """The modules of a model at one time, to be compared with those at a later time."""

    def __init__(self, model: nn.Module) -> None:
        tables = [module.__dict__ for _, module in named_modules(model) if not is_scripted(module)]
        self._held = [(children, _ids(children)) for children in (table.get("_modules", {}) for table in tables)]
        self._named = [(params, list(params)) for params in (table.get("_parameters", {}) for table in tables)]

    def is_current(self) -> bool:
        """Return True if no module was added, removed or replaced, and no parameter added or removed."""
        return all(_ids(children) == before for children, before in self._held) and all(
            list(params) == before for params, before in self._named
        )


def _ids(children: dict[str, Any]) -> list[int]:
    return [*map(id, children.values())]


def _registered(module: nn.Module, table: str) -> list[tuple[str, Any]]:
    found = getattr(module, table, {}) if is_scripted(module) else module.__dict__.get(table, {})
    return list(found.items())


ROOT = "(root)"


def find_layers(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = (), *, strict: bool = True
) -> dict[str, nn.Module]:
    """Return the layers of a model by name: modules that have parameters themselves, and activations.

    Args:
        model: any module.
        include: shell patterns (``encoder.*``) of the layers to keep; None keeps all. A name without a wildcard is
            taken whatever the module is, so a home-made activation can be named.
        exclude: patterns of the layers to leave out.
        strict: refuse a pattern that matches nothing.

    Raises:
        SettingError: (a ValueError) when a pattern matches nothing; it gives the nearest names.
    """
    modules = {plain_name(name) or ROOT: module for name, module in named_modules(model)}
    layers = {name: module for name, module in modules.items() if own_parameters(module) or is_activation(module)}
    if include is not None:
        named = {name: modules[name] for name in include if name in modules}
        if strict:
            check_patterns(include, [*layers, *named], "layer")
        layers = {n: m for n, m in modules.items() if n in named or (n in layers and matches(n, include))}
    if strict:
        check_patterns(exclude, layers, "layer")
    return {name: module for name, module in layers.items() if not matches(name, exclude)}


def plain_name(name: str) -> str:
    """Return a name as the model's author wrote it: without what compiling, checkpointing and FSDP insert.

    Example:
        >>> plain_name("_orig_mod.encoder._checkpoint_wrapped_module.weight")
        'encoder.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def kind_of(module: nn.Module) -> str:
    """Return the name of a module's class as its author wrote it: FSDP2 and parametrizations make subclasses.

    Example:
        >>> kind_of(nn.utils.parametrizations.weight_norm(nn.Linear(1, 1)))
        'Linear'
    """
    kinds = [kind.__name__ for kind in type(module).__mro__]
    if kinds[1] == "FSDPModule":
        return kinds[2]
    return kinds[1] if kinds[0] == f"Parametrized{kinds[1]}" else kinds[0]


def network_order(names: Sequence[str], first_call: Mapping[str, float]) -> list[str]:
    """Sort names by their first call; one that is never called stays behind the name in front of it.

    Example:
        >>> network_order(["head", "body", "body.gate"], {"body": 0, "head": 1})
        ['body', 'body.gate', 'head']
    """
    keys, last = {}, -1.0
    for position, name in enumerate(names):
        last = first_call.get(name, last)
        keys[name] = (last, position)
    return sorted(names, key=keys.__getitem__)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return True if one of the patterns matches the whole name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Iterable[str], names: Iterable[str], what: str) -> None:
    """Raise a SettingError (a ValueError) for the first pattern that matches no name of a ``what``."""
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise SettingError(
                f"the pattern {pattern!r} matches no {what}; the nearest of the {len(known)} {what}s are "
                f"{', '.join(map(repr, near)) or 'none'}"
            )

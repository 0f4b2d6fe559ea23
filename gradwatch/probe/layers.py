"""The layers of a model: which modules they are, what they are called, and patterns that choose among them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from gradwatch.containment import SettingError
from gradwatch.layer_kinds import is_activation
from gradwatch.probe.modules import named_modules, own_parameters
from gradwatch.torch_internals import WRAPPERS

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

    Example:
        >>> list(find_layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU())))
        ['1', '2']
    """
    modules = {plain_name(name) or ROOT: module for name, module in named_modules(model)}
    layers = {name: module for name, module in modules.items() if _is_layer(module)}
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


def _is_layer(module: nn.Module) -> bool:
    return bool(own_parameters(module)) or is_activation(module)


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
    """Return True if one of the patterns matches the whole name.

    Example:
        >>> matches("encoder.0.weight", ["encoder.*"])
        True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Iterable[str], names: Iterable[str], what: str) -> None:
    """Raise a SettingError (a ValueError) for the first pattern that matches no name of a ``what``.

    Example:
        >>> try:
        ...     check_patterns(["haed.*"], ["body.weight", "head.weight"], "parameter")
        ... except ValueError as error:
        ...     print(error)
        the pattern 'haed.*' matches no parameter; the nearest of the 2 parameters are 'head.weight'
    """
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise SettingError(
                f"the pattern {pattern!r} matches no {what}; the nearest of the {len(known)} {what}s are "
                f"{', '.join(map(repr, near)) or 'none'}"
            )

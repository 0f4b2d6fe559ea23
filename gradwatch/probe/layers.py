"""Which modules are layers, what they are called, and in which order the network runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules import activation

from gradwatch.probe.modules import named_modules, own_parameters
from gradwatch.probe.patterns import check_patterns, matches

ROOT = "(root)"
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}

_ACTIVATIONS = tuple(getattr(activation, name) for name in activation.__all__ if name != "MultiheadAttention")


def find_layers(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = (), *, strict: bool = True
) -> dict[str, nn.Module]:
    """Return the layers of a model by name: modules with parameters of their own, and torch's activations.

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
    """A name as the model's author wrote it: without what compiling, checkpointing and FSDP put in between.

    Example:
        >>> plain_name("_orig_mod.encoder._checkpoint_wrapped_module.weight")
        'encoder.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, _ACTIVATIONS) or bool(own_parameters(module))


def kind_of(module: nn.Module) -> str:
    """Return the name of a module's class as its author wrote it: FSDP2 and parametrizations put their own in front.

    Example:
        >>> kind_of(nn.utils.parametrizations.weight_norm(nn.Linear(1, 1)))
        'Linear'
    """
    kinds = [kind.__name__ for kind in type(module).__mro__]
    if kinds[1] == "FSDPModule":
        return kinds[2]
    return kinds[1] if kinds[0] == f"Parametrized{kinds[1]}" else kinds[0]


def network_order(names: Sequence[str], first_call: Mapping[str, float]) -> list[str]:
    """Names in the order of their first call; one that is never called stays behind the name it stood behind.

    Example:
        >>> network_order(["head", "body", "body.gate"], {"body": 0, "head": 1})
        ['body', 'body.gate', 'head']
    """
    keys, last = {}, -1.0
    for position, name in enumerate(names):
        last = first_call.get(name, last)
        keys[name] = (last, position)
    return sorted(names, key=keys.__getitem__)

"""Shell patterns on the names of layers and parameters."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from torch import Tensor, nn

from gradwatch.containment import SettingError
from gradwatch.layer_kinds import is_activation, is_conv1d_of_transformers, is_convolution, is_transposed_convolution
from gradwatch.probe.modules import named_modules, named_parameters, own_parameters
from gradwatch.probe.norms import is_readable
from gradwatch.probe.sum_layout import Indices
from gradwatch.records import Array
from gradwatch.torch_internals import WRAPPERS, is_flat_piece


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches the whole name.

    Example:
        >>> matches("encoder.0.weight", ["encoder.*"])
        True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Iterable[str], names: Iterable[str], what: str) -> None:
    """Raise a SettingError (a ValueError) for the first pattern that matches no name; ``what`` has the names.

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


ROOT = "(root)"


def find_layers(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = (), *, strict: bool = True
) -> dict[str, nn.Module]:
    """Return the layers of a model by name: modules with parameters of their own, and activations.

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
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _is_layer(module: nn.Module) -> bool:
    return bool(own_parameters(module)) or is_activation(module)


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


def inputs_of(module: nn.Module) -> int | None:
    """Over how many inputs a layer spreads the gradient's energy, in units of its outputs; None for other modules.

    With independent weights, the energy of the gradient at the input is that at the output times the mean square of
    the weights that one output sees. A convolution has its outputs only at every stride-th place.

    Example:
        >>> inputs_of(nn.Linear(64, 10)), inputs_of(nn.Conv2d(8, 16, 3, stride=2)), inputs_of(nn.ReLU())
        (64, 32, None)
    """
    own = module.__dict__  # a class of the user's may lack these, or compute them
    if isinstance(module, nn.Linear):
        return _as_count(own.get("in_features"))
    if is_conv1d_of_transformers(module):
        return own_parameters(module)["weight"].shape[0]
    if is_transposed_convolution(module):
        return _as_count(own.get("in_channels"))
    channels, stride = _as_count(own.get("in_channels")), own.get("stride")
    if is_convolution(module) and channels and isinstance(stride, tuple):
        return channels * math.prod(stride)
    return None


def _as_count(value: object) -> int | None:
    return value if isinstance(value, int) else None


@dataclass(frozen=True)
class WeightGains:
    """Places of the layers and of their weights, and over how many inputs each spreads the gradient."""

    layers: Indices
    params: Indices
    inputs: Array

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module], params: Mapping[int, int]) -> WeightGains:
        """Those of a model.

        Args:
            modules: the layers by name.
            params: the places of the parameters by their ids.
        """
        found = []
        for layer, module in enumerate(modules.values()):
            weight = own_parameters(module).get("weight")  # one that is computed is not to be computed once more
            if weight is not None and id(weight) in params and (inputs := inputs_of(module)) is not None:
                found.append((layer, params[id(weight)], inputs))
        layers, weights, spread = np.array(found, np.intp).reshape(-1, 3).T
        return cls(layers, weights, spread.astype(np.float64))

    def gains(self, squares: Array, count: int) -> Array:
        """By what each layer's weights multiply the gradient's RMS; NaN for a layer without such weights.

        Args:
            squares: sums of the squares of the parameters.
            count: of layers.
        """
        gains = np.full(count, np.nan)
        gains[self.layers] = np.sqrt(squares[self.params] / self.inputs)
        return gains


@dataclass(frozen=True)
class Model:
    """What is watched, in the order in which ``named_modules`` and ``named_parameters`` give it.

    Attributes:
        layers: layer -> its place.
        params: parameter -> its place.
        owners: pairs of a layer and a parameter of its own; a shared one is in several.
        weights: how the gain of each layer's weights follows from their norm.
    """

    layers: Mapping[str, int]
    params: Mapping[str, int]
    owners: tuple[Indices, Indices]
    weights: WeightGains

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module], names: Mapping[int, str]) -> Model:
        """The layers by name, and the parameters whose names are given by their ids."""
        layers = {name: i for i, name in enumerate(modules)}
        params = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
        owners = [
            (layers[name], params[names[id(param)]])
            for name, module in modules.items()
            for param in own_parameters(module).values()
            if id(param) in names  # a layer that was taken out of the model keeps its own
        ]
        holders, held = np.array(owners, np.intp).reshape(-1, 2).T
        weights = WeightGains.of(modules, {number: params[name] for number, name in names.items()})
        return cls(layers, params, (holders, held), weights)


class Register:
    """Knows each parameter of a model by name, also of layers that come later.

    Args:
        module: the model.
        layers: name -> those that are watched.

    Example:
        >>> import torch
        >>> pair = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> register = Register(pair, dict(pair.named_children()))
        >>> list(register.take(pair[1].parameters()))
        ['1.weight', '1.bias']
        >>> pair(torch.ones(1, 1)).sum().backward()
        >>> register.left_out()
        ('0.weight', '0.bias')
    """

    def __init__(self, module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._module, self._layers = module, layers
        self._names: dict[int, str | None] = {}
        self._held: set[str] = set()
        self._others: list[tuple[str, nn.Parameter, nn.Module]] | None = None  # not held, and whose they are
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """What is watched, in order."""
        if self._model is None:
            self._list()
        assert self._model is not None
        return self._model

    def take(self, params: Iterable[nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return the model's among an optimizer's parameters, by name: those that learn and can be read."""
        wanted = [param for param in params if param.requires_grad]
        if any(id(param) not in self._names for param in wanted):  # the first step, or layers that came later
            self._list(wanted)
        learning = {
            name: param
            for param in wanted
            if (name := self._names.get(id(param))) is not None and _is_readable(param.grad)
        }
        if not learning.keys() <= self._held:
            self._held |= learning.keys()
            self._others = None
        return learning

    def left_out(self) -> tuple[str, ...]:
        """Return the parameters that have a gradient and belong to no optimizer so far, in modules that train.

        A part that is kept as it is on purpose without ``requires_grad_(False)`` is in evaluation mode, as a rule.
        """
        if self._others is None:
            self._others = list(self._not_held())
        lost = (n for n, p, owner in self._others if p.grad is not None and p.requires_grad and owner.training)
        return tuple(dict.fromkeys(lost))

    def _list(self, wanted: Iterable[nn.Parameter] = ()) -> None:
        """List the parameters anew; those of others, and those that can't be read, get no name."""
        self._names = dict.fromkeys(map(id, wanted))
        known = {
            id(param): plain_name(name)
            for name, param, _ in named_parameters(self._module)
            if is_readable(param) and (param.numel() or is_flat_piece(param))  # another process may hold a part of it
        }
        self._names |= known
        now = {plain_name(name) or ROOT: module for name, module in named_modules(self._module)}
        self._model = Model.of({name: now.get(name, layer) for name, layer in self._layers.items()}, known)
        self._others = None

    def _not_held(self) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
        for _, module in named_modules(self._module):
            for param in own_parameters(module).values():
                name = self._names.get(id(param))
                if name is not None and name not in self._held:
                    yield name, param, module


def _is_readable(grad: Tensor | None) -> bool:
    return grad is None or type(grad) is Tensor or is_readable(grad)

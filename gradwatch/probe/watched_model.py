"""The model that is watched: the places and names of its layers and parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from gradwatch.layer_kinds import is_conv1d_of_transformers, is_convolution, is_transposed_convolution
from gradwatch.probe.layers import ROOT, named_modules, named_parameters, own_parameters, plain_name
from gradwatch.probe.norms import is_readable
from gradwatch.probe.sum_layout import Indices
from gradwatch.records import Array
from gradwatch.torch_internals import is_flat_piece


def inputs_of(module: nn.Module) -> int | None:
    """Return over how many inputs a layer spreads the gradient's energy, per output; None for other modules.

    With independent weights, the energy of the gradient at the input is that at the output times the mean square of
    the weights that one output sees. A convolution has its outputs only at every stride-th place.

    Example:
        >>> inputs_of(nn.Linear(64, 10)), inputs_of(nn.Conv2d(8, 16, 3, stride=2)), inputs_of(nn.ReLU())
        (64, 32, None)
    """
    attributes = module.__dict__  # a user's class may lack these, or compute them
    if isinstance(module, nn.Linear):
        return _as_count(attributes.get("in_features"))
    if is_conv1d_of_transformers(module):
        return own_parameters(module)["weight"].shape[0]
    if is_transposed_convolution(module):
        return _as_count(attributes.get("in_channels"))
    channels, stride = _as_count(attributes.get("in_channels")), attributes.get("stride")
    if is_convolution(module) and channels and isinstance(stride, tuple):
        return channels * math.prod(stride)
    return None


def _as_count(value: object) -> int | None:
    return value if isinstance(value, int) else None


@dataclass(frozen=True)
class WeightGains:
    """Places of the layers and of their weights, and over how many inputs each layer spreads the gradient."""

    layers: Indices
    params: Indices
    inputs: Array

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module], params: Mapping[int, int]) -> WeightGains:
        """Find the weights of the layers ``modules``, given the places of the parameters by their ids."""
        found = []
        for layer, module in enumerate(modules.values()):
            weight = own_parameters(module).get("weight")  # a computed one is no parameter, and costs a computation
            if weight is not None and id(weight) in params and (inputs := inputs_of(module)) is not None:
                found.append((layer, params[id(weight)], inputs))
        layers, weights, spread = np.array(found, np.intp).reshape(-1, 3).T
        return cls(layers, weights, spread.astype(np.float64))

    def gains(self, squares: Array, count: int) -> Array:
        """Return by what each layer's weights multiply the gradient's RMS (else NaN), from all parameters' squares."""
        gains = np.full(count, np.nan)
        gains[self.layers] = np.sqrt(squares[self.params] / self.inputs)
        return gains


@dataclass(frozen=True)
class ModelIndex:
    """Places of the layers and parameters, in the order of ``named_modules`` and ``named_parameters``.

    Attributes:
        layers: layer -> its place.
        params: parameter -> its place.
        owners: places of layers, and of a parameter of each; a shared parameter is in several pairs.
        weights: the layers with a gain that follows from the norm of their weights.
    """

    layers: Mapping[str, int]
    params: Mapping[str, int]
    owners: tuple[Indices, Indices]
    weights: WeightGains

    @cached_property
    def owned(self) -> frozenset[str]:
        """The parameters that a layer has."""
        names = list(self.params)
        return frozenset(names[place] for place in self.owners[1].tolist())

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module], names: Mapping[int, str]) -> ModelIndex:
        """Number the layers ``modules``, and the parameters whose names are given by their ids."""
        layers = {name: i for i, name in enumerate(modules)}
        params = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
        owners = [
            (layers[name], params[names[id(param)]])
            for name, module in modules.items()
            for param in own_parameters(module).values()
            if id(param) in names  # a layer that was taken out of the model keeps its parameters
        ]
        holders, held = np.array(owners, np.intp).reshape(-1, 2).T
        weights = WeightGains.of(modules, {number: params[name] for number, name in names.items()})
        return cls(layers, params, (holders, held), weights)


class WatchedModel:
    """A model whose parameters are known by name, those of layers that come later too.

    Example:
        >>> import torch
        >>> pair = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> watched = WatchedModel(pair, dict(pair.named_children()))
        >>> list(watched.names_of(pair[1].parameters()))
        ['1.weight', '1.bias']
        >>> pair(torch.ones(1, 1)).sum().backward()
        >>> watched.left_out()
        ('0.weight', '0.bias')
    """

    def __init__(self, module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._module, self._layers = module, layers
        self._names: dict[int, str | None] = {}  # by id; None for parameters of other models
        self._in_optimizers: set[str] = set()
        self._others: list[tuple[str, nn.Parameter, nn.Module]] | None = None  # in no optimizer, and their modules
        self._index: ModelIndex | None = None
        self.frozen_size = 0  # entries of the parameters that require no gradient, when the names were found

    @property
    def index(self) -> ModelIndex:
        """Return the places of the layers and parameters."""
        if self._index is None:
            self._find_names()
        assert self._index is not None
        return self._index

    def names_of(self, params: Iterable[nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return the model's parameters among an optimizer's, by name: those that learn and can be read."""
        wanted = [param for param in params if param.requires_grad]
        if any(id(param) not in self._names for param in wanted):  # the first step, or layers that came later
            self._find_names(wanted)
        learning = {
            name: param
            for param in wanted
            if (name := self._names.get(id(param))) is not None and _has_readable_grad(param.grad)
        }
        if not learning.keys() <= self._in_optimizers:
            self._in_optimizers |= learning.keys()
            self._others = None
        return learning

    @property
    def is_all_frozen(self) -> bool:
        """Return True if no parameter requires a gradient."""
        return self.frozen_size > 0 and not any(param.requires_grad for _, param, _ in named_parameters(self._module))

    def left_out(self, *, all_of_them: bool = False) -> tuple[str, ...]:
        """Return the parameters that have a gradient and belong to no optimizer so far, in modules that train.

        A part that is frozen on purpose, without ``requires_grad_(False)``, is in evaluation mode as a rule.

        Args:
            all_of_them: with or without a gradient.
        """
        if self._others is None:
            self._others = list(self._in_no_optimizer())
        learning = ((n, p) for n, p, owner in self._others if p.requires_grad and owner.training)
        return tuple(dict.fromkeys(name for name, param in learning if all_of_them or param.grad is not None))

    def _find_names(self, wanted: Iterable[nn.Parameter] = ()) -> None:
        """Name the parameters anew; those of other models, and those that can't be read, get no name."""
        self._names = dict.fromkeys(map(id, wanted))
        known = {
            id(param): plain_name(name)
            for name, param, _ in named_parameters(self._module)
            # An empty piece of FSDP1 counts: another process may hold entries of the parameter.
            if is_readable(param) and (param.numel() or is_flat_piece(param))
        }
        self._names |= known
        params = [param for _, param, _ in named_parameters(self._module) if id(param) in known]
        self.frozen_size = sum(param.numel() for param in params if not param.requires_grad)
        now = {plain_name(name) or ROOT: module for name, module in named_modules(self._module)}
        self._index = ModelIndex.of({name: now.get(name, layer) for name, layer in self._layers.items()}, known)
        self._others = None

    def _in_no_optimizer(self) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
        for _, module in named_modules(self._module):
            for param in own_parameters(module).values():
                name = self._names.get(id(param))
                if name is not None and name not in self._in_optimizers:
                    yield name, param, module


def _has_readable_grad(grad: Tensor | None) -> bool:
    return grad is None or type(grad) is Tensor or is_readable(grad)

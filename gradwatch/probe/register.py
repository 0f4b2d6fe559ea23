"""The model's parameters by name, and which of them an optimizer holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from gradwatch.probe.layers import ROOT, plain_name
from gradwatch.probe.modules import named_modules, named_parameters, own_parameters
from gradwatch.probe.norms import is_readable
from gradwatch.probe.ranks import is_flat_piece
from gradwatch.probe.step import Model


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

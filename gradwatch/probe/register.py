"""The model's parameters by name, and which of them an optimizer holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from gradwatch.probe.layers import plain_name
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
        self._names: dict[int, str] = {}
        self._held: set[str] = set()
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """What is watched, in order."""
        if self._model is None:
            self._list()
        assert self._model is not None
        return self._model

    def take(self, params: Iterable[nn.Parameter]) -> dict[str, nn.Parameter]:
        """The model's among an optimizer's parameters, by name: those that require a gradient."""
        wanted = [param for param in params if param.requires_grad]
        if any(id(param) not in self._names for param in wanted):  # the first step, or layers that came later
            self._list()
        learning = {self._names[id(param)]: param for param in wanted if id(param) in self._names}
        self._held |= learning.keys()
        return learning

    def left_out(self) -> tuple[str, ...]:
        """Parameters that have a gradient for nothing: no optimizer has held them so far, in modules that train.

        A part that is kept as it is on purpose without ``requires_grad_(False)`` is in evaluation mode, as a rule.
        """
        if len(self._held) >= len(self.model.params):
            return ()
        named = (
            (self._names.get(id(param), ""), param)
            for module in self._module.modules()
            if module.training
            for param in module.parameters(recurse=False)
        )
        lost = {name for name, param in named if name and name not in self._held and _has_gradient(param)}
        return tuple(name for name in self.model.params if name in lost)

    def _list(self) -> None:
        self._names = {id(param): plain_name(name) for name, param in self._module.named_parameters()}
        self._model = Model.of(self._layers, self._names)


def _has_gradient(param: nn.Parameter) -> bool:
    return param.requires_grad and param.grad is not None

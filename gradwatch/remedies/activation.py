"""A remedy that replaces activations that shrink the gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from gradwatch.layer_kinds import BOUNDED, activation_name, is_activation
from gradwatch.remedies.initialization import initialization_code, initialize_pairs
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup, copy_of
from gradwatch.remedies.surgery import construction_of, path_of, replace_module
from gradwatch.remedies.tracing import Event, events_of, hidden_pairs

_FAR, _TIMES = 1e3, 10.0  # an argument, and the factor on it that no activation in use gives; the square gives 1e3


@dataclass(frozen=True)
class ReplaceActivations(ModelRemedy):
    """Replace the hidden activations, and initialize the layers before them for the new ones.

    A Sigmoid or Tanh shrinks the gradient at every layer; an active ReLU passes it unchanged. Use LeakyReLU in place of
    dead ReLUs. An activation after the last layer belongs to the loss and is kept. Activations that ``forward`` calls
    as functions can't be replaced.

    Args:
        to: class of the new activation, in ``torch.nn``.
        kinds: classes of the activations to replace.
        initialize: draw the weights of the layers before them again, which forgets what was learned.
        seed: seed of the draw.

    Raises:
        ValueError: when ``torch.nn`` has no such activation.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())
        >>> [type(layer).__name__ for layer in ReplaceActivations().apply(network)]
        ['Linear', 'ReLU', 'Linear', 'Sigmoid']

    References: Glorot, Bordes, Bengio, Deep sparse rectifier neural networks, 2011; Maas, Hannun, Ng, Rectifier
    nonlinearities improve neural network acoustic models, 2013 (LeakyReLU); Klambauer et al., 2017,
    https://arxiv.org/abs/1706.02515 (SELU).
    """

    to: str = "ReLU"
    kinds: tuple[str, ...] = BOUNDED
    initialize: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        made = getattr(nn, self.to, None)
        if not (isinstance(made, type) and is_activation(made)):
            raise ValueError(f"to is {self.to!r}; expected the name of an activation in torch.nn, such as 'ReLU'")

    @property
    def key(self) -> str:
        """Its name in the table of advice: ReLUs die, bounded activations saturate, a user's own may grow too fast."""
        if not any(map(activation_name, self.kinds)):
            return "ReplaceActivations of the user's own"
        return "ReplaceActivations of rectifiers" if "ReLU" in self.kinds else super().key

    def change(self, setup: Setup) -> Setup:
        """Replace the activations, then draw the weights."""
        root = setup.module
        events = events_of(root, setup.batch)
        names = self._hidden(root, events)
        pairs = self._pairs(events, names)
        for name in names:
            replace_module(root, name, getattr(nn, self.to)())
        if self.initialize and pairs:
            initialize_pairs(root, pairs, "auto", self.seed)
        return setup

    def patch(self, setup: Setup) -> str:
        """Return one line an activation, then the lines of the initialization."""
        events = events_of(setup.module, setup.batch)
        names = self._hidden(setup.module, events)
        made = construction_of(getattr(nn, self.to)())
        lines = "\n".join(f"{path_of(setup.module, name)} = {made}" for name in names)
        if not self.initialize:
            return lines
        changed = replace(self, initialize=False).apply(setup).module
        return f"{lines}\n{initialization_code(changed, self._pairs(events, names), 'auto')}"

    def _hidden(self, root: nn.Module, events: list[Event]) -> list[str]:
        last = max((index for index, event in enumerate(events) if event.is_weighted), default=0)
        # A module may be called twice: if it is also the activation of the output, replacing it would change that too.
        behind = {id(event.module) for event in events[last:]}
        found = {event.name: event.module for event in events[:last] if event.module and self._is_meant(event)}
        names = [name for name, module in found.items() if id(module) not in behind]
        if not names:
            raise NotApplicable(self._refusal(root, events))
        return names

    def _is_meant(self, event: Event) -> bool:
        return event.kind in self.kinds or (event.is_activation and activation_name(event.kind) in self.kinds)

    def _refusal(self, root: nn.Module, events: list[Event]) -> str:
        called = sorted({event.kind for event in events if event.module is None and self._is_meant(event)})
        if called:
            return f"forward of {type(root).__name__} calls {', '.join(called)} as a function; write {self.to} there"
        return f"{type(root).__name__} has no hidden layer of {', '.join(self.kinds)} to replace"

    def _pairs(self, events: list[Event], names: list[str]) -> list[tuple[Event, Event | None]]:
        """Return the layers before the replaced activations, paired with the new activation."""
        new: Any = Event("", self.to)
        return [(layer, new) for layer, after in hidden_pairs(events) if after is not None and after.name in names]


def fast_growing(setup: Setup) -> tuple[str, ...]:
    """Return the classes of the user's own layers without weights that grow as a square or faster, such as an exp.

    Example:
        >>> class Square(nn.Module):
        ...     def forward(self, x):
        ...         return x * x
        >>> fast_growing(Setup(nn.Sequential(nn.Linear(2, 2), Square(), nn.Linear(2, 1))))
        ('Square',)
    """
    parts = [event.module for event in events_of(setup.module, setup.batch) if event.module is not None]
    return tuple(dict.fromkeys(type(part).__name__ for part in parts if _grows_fast(part)))


def _grows_fast(part: nn.Module) -> bool:
    if type(part).__module__.startswith("torch.") or any(True for _ in part.parameters()):
        return False
    try:
        with torch.no_grad():
            value = copy_of(part)(torch.full((1, 1), _FAR))
        return bool((value.abs() > _TIMES * _FAR).any())
    except Exception:  # the user's code, which may want another shape: then it is no activation
        return False

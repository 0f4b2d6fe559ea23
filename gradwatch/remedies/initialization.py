"""A remedy that draws each layer's weights again, for the activation that follows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradwatch.checks import require_one_of
from gradwatch.layer_kinds import activation_name, is_bounded, is_conv1d_of_transformers, weight_outputs_first
from gradwatch.remedies.recurrent import draw_recurrent_, drawing_code, recurrent_names, time_steps
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup
from gradwatch.remedies.surgery import path_of
from gradwatch.remedies.tracing import Event, events_of, hidden_pairs
from gradwatch.theory import critical_gain

Scheme = Literal["auto", "he", "xavier", "lecun", "orthogonal"]
SCHEMES = ("auto", "he", "xavier", "lecun", "orthogonal")


@dataclass(frozen=True)
class InitializeAgain(ModelRemedy):
    """Draw the weights of all Linears, convolutions and recurrent networks again, and set their biases to 0.

    Use it where gradients shrink or grow from the first step on. It forgets what was learned: apply it before training.
    Frozen weights, and weights shared with another kind of layer, are not drawn.

    Args:
        scheme: ``"auto"`` chooses by the activation after each layer; ``"he"``, ``"xavier"``, ``"lecun"`` and
            ``"orthogonal"`` apply to all layers.
        seed: seed of the draw.

    Raises:
        ValueError: for an unknown scheme.

    Example:
        >>> network = nn.Sequential(nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 2))
        >>> round(InitializeAgain().apply(network)[0].weight.std().item() * 400**0.5, 1)
        1.4
        >>> print(InitializeAgain("xavier").code(nn.Sequential(nn.Linear(2, 1))))
        nn.init.xavier_normal_(model[0].weight, gain=1.0)
        nn.init.zeros_(model[0].bias)

    References: Glorot and Bengio, 2010, https://proceedings.mlr.press/v9/glorot10a.html; He et al., 2015,
    https://arxiv.org/abs/1502.01852; Saxe et al., 2014, https://arxiv.org/abs/1312.6120; LeCun et al., Efficient
    BackProp, 1998.
    """

    scheme: Scheme = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require_one_of(self, SCHEMES, scheme=self.scheme)

    def change(self, setup: Setup) -> Setup:
        """Draw recurrent weights, then the others."""
        recurrent = recurrent_names(setup.module)
        steps = time_steps(setup) if recurrent else {}
        for name in recurrent:
            draw_recurrent_(setup.module.get_submodule(name), self.seed, steps.get(name, 0))
        pairs = hidden_pairs(events_of(setup.module, setup.batch))
        if pairs or not recurrent:
            initialize_pairs(setup.module, pairs, self.scheme, self.seed)
        return setup

    def patch(self, setup: Setup) -> str:
        """Return two lines a layer and one a recurrent network."""
        recurrent = recurrent_names(setup.module)
        steps = time_steps(setup) if recurrent else {}
        lines = ["from gradwatch.remedies import draw_recurrent_"] if recurrent else []
        lines += [drawing_code(path_of(setup.module, name), steps.get(name, 0)) for name in recurrent]
        pairs = hidden_pairs(events_of(setup.module, setup.batch))
        return "\n".join([*lines, initialization_code(setup.module, pairs, self.scheme)])


def initialize_pairs(root: nn.Module, pairs: list[tuple[Event, Event | None]], scheme: Scheme, seed: int) -> None:
    """Draw these layers' weights."""
    generator, draws = torch.Generator().manual_seed(seed), list(_draws(root, pairs, scheme))
    for name, draw in draws:
        layer: Any = root.get_submodule(name)
        draw.fill(weight_outputs_first(layer), generator)
        if isinstance(layer.bias, nn.Parameter):
            nn.init.zeros_(layer.bias)
    if not draws:
        raise NotApplicable(
            f"{type(root).__name__} has no Linear or convolution with weights to draw; "
            "write nn.init.orthogonal_(weight) for each weight of your own layers"
        )


def initialization_code(root: nn.Module, pairs: list[tuple[Event, Event | None]], scheme: Scheme) -> str:
    """Return the lines that draw these layers' weights."""
    lines = []
    for name, draw in _draws(root, pairs, scheme):
        path = path_of(root, name)
        layer: Any = root.get_submodule(name)
        lines.append(draw.line(f"{path}.weight.T" if is_conv1d_of_transformers(layer) else f"{path}.weight"))
        if isinstance(layer.bias, nn.Parameter):
            lines.append(f"nn.init.zeros_({path}.bias)")
    return "\n".join(lines)


def draw_for(scheme: Scheme, after: Event | None, weight: Tensor) -> Draw:
    """Choose the draw of a layer's weights for the activation after it.

    The gain makes that activation keep the size of the gradient (chi = 1): He's root of 2 for a ReLU. ``"auto"`` uses
    Xavier's fan for bounded activations, LeCun's for SELU and for no activation, and He's for all others.

    Example:
        >>> draw_for("auto", None, torch.empty(2, 2))
        Draw(function='kaiming_normal_', settings={'nonlinearity': 'linear'})
        >>> draw_for("he", None, torch.empty(2, 2)).settings
        {'nonlinearity': 'relu'}
    """
    kind = activation_name(after.kind) or after.kind if after else "Identity"
    if scheme == "lecun" or (scheme == "auto" and kind in ("Identity", "SELU")):
        return Draw("kaiming_normal_", {"nonlinearity": "linear"})
    if scheme == "he" or (scheme == "auto" and kind == "ReLU"):
        return Draw("kaiming_normal_", {"nonlinearity": "relu"})
    gain = round(critical_gain(kind), 3)
    if scheme == "orthogonal":
        return Draw("orthogonal_", {"gain": gain})
    if scheme == "xavier" or is_bounded(kind):
        return Draw("xavier_normal_", {"gain": gain})
    return Draw("normal_", {"std": float(f"{gain / weight[0].numel() ** 0.5:.3g}")})  # kaiming_normal_ has no gain


@dataclass(frozen=True)
class Draw:
    """A function of ``torch.nn.init`` with its settings, to call or to print.

    Example:
        >>> Draw("xavier_normal_", {"gain": 1.0}).line("model.head.weight")
        'nn.init.xavier_normal_(model.head.weight, gain=1.0)'
    """

    function: str
    settings: dict[str, float | str]

    def fill(self, weight: Tensor, generator: torch.Generator) -> None:
        """Draw the weights in place. The host draws, so that a seed gives the same weights on every device."""
        made = torch.empty(weight.shape, dtype=torch.float32)
        function: Any = getattr(nn.init, self.function)
        with torch.no_grad():
            weight.copy_(function(made, generator=generator, **self.settings))

    def line(self, weight: str) -> str:
        """Return the draw as a line of code."""
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"nn.init.{self.function}({weight}{settings})"


def _draws(root: nn.Module, pairs: list[tuple[Event, Event | None]], scheme: Scheme) -> Iterator[tuple[str, Draw]]:
    """Yield the layers to draw, by name: the weight must learn and not be tied to another kind of layer."""
    drawn = {id(root.get_submodule(layer.name)) for layer, _ in pairs}
    others = {id(p) for m in root.modules() if id(m) not in drawn for p in m.parameters(recurse=False)}
    done: set[int] = set()
    for layer, after in pairs:
        weight: Any = root.get_submodule(layer.name).weight
        if isinstance(weight, nn.Parameter) and weight.requires_grad and id(weight) not in others | done:
            done.add(id(weight))
            yield layer.name, draw_for(scheme, after, weight_outputs_first(root.get_submodule(layer.name)))

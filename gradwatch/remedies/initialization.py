"""Draw the weights again, each layer's for the activation that follows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gradwatch.layer_kinds import activation_name, is_bounded, is_conv1d_of_transformers, weight_outputs_first
from gradwatch.remedies.recurrent import draw_recurrent_, recurrent_names
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup
from gradwatch.remedies.surgery import path_of
from gradwatch.remedies.tracing import Event, events_of, hidden_pairs
from gradwatch.theory import critical_gain

Scheme = Literal["auto", "he", "xavier", "lecun", "orthogonal"]
SCHEMES = ("auto", "he", "xavier", "lecun", "orthogonal")


@dataclass(frozen=True)
class Draw:
    """A function of ``torch.nn.init`` and its settings, which can be called and printed.

    Example:
        >>> Draw("xavier_normal_", {"gain": 1.0}).line("model.head.weight")
        'nn.init.xavier_normal_(model.head.weight, gain=1.0)'
    """

    function: str
    settings: dict[str, float | str]

    def fill(self, weight: Tensor, generator: torch.Generator) -> None:
        """Draw on the host, so that a seed means the same on every device."""
        made = torch.empty(weight.shape, dtype=torch.float32)
        function: Any = getattr(nn.init, self.function)
        with torch.no_grad():
            weight.copy_(function(made, generator=generator, **self.settings))

    def line(self, weight: str) -> str:
        """The same as code."""
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"nn.init.{self.function}({weight}{settings})"


def draw_for(scheme: Scheme, after: Event | None, weight: Tensor) -> Draw:
    """How to draw a layer's weights, by the activation behind it.

    The gain is the one at which that activation passes on as much gradient as it gets (chi = 1): He's root of 2 for a
    ReLU. ``"auto"`` takes Xavier's fan for bounded activations, LeCun's for SELU and for none, He's for all others.

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
class InitializeAgain(ModelRemedy):
    """Draw the weights of all Linears, convolutions and recurrent networks again, and set their biases to 0.

    Use it where gradients shrink or grow from the first step on. It forgets what was learned: apply it before training.
    Frozen weights and weights that are shared with another kind of layer stay as they are.

    Args:
        scheme: ``"auto"`` chooses by the activation behind each layer; ``"he"``, ``"xavier"``, ``"lecun"`` and
            ``"orthogonal"`` are the same for all.
        seed: of the draw.

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
    fits: ClassVar[Mapping[str, float]] = {
        "initialization too small": 1.0,
        "initialization too large": 1.0,
        "saturating activation": 0.8,
        "dead ReLU": 0.7,
        "missing normalization or skip": 0.5,
    }

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme is {self.scheme!r}; expected one of {', '.join(map(repr, SCHEMES))}")

    def change(self, setup: Setup) -> Setup:
        """Draw."""
        recurrent = recurrent_names(setup.module)
        for name in recurrent:
            draw_recurrent_(setup.module.get_submodule(name), self.seed)
        pairs = hidden_pairs(events_of(setup.module, setup.batch))
        if pairs or not recurrent:
            initialize_pairs(setup.module, pairs, self.scheme, self.seed)
        return setup

    def patch(self, setup: Setup) -> str:
        """Two lines a layer, one a recurrent network."""
        recurrent = [path_of(setup.module, name) for name in recurrent_names(setup.module)]
        lines = ["from gradwatch.remedies import draw_recurrent_"] if recurrent else []
        lines += [f"draw_recurrent_({path})" for path in recurrent]
        pairs = hidden_pairs(events_of(setup.module, setup.batch))
        return "\n".join([*lines, initialization_code(setup.module, pairs, self.scheme)])


def initialize_pairs(root: nn.Module, pairs: list[tuple[Event, Event | None]], scheme: Scheme, seed: int) -> None:
    """Draw these layers' weights."""
    generator, count = torch.Generator().manual_seed(seed), 0
    for name, after in _drawable(root, pairs):
        layer: Any = root.get_submodule(name)
        weight = weight_outputs_first(layer)
        draw_for(scheme, after, weight).fill(weight, generator)
        count += 1
        if isinstance(layer.bias, nn.Parameter):
            with torch.no_grad():
                layer.bias.zero_()
    if not count:
        raise NotApplicable(
            f"{type(root).__name__} has no Linear or convolution with weights to draw; "
            "write nn.init.orthogonal_(weight) for each weight of your own layers"
        )


def initialization_code(root: nn.Module, pairs: list[tuple[Event, Event | None]], scheme: Scheme) -> str:
    """The lines that draw these layers' weights."""
    lines = []
    for name, after in _drawable(root, pairs):
        path = path_of(root, name)
        layer: Any = root.get_submodule(name)
        weight = f"{path}.weight.T" if is_conv1d_of_transformers(layer) else f"{path}.weight"
        lines.append(draw_for(scheme, after, weight_outputs_first(layer)).line(weight))
        if isinstance(layer.bias, nn.Parameter):
            lines.append(f"nn.init.zeros_({path}.bias)")
    return "\n".join(lines)


def _drawable(root: nn.Module, pairs: list[tuple[Event, Event | None]]) -> Iterator[tuple[str, Event | None]]:
    """Layers whose weight learns and is no other kind of layer's, such as a tied embedding; shared ones once."""
    drawn = {id(root.get_submodule(layer.name)) for layer, _ in pairs}
    others = {id(p) for m in root.modules() if id(m) not in drawn for p in m.parameters(recurse=False)}
    done: set[int] = set()
    for layer, after in pairs:
        weight: Any = root.get_submodule(layer.name).weight
        if isinstance(weight, nn.Parameter) and weight.requires_grad and id(weight) not in others | done:
            done.add(id(weight))
            yield layer.name, after

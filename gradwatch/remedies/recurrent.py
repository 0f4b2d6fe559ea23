"""Weights of recurrent networks by which a signal keeps its size over many steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup
from gradwatch.remedies.surgery import lines_for, path_of, replace_module

_GATES = {"RNN": 1, "RNNCell": 1, "GRU": 3, "GRUCell": 3, "LSTM": 4, "LSTMCell": 4}
_KEEP_GATE = {"GRU": 1, "GRUCell": 1, "LSTM": 1, "LSTMCell": 1}  # its place among the gates, in torch's order
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def recurrent_names(root: nn.Module) -> list[str]:
    """Names of torch's recurrent networks and cells in a module."""
    return [name for name, part in root.named_modules() if isinstance(part, _RECURRENT)]


def draw_recurrent_(network: nn.Module, seed: int = 0) -> None:
    """Orthogonal recurrent weights gate by gate, Xavier's for the inputs, biases of 0 but for the gate that keeps.

    Example:
        >>> lstm = nn.LSTM(2, 3)
        >>> draw_recurrent_(lstm)
        >>> lstm.bias_hh_l0.view(4, 3)[:, 0].tolist()
        [0.0, 1.0, 0.0, 0.0]
    """
    kind = next(base.__name__ for base in type(network).__mro__ if base.__name__ in _GATES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in network.named_parameters():
            gates = torch.zeros(param.shape).chunk(_GATES[kind])
            for index, gate in enumerate(gates):
                _fill(name, gate, index == _KEEP_GATE.get(kind), generator)
            param.copy_(torch.cat(gates))


def _fill(name: str, gate: Tensor, keeps: bool, generator: torch.Generator) -> None:
    if gate.dim() < 2:
        gate.fill_(float(keeps and name.startswith("bias_hh")))
    elif name.startswith("weight_hh"):
        nn.init.orthogonal_(gate, generator=generator)
    else:
        nn.init.xavier_uniform_(gate, generator=generator)


Cell = Literal["GRU", "LSTM"]


class LSTMLikeRNN(nn.LSTM):
    """An LSTM that is called like an RNN: it takes and gives the hidden state alone.

    Example:
        >>> output, hidden = LSTMLikeRNN(2, 3)(torch.zeros(5, 1, 2))
        >>> hidden.shape
        torch.Size([1, 1, 3])
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Outputs and the last hidden state."""
        states = None if hx is None else (hx, torch.zeros_like(hx))
        output, (hidden, _) = super().forward(input, states)
        return output, hidden


@dataclass(frozen=True)
class ReplaceRecurrence(ModelRemedy):
    """Put a GRU or an LSTM of the same sizes in the place of each plain RNN; a plain cell becomes a GRUCell.

    Their gates let the gradient pass unchanged over many steps. The new weights are drawn as in
    :class:`OrthogonalRecurrence`.

    Args:
        cell: ``"GRU"`` or ``"LSTM"``; an LSTM is called as the RNN was, and its cell state stays inside.
        seed: of the draw.

    Raises:
        ValueError: for another cell.

    Example:
        >>> ReplaceRecurrence().apply(nn.Sequential(nn.RNN(2, 3, batch_first=True)))[0]
        GRU(2, 3, batch_first=True)

    References: Hochreiter and Schmidhuber, 1997; Cho et al., 2014, https://arxiv.org/abs/1406.1078.
    """

    cell: Cell = "GRU"
    seed: int = 0
    fits: ClassVar[Mapping[str, float]] = {"recurrent depth": 1.0}

    def __post_init__(self) -> None:
        if self.cell not in ("GRU", "LSTM"):
            raise ValueError(f"cell is {self.cell!r}; expected 'GRU' or 'LSTM'")

    def change(self, setup: Setup) -> Setup:
        """Replace, and draw."""
        for name in self._names(setup.module):
            old: Any = setup.module.get_submodule(name)
            new = self._new(old)
            weight = next(old.parameters())
            new.to(weight.device, weight.dtype)
            draw_recurrent_(new, self.seed)
            replace_module(setup.module, name, new)
        return setup

    def patch(self, setup: Setup) -> str:
        """Two lines a network."""
        names = self._names(setup.module)
        needed = "LSTMLikeRNN, draw_recurrent_" if self._uses_lstm(setup.module, names) else "draw_recurrent_"
        lines = [f"from gradwatch.remedies import {needed}"]
        for path, made in ((path_of(setup.module, name), self._made(setup.module, name)) for name in names):
            lines += [f"{path} = {made}", f"draw_recurrent_({path})"]
        return "\n".join(lines)

    def _new(self, old: Any) -> nn.Module:
        kind: Any = nn.GRUCell if isinstance(old, nn.RNNCell) else nn.GRU if self.cell == "GRU" else LSTMLikeRNN
        with torch.random.fork_rng(devices=[]):  # drawn again afterwards
            new: nn.Module = kind(old.input_size, old.hidden_size, **_settings(old))
        return new

    def _made(self, root: nn.Module, name: str) -> str:
        old: Any = root.get_submodule(name)
        kind = "nn.GRUCell" if isinstance(old, nn.RNNCell) else "nn.GRU" if self.cell == "GRU" else "LSTMLikeRNN"
        settings = "".join(f", {key}={value!r}" for key, value in _settings(old).items())
        return f"{kind}({old.input_size}, {old.hidden_size}{settings})"

    def _uses_lstm(self, root: nn.Module, names: list[str]) -> bool:
        return self.cell == "LSTM" and any(isinstance(root.get_submodule(name), nn.RNN) for name in names)

    def _names(self, root: nn.Module) -> list[str]:
        found = [name for name, part in root.named_modules() if isinstance(part, (nn.RNN, nn.RNNCell)) and name]
        if not found:
            raise NotApplicable(
                f"{type(root).__name__} has no nn.RNN or nn.RNNCell as a part; "
                "write nn.GRU(inputs, hidden, batch_first=True) in the place of your own recurrence"
            )
        return found


def _settings(old: Any) -> dict[str, Any]:
    """What differs from the defaults."""
    defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
    kept = ["bias"] if isinstance(old, nn.RNNCell) else [*defaults]
    return {name: getattr(old, name) for name in kept if getattr(old, name) != defaults[name]}


@dataclass(frozen=True)
class OrthogonalRecurrence(ModelRemedy):
    """Draw the recurrent weights orthogonal, and let the gates keep their memory at the start.

    An orthogonal matrix neither shrinks nor grows what it is multiplied with, however often. Input weights are drawn by
    Xavier; the bias of an LSTM's forget gate, and of a GRU's update gate, is set to 1.

    Args:
        seed: of the draw.

    Example:
        >>> weight = OrthogonalRecurrence().apply(nn.Sequential(nn.RNN(2, 3)))[0].weight_hh_l0
        >>> bool(torch.allclose(weight @ weight.T, torch.eye(3), atol=1e-6))
        True

    References: Saxe et al., 2014, https://arxiv.org/abs/1312.6120; Jozefowicz et al., An empirical exploration of
    recurrent network architectures, 2015 (the forget gate's bias).
    """

    seed: int = 0
    fits: ClassVar[Mapping[str, float]] = {"recurrent depth": 0.7}

    def change(self, setup: Setup) -> Setup:
        """Draw."""
        for name in self._names(setup.module):
            draw_recurrent_(setup.module.get_submodule(name), self.seed)
        return setup

    def patch(self, setup: Setup) -> str:
        """One line a network."""
        lines = lines_for(self._names(setup.module), lambda name: f"draw_recurrent_({path_of(setup.module, name)})")
        return f"from gradwatch.remedies import draw_recurrent_\n{lines}"

    def _names(self, root: nn.Module) -> list[str]:
        found = recurrent_names(root)
        if not found:
            raise NotApplicable(
                f"{type(root).__name__} has no recurrent network of torch; "
                "write nn.init.orthogonal_(weight) for the recurrent weights of your own"
            )
        return found

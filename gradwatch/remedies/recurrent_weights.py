"""Weights of recurrent networks by which a signal keeps its size over many steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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

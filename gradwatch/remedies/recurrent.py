"""Remedies for recurrent networks whose gradient vanishes or explodes over many time steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gradwatch.checks import require_one_of
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup
from gradwatch.remedies.surgery import path_of, replace_module
from gradwatch.remedies.tracing import Event, events_of

_GATES = {"RNN": 1, "RNNCell": 1, "GRU": 3, "GRUCell": 3, "LSTM": 4, "LSTMCell": 4}
_KEEP_GATE = 1  # index of a GRU's update gate and of an LSTM's forget gate in torch's order
LONG = 20  # time steps from which gates are opened for as many: over fewer, a bias of 1 keeps enough (by judgement)


class LSTMLikeRNN(nn.LSTM):
    """An LSTM with the interface of an RNN: it takes and returns the hidden state alone.

    Example:
        >>> output, hidden = LSTMLikeRNN(2, 3)(torch.zeros(5, 1, 2))
        >>> hidden.shape
        torch.Size([1, 1, 3])
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Return the outputs and the last hidden state."""
        states = None if hx is None else (hx, torch.zeros_like(hx))
        output, (hidden, _) = super().forward(input, states)
        return output, hidden


@dataclass(frozen=True)
class ReplaceRecurrence(ModelRemedy):
    """Replace each plain RNN by a GRU or an LSTM of the same sizes, and each RNNCell by a GRUCell.

    Their gates can pass the gradient unchanged over many steps. It forgets what the RNN learned: the new weights are
    drawn as in :class:`OrthogonalRecurrence`.

    Args:
        cell: ``"GRU"`` or ``"LSTM"``; the LSTM is called like the RNN and keeps its cell state inside.
        seed: seed of the draw.

    Raises:
        ValueError: for another cell.

    Example:
        >>> ReplaceRecurrence().apply(nn.Sequential(nn.RNN(2, 3, batch_first=True)))[0]
        GRU(2, 3, batch_first=True)

    References: Hochreiter and Schmidhuber, 1997; Cho et al., 2014, https://arxiv.org/abs/1406.1078.
    """

    cell: Literal["GRU", "LSTM"] = "GRU"
    seed: int = 0

    def __post_init__(self) -> None:
        require_one_of(self, ("GRU", "LSTM"), cell=self.cell)

    def change(self, setup: Setup) -> Setup:
        """Replace the networks and draw their weights."""
        steps = time_steps(setup)
        for name in self._names(setup.module):
            old: Any = setup.module.get_submodule(name)
            # The constructor draws weights, which are drawn again below: the training's random numbers must not change.
            with torch.random.fork_rng(devices=[]):
                new = self._kind(old)(old.input_size, old.hidden_size, **_settings(old))
            new.to(next(old.parameters()))
            draw_recurrent_(new, self.seed, steps.get(name, 0))
            replace_module(setup.module, name, new)
        return setup

    def patch(self, setup: Setup) -> str:
        """Return two lines a network."""
        lines, imported, steps = [], ["draw_recurrent_"], time_steps(setup)
        for name in self._names(setup.module):
            old: Any = setup.module.get_submodule(name)
            path, kind = path_of(setup.module, name), self._kind(old)
            settings = "".join(f", {key}={value!r}" for key, value in _settings(old).items())
            if kind is LSTMLikeRNN:
                imported = ["LSTMLikeRNN", "draw_recurrent_"]
            made = f"{'' if kind is LSTMLikeRNN else 'nn.'}{kind.__name__}"
            lines += [f"{path} = {made}({old.input_size}, {old.hidden_size}{settings})"]
            lines += [drawing_code(path, steps.get(name, 0))]
        return "\n".join([f"from gradwatch.remedies import {', '.join(imported)}", *lines])

    def _kind(self, old: nn.Module) -> Any:
        if isinstance(old, nn.RNNCell):
            return nn.GRUCell
        return nn.GRU if self.cell == "GRU" else LSTMLikeRNN

    def _names(self, root: nn.Module) -> list[str]:
        found = [name for name, part in root.named_modules() if isinstance(part, (nn.RNN, nn.RNNCell)) and name]
        if not found:
            raise NotApplicable(
                f"{type(root).__name__} has no nn.RNN or nn.RNNCell as a part; "
                "replace your own recurrence by nn.GRU(inputs, hidden, batch_first=True)"
            )
        return found


@dataclass(frozen=True)
class OrthogonalRecurrence(ModelRemedy):
    """Draw the recurrent weights orthogonally, and open the gates that keep the state.

    A product of any number of orthogonal matrices keeps a vector's norm. Input weights are drawn by Xavier; the bias of
    an LSTM's forget gate, and of a GRU's update gate, is set for the number of time steps in the batch. It forgets what
    was learned.

    Args:
        seed: seed of the draw.

    Example:
        >>> weight = OrthogonalRecurrence().apply(nn.Sequential(nn.RNN(2, 3)))[0].weight_hh_l0
        >>> bool(torch.allclose(weight @ weight.T, torch.eye(3), atol=1e-6))
        True

    References: Saxe et al., 2014, https://arxiv.org/abs/1312.6120; Jozefowicz et al., An empirical exploration of
    recurrent network architectures, 2015 (the forget gate's bias); Tallec and Ollivier, Can recurrent neural networks
    warp time?, 2018, https://arxiv.org/abs/1804.11188 (biases for a number of steps; theirs are spread over 1 to
    all steps).
    """

    seed: int = 0

    def change(self, setup: Setup) -> Setup:
        """Draw the weights."""
        steps = time_steps(setup)
        for name in self._names(setup.module):
            draw_recurrent_(setup.module.get_submodule(name), self.seed, steps.get(name, 0))
        return setup

    def patch(self, setup: Setup) -> str:
        """Return one line a network."""
        steps, names = time_steps(setup), self._names(setup.module)
        lines = [drawing_code(path_of(setup.module, name), steps.get(name, 0)) for name in names]
        return "\n".join(["from gradwatch.remedies import draw_recurrent_", *lines])

    def _names(self, root: nn.Module) -> list[str]:
        found = recurrent_names(root)
        if not found:
            raise NotApplicable(
                f"{type(root).__name__} has no recurrent network of torch; "
                "write nn.init.orthogonal_(weight) for the recurrent weights of your own"
            )
        return found


def draw_recurrent_(network: nn.Module, seed: int = 0, steps: int = 0) -> None:
    """Draw recurrent weights orthogonally and input weights by Xavier, gate by gate; set biases to 0.

    The bias of an LSTM's forget gate and of a GRU's update gate is set to 1: near 1 these gates keep the state.

    Args:
        network: recurrent network or cell of torch.
        seed: seed of the draw.
        steps: time steps to remember. From 20 on, gates are opened so far that the state fades over as many.

    Example:
        >>> lstm = nn.LSTM(2, 3)
        >>> draw_recurrent_(lstm)
        >>> lstm.bias_hh_l0.view(4, 3)[:, 0].tolist()
        [0.0, 1.0, 0.0, 0.0]
    """
    kind = next(base.__name__ for base in type(network).__mro__ if base.__name__ in _GATES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # torch stacks the gates' matrices in one parameter. Drawn as one, the stack has no orthogonal gate.
        for name, param in network.named_parameters():
            gates = torch.zeros(param.shape).chunk(_GATES[kind])
            for gate in gates if param.dim() > 1 else ():
                _draw_gate(name, gate, generator)
            if name.startswith("bias_hh") and len(gates) > 1:  # of a gate's two biases, which add up, one is enough
                _open(gates, steps)
            param.copy_(torch.cat(gates))


def _open(biases: tuple[Tensor, ...], steps: int) -> None:
    """Set the bias of the gate that keeps the state: to 1, or so that a unit forgets over a number of steps.

    A gate at 1 - 1 / t keeps the state for t steps; its bias is then log(t - 1). An LSTM's gate that lets the input in
    is shut as far.
    """
    keeping = math.log(steps - 1) if steps >= LONG else 1.0
    biases[_KEEP_GATE].fill_(keeping)
    if steps >= LONG and len(biases) == _GATES["LSTM"]:
        biases[0].fill_(-keeping)


def drawing_code(path: str, steps: int) -> str:
    """Return the line that draws a network, for a number of time steps where that matters.

    Example:
        >>> drawing_code("model.rnn", 100), drawing_code("model.rnn", 5)
        ('draw_recurrent_(model.rnn, steps=100)', 'draw_recurrent_(model.rnn)')
    """
    return f"draw_recurrent_({path}{f', steps={steps}' if steps >= LONG else ''})"


def time_steps(setup: Setup) -> dict[str, int]:
    """Return the time steps that each recurrent network reads in the batch; nothing without a batch.

    Example:
        >>> time_steps(Setup(nn.GRU(2, 3), batch=torch.zeros(30, 4, 2)))
        {'': 30}
    """
    found: dict[str, int] = {}
    for event in events_of(setup.module, setup.batch) if setup.batch is not None else ():
        if isinstance(event.module, nn.RNNBase):
            found[event.name] = max(found.get(event.name, 0), _length(event))
        elif isinstance(event.module, nn.RNNCellBase):
            found[event.name] = found.get(event.name, 0) + 1
    return found


def _length(event: Event) -> int:
    given = event.inputs[0] if event.inputs else None
    if isinstance(given, PackedSequence):
        return len(given.batch_sizes)
    is_second = getattr(event.module, "batch_first", False) and isinstance(given, Tensor) and given.dim() > 2
    return given.shape[1 if is_second else 0] if isinstance(given, Tensor) else 0


def recurrent_names(root: nn.Module) -> list[str]:
    """Return the names of torch's recurrent networks and cells in a module."""
    return [name for name, part in root.named_modules() if isinstance(part, (nn.RNNBase, nn.RNNCellBase))]


def _draw_gate(name: str, gate: Tensor, generator: torch.Generator) -> None:
    if name.startswith("weight_hh"):
        nn.init.orthogonal_(gate, generator=generator)
    else:
        nn.init.xavier_uniform_(gate, generator=generator)


def _settings(old: Any) -> dict[str, Any]:
    """Return the settings of an RNN or RNNCell that are not the defaults."""
    defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
    kept = ["bias"] if isinstance(old, nn.RNNCell) else [*defaults]
    return {name: getattr(old, name) for name in kept if getattr(old, name) != defaults[name]}

"""Recurrent weights are drawn for the number of time steps that a batch has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gradwatch.remedies import OrthogonalRecurrence, ReplaceRecurrence, Setup, draw_recurrent_

MANY, FEW = 60, 5


class LastOutput(nn.Module):
    """The last output of a recurrent network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(x)[0][:, -1]
        return outputs


class CellByCell(nn.Module):
    """The last state of a cell that is called for each time step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.network = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Tensor | None = None
        for place in range(x.shape[1]):
            state = self.network(x[:, place], state)
        assert state is not None
        return state


def biases(module: nn.Module) -> Tensor:
    return next(param for name, param in module.named_parameters() if "bias_hh" in name).detach()


@pytest.mark.parametrize(("kind", "gates"), [(nn.GRU, 3), (nn.LSTM, 4)])
def test_gates_keep_the_state_over_all_time_steps(kind: type[nn.GRU | nn.LSTM], gates: int) -> None:
    setup = Setup(LastOutput(kind(2, 4, batch_first=True)), batch=torch.zeros(3, MANY, 2))
    found = biases(OrthogonalRecurrence().apply(setup).module).view(gates, 4)
    assert found[1].sigmoid().tolist() == pytest.approx([1 - 1 / MANY] * 4, abs=1e-6)
    assert found[0].tolist() == pytest.approx([-math.log(MANY - 1) if gates == 4 else 0.0] * 4)
    assert f"steps={MANY}" in OrthogonalRecurrence().patch(setup)


def test_few_time_steps_need_no_more_than_one() -> None:
    setup = Setup(LastOutput(nn.GRU(2, 4, batch_first=True)), batch=torch.zeros(3, FEW, 2))
    assert biases(OrthogonalRecurrence().apply(setup).module).view(3, 4)[1].tolist() == [1.0] * 4
    assert "steps" not in OrthogonalRecurrence().patch(setup)


def test_calls_of_a_cell_are_its_time_steps() -> None:
    setup = Setup(CellByCell(nn.RNNCell(2, 4)), batch=torch.zeros(3, MANY, 2))
    found = biases(ReplaceRecurrence().apply(setup).module).view(3, 4)
    assert found[1].tolist() == pytest.approx([math.log(MANY - 1)] * 4)


def test_the_patch_draws_the_same_weights() -> None:
    setup = Setup(LastOutput(nn.RNN(2, 4, batch_first=True)), batch=torch.zeros(3, MANY, 2))
    changed = ReplaceRecurrence("LSTM").apply(setup).module
    by_hand = LastOutput(nn.RNN(2, 4, batch_first=True))
    exec(ReplaceRecurrence("LSTM").patch(setup), {"model": by_hand, "nn": nn})
    assert torch.equal(biases(changed), biases(by_hand))


def test_a_plain_recurrence_has_no_gate_to_open() -> None:
    network = nn.RNN(2, 4)
    draw_recurrent_(network, steps=MANY)
    assert not biases(network).any()

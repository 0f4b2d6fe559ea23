"""What a Snapshot knows beside the norms: of the weights' gain, the optimizer, the inputs and the precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradwatch import Snapshot, watch


def measured(model: nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer | None = None) -> Snapshot:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.5)
    with watch(model, on_finding=lambda finding: None) as watcher:
        out = model(x)
        (out * torch.randn_like(out)).sum().backward()  # a gradient without a direction
        snapshot = watcher.step(optimizer)
    assert snapshot is not None
    return snapshot


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(64, 256), (512, 64)),
        (nn.Linear(256, 32), (512, 256)),
        (nn.Conv1d(16, 32, 5, padding=2), (16, 16, 100)),
        (nn.Conv2d(8, 24, 3, padding=1), (16, 8, 24, 24)),
        (nn.Conv2d(16, 32, 3, stride=2, padding=1), (16, 16, 24, 24)),
        (nn.Conv2d(16, 32, 3, padding=1, groups=4), (16, 16, 24, 24)),
        (nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1), (16, 16, 12, 12)),
    ],
)
def test_the_weights_gain_is_what_is_measured_of_fresh_weights(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    snapshot = measured(nn.Sequential(nn.Identity(), layer), torch.randn(shape, requires_grad=True))
    place = snapshot.layers.index("1")
    assert snapshot.weight_gain[place] == pytest.approx(snapshot.gain[place], rel=0.06)


def test_other_layers_have_no_gain_of_their_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh())
    assert [math.isnan(gain) for gain in measured(model, torch.randn(8, 4)).weight_gain] == [False, True, True]


def test_sgd_steps_by_its_gradient_and_adam_by_its_learning_rate() -> None:
    model = nn.Linear(8, 8, bias=False)
    before = model.weight.detach().clone()
    for optimizer in (torch.optim.SGD(model.parameters(), lr=0.25), torch.optim.Adam(model.parameters(), lr=0.01)):
        optimizer.zero_grad()
        snapshot = measured(model, torch.randn(16, 8), optimizer)
        moved = (model.weight.detach() - before).norm() / before.norm()
        assert snapshot.update_to_weight[0] == pytest.approx(float(moved), rel=1e-5)
        assert snapshot.optimizer == type(optimizer).__name__
        assert snapshot.learning_rate == optimizer.param_groups[0]["lr"]
        before = model.weight.detach().clone()


def test_the_inputs_are_those_of_the_first_layer_without_the_labels() -> None:
    x = 7 * torch.randn(64, 4)
    expected = float(x.square().mean().sqrt())
    assert measured(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), x).input_rms == pytest.approx(expected, rel=1e-5)
    tokens = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 1))
    assert math.isnan(measured(tokens, torch.randint(10, (8,))).input_rms)


def test_inputs_that_are_not_finite_are_infinite() -> None:
    assert measured(nn.Linear(2, 1), torch.tensor([[math.nan, 1.0]])).input_rms == math.inf


def test_half_precision_is_named() -> None:
    model, x = nn.Linear(4, 4), torch.randn(8, 4)
    assert measured(model, x).dtype == ""
    with torch.autocast("cpu", torch.bfloat16):
        assert measured(model, x).dtype == "bfloat16"

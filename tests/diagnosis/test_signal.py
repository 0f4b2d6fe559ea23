"""The cause in the signal on its way forward."""

import pytest
import torch
from torch import Tensor, nn

import gradwatch


class Net(nn.Module):
    def __init__(self, act: object) -> None:
        super().__init__()
        self.act = act
        sizes = [(8, 32), (32, 32), (32, 32), (32, 3)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


def causes(act: object, rate: float) -> list[str]:
    torch.manual_seed(0)
    model = Net(act)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with gradwatch.watch(model, on_finding=lambda finding: None) as watch:
        for _ in range(30):
            x = torch.randn(32, 8)
            loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            watch.step(optimizer, loss)
    return [diagnosis.cause for diagnosis in watch.diagnosis()]


def test_exp_between_layers_is_named_first() -> None:
    assert causes(torch.exp, 0.1)[:1] == ["unbounded activation"]


@pytest.mark.parametrize("act", [torch.tanh, nn.functional.gelu, nn.functional.softplus])
def test_too_high_a_rate_is_no_unbounded_activation(act: object) -> None:
    assert "unbounded activation" not in causes(act, 1000.0)


def test_a_square_that_learns_is_not_named() -> None:
    assert causes(torch.square, 0.01) == []

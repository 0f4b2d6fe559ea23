"""The variances that are drawn, and which weights are left alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradwatch.remedies import InitializeAgain, NotApplicable, ReplaceActivations
from gradwatch.theory import critical_gain, gain_at_depth, normalized_gain

GAINS = {nn.ReLU: 2**0.5, nn.SELU: 1.0, nn.GELU: critical_gain("GELU"), nn.LeakyReLU: critical_gain("LeakyReLU")}


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(64, 300), outputs=st.integers(64, 300), kind=st.sampled_from([*GAINS]), seed=st.integers(0, 999)
)
def test_the_variance_is_the_gain_over_the_fan(inputs: int, outputs: int, kind: type[nn.Module], seed: int) -> None:
    network = nn.Sequential(nn.Linear(inputs, outputs), kind(), nn.Linear(outputs, 2))
    weight = InitializeAgain(seed=seed).apply(network)[0].weight
    assert weight.std().item() * inputs**0.5 == pytest.approx(GAINS[kind], rel=0.06)
    assert abs(weight.mean().item()) < 5 * weight.std().item() / weight.numel() ** 0.5


@settings(max_examples=20, deadline=None)
@given(inputs=st.integers(64, 300), outputs=st.integers(64, 300), kind=st.sampled_from([nn.Tanh, nn.Sigmoid]))
def test_bounded_activations_get_xaviers_fan(inputs: int, outputs: int, kind: type[nn.Module]) -> None:
    weight = InitializeAgain().apply(nn.Sequential(nn.Linear(inputs, outputs), kind(), nn.Linear(outputs, 2)))[0].weight
    expected = critical_gain(kind.__name__) * (2 / (inputs + outputs)) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.06)


@settings(max_examples=15, deadline=None)
@given(inputs=st.integers(4, 60), outputs=st.integers(4, 60))
def test_orthogonal_rows_or_columns(inputs: int, outputs: int) -> None:
    network = nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, 2))
    weight = InitializeAgain("orthogonal").apply(network)[0].weight.detach()
    product = weight @ weight.T if outputs <= inputs else weight.T @ weight
    assert torch.allclose(product, critical_gain("ReLU") ** 2 * torch.eye(len(product)), atol=1e-3)


@pytest.mark.parametrize("kind", ["ReLU", "Tanh", "SELU", "GELU"])
def test_the_gradient_keeps_its_size_through_ten_layers(kind: str) -> None:
    torch.manual_seed(0)
    blocks = [layer for _ in range(10) for layer in (nn.Linear(200, 200), getattr(nn, kind)())]
    network = InitializeAgain().apply(nn.Sequential(*blocks, nn.Linear(200, 200)))
    x = torch.randn(100, 200, requires_grad=True)
    network(x).backward(torch.randn(100, 200))
    assert 0.3 < x.grad.square().mean().sqrt().item() < 3


@pytest.mark.parametrize(("kind", "sigma"), [("Sigmoid", 0.577), ("Tanh", 0.577), ("ReLU", 1.0), ("Sigmoid", 4.7)])
def test_the_predicted_gain_is_the_measured_one(kind: str, sigma: float) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(7) for layer in (nn.Linear(400, 400, bias=False), getattr(nn, kind)())]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=sigma / 20)
    x = torch.randn(200, 400, requires_grad=True)
    nn.Sequential(*layers)(x).backward(torch.randn(200, 400))
    assert x.grad.square().mean().sqrt().item() ** (1 / 7) == pytest.approx(gain_at_depth(kind, sigma, 7), rel=0.1)


@pytest.mark.parametrize(("norm", "centered"), [(nn.BatchNorm1d, True), (nn.LayerNorm, False)])
@pytest.mark.parametrize("kind", ["Sigmoid", "Tanh", "ReLU"])
def test_the_predicted_gain_with_normalization_is_the_measured_one(norm: type, centered: bool, kind: str) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(300, 300), norm(300), getattr(nn, kind)())]
    x = torch.randn(300, 300, requires_grad=True)
    hidden = nn.Sequential(*layers[:3])(x)  # from the second block on its input is an activation's output
    hidden = hidden.detach().requires_grad_()
    nn.Sequential(*layers[3:])(hidden).backward(torch.randn(300, 300))
    measured = hidden.grad.square().mean().sqrt().item() ** (1 / 5)
    assert measured == pytest.approx(normalized_gain(kind, centered=centered), rel=0.15)


class Tied(nn.Module):
    """A decoder with the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.body(self.embedding(x))))
        return logits


def test_tied_weights_stay_tied_and_those_of_an_embedding_stay() -> None:
    network = Tied()
    changed = InitializeAgain().apply(network)
    assert changed.head.weight is changed.embedding.weight
    assert torch.equal(changed.head.weight, network.head.weight)
    assert not torch.equal(changed.body.weight, network.body.weight)


def test_frozen_weights_stay() -> None:
    network = nn.Sequential(
        nn.Linear(4, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    changed = InitializeAgain().apply(network)
    assert torch.equal(changed[0].weight, network[0].weight)
    assert not torch.equal(changed[2].weight, network[2].weight)
    with pytest.raises(NotApplicable, match="no Linear"):
        InitializeAgain().apply(nn.Sequential(nn.Embedding(3, 2)))


def test_a_function_in_forward_is_seen_in_a_traced_pass() -> None:
    from gradwatch.remedies import Setup

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(200, 200), nn.Linear(200, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.second(torch.tanh(self.first(x)))
            return logits

    setup = Setup(Called(), batch=torch.ones(2, 200))
    std = InitializeAgain().apply(setup).module.first.weight.std().item()
    assert std * 200**0.5 == pytest.approx(critical_gain("Tanh"), rel=0.05)
    with pytest.raises(NotApplicable, match="calls Tanh as a function"):
        ReplaceActivations().apply(setup)


def test_an_activation_that_also_ends_the_network_stays() -> None:
    shared = nn.Sigmoid()
    network = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1), shared)
    changed = ReplaceActivations().apply(network)
    assert [type(layer).__name__ for layer in changed] == ["Linear", "Sigmoid", "Linear", "ReLU", "Linear", "Sigmoid"]

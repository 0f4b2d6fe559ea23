"""Gradients that fade or grow over depth and over calls, and healthy networks that look a little like it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import X, Y, classify, he, kinds, mlp, train
from torch import Tensor, nn
from torch.optim import SGD, Adam

from gradwatch import Exploding, Snapshot, Vanishing
from gradwatch.records import Detector

DEPTH = [Vanishing(), Exploding()]


def over_depth(norms: list[float], weights: float = 1.0) -> Snapshot:
    layers = tuple(f"layer{i}" for i in range(len(norms)))
    return Snapshot(0, layers, grad_norm=norms, weight_norm=[weights] * len(norms), grad_output_norm=norms)


def test_a_deep_sigmoid_network_vanishes_from_its_first_layer_on() -> None:
    watcher = train(mlp([32, *[128] * 7, 5], nn.Sigmoid), steps=20)
    assert kinds(watcher) == ["vanishing"]
    assert watcher.findings[0].layers[:3] == ("0", "2", "4")
    assert watcher.findings[0].step == 0
    assert watcher.findings[0].value < 1e-4
    assert kinds(train(mlp([32, *[128] * 7, 5], nn.ReLU, he), steps=20)) == []


def test_weights_too_large_explode_over_depth() -> None:
    watcher = train(mlp([32, *[128] * 10, 5], nn.ReLU, lambda w: nn.init.normal_(w, std=0.4)), steps=5, lr=1e-12)
    assert set(kinds(watcher)) == {"exploding"}
    assert watcher.findings[0].layers[0] == "0"
    assert watcher.findings[0].step == 0


def test_unscaled_targets_explode_in_total() -> None:
    model = mlp([32, 64, 1], nn.ReLU, he)
    finding = train(model, lambda model, _: (model(X) - 1e7).square().mean(), lr=1e-12).findings[0]
    assert finding.kind == "exploding"
    assert finding.threshold == Exploding().total_norm
    assert finding.value > 1e6


@pytest.mark.parametrize(
    "widths",
    [[32, 1024, 256, 64, 16, 8, 5], [32, 4, 8, 32, 128, 512, 5], [32, 512, 64, 4, 64, 512, 5], [32, *[64] * 30, 5]],
    ids=["funnel", "widening", "hourglass", "deep"],
)
def test_widths_and_depth_alone_are_no_fault(widths: list[int]) -> None:
    assert kinds(train(mlp(widths, nn.ReLU, he))) == []


class Block(nn.Module):
    """A residual block that starts as the identity, in the ways that are in use."""

    def __init__(self, width: int, start: str) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.last = nn.BatchNorm1d(width) if start == "zero BatchNorm" else nn.Identity()
        self.gate = nn.Parameter(torch.zeros(())) if start == "ReZero" else 1.0
        if start == "LayerScale":
            self.gate = nn.Parameter(torch.full((width,), 1e-6))
        for zero in {"zero BatchNorm": [self.last], "zero projection": [self.down]}.get(start, []):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * self.last(self.down(nn.functional.gelu(self.up(self.norm(x)))))


@pytest.mark.parametrize("start", ["ReZero", "LayerScale", "zero BatchNorm", "zero projection"])
@pytest.mark.parametrize(("optimizer", "lr"), [(SGD, 1e-3), (SGD, 1e-1), (Adam, 1e-5), (Adam, 1e-3)])
def test_a_branch_that_starts_at_zero_is_healthy(start: str, optimizer: type, lr: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), *[Block(32, start) for _ in range(4)], nn.LayerNorm(32), nn.Linear(32, 5))
    assert kinds(train(model, optimizer=optimizer, lr=lr)) == []


class LoRA(nn.Module):
    """A frozen Linear with a low-rank addition that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.a, self.b = nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


@pytest.mark.parametrize(("optimizer", "lr"), [(SGD, 1e-2), (SGD, 1e-1), (Adam, 1e-5), (Adam, 1e-4)])
def test_lora_is_healthy(optimizer: type, lr: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(LoRA(32), nn.ReLU()) for _ in range(3)], LoRA(32))
    assert kinds(train(model, optimizer=optimizer, lr=lr)) == []


@pytest.mark.parametrize(("optimizer", "lr"), [(SGD, 1e-2), (SGD, 1e-1), (Adam, 1e-3)])
def test_a_head_that_starts_at_zero_is_healthy(optimizer: type, lr: float) -> None:
    model = mlp([32, 32, 32, 5], nn.ReLU)
    nn.init.zeros_(model[-1].weight)
    assert kinds(train(model, optimizer=optimizer, lr=lr)) == []


def test_a_frozen_backbone_is_not_judged() -> None:
    backbone = mlp([32, *[64] * 7, 16], nn.Sigmoid).requires_grad_(False)
    assert kinds(train(nn.Sequential(backbone, nn.Linear(16, 5)))) == []


def test_a_sparse_embedding_is_healthy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(1000, 16, sparse=True), nn.Linear(16, 5))
    tokens = torch.randint(0, 1000, (64, 6))
    assert kinds(train(model, lambda model, _: nn.functional.cross_entropy(model(tokens), Y), lr=0.1)) == []


def test_a_converged_network_is_healthy() -> None:
    model = mlp([32, 64, 64, 5], nn.ReLU, he)
    optimizer = Adam(model.parameters(), lr=1e-2)
    for step in range(150):
        optimizer.zero_grad()
        classify(model, step).backward()
        optimizer.step()
    watcher = train(model)
    assert watcher.history[-1].total_norm < 1e-2
    assert kinds(watcher) == []


@given(norms=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=6), size=st.sampled_from([1e-30, 1e-9, 1e9, 1e20]))
def test_vanishing_depends_on_no_absolute_size(norms: list[float], size: float) -> None:
    one, other = ([f.layers for f in Vanishing()(over_depth((np.array(norms) * s).tolist()))] for s in (1.0, size))
    assert one == other


@pytest.mark.parametrize(
    "norms",
    [[1.0, 1e-9, 1.0], [1e-9, 1e-9, np.inf], [1e-9], [0.0, 0.0]],
    ids=["faint in the middle", "beside an overflow", "alone", "no gradient at all"],
)
def test_vanishing_needs_faint_first_layers_under_a_finite_loud_one(norms: list[float]) -> None:
    assert list(Vanishing()(over_depth(norms))) == []


def test_exploding_needs_a_gradient_that_outweighs_the_weights() -> None:
    norms = [1e4, 1e2, 1.0]
    assert [finding.layers for finding in Exploding()(over_depth(norms))] == [("layer0",)]
    assert list(Exploding()(over_depth(norms, weights=1e5))) == []


def test_layers_that_do_not_learn_are_not_judged() -> None:
    norms = [1e-9, 1.0, 1e9]
    frozen = Snapshot(0, ("a", "b", "c"), grad_norm=[np.nan, 1, np.nan], weight_norm=[1] * 3, grad_output_norm=norms)
    assert [*Vanishing()(frozen), *Exploding()(frozen)] == []


class Recurrent(nn.Module):
    """A cell over 50 steps, and a head on its last state or on all."""

    def __init__(self, cell: nn.Module, *, every_state: bool = False) -> None:
        super().__init__()
        self.cell, self.head, self.every_state = cell, nn.Linear(16, 5), every_state

    def forward(self, x: Tensor) -> Tensor:
        states, state = [], None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            states.append(state)
        return torch.stack([self.head(h) for h in states]).mean(0) if self.every_state else self.head(states[-1])


def over_time(model: nn.Module, _: int) -> Tensor:
    series = torch.randn(64, 50, 8, generator=torch.Generator().manual_seed(2))
    return nn.functional.cross_entropy(model(series), Y)


def test_a_cell_that_forgets_vanishes_over_its_calls() -> None:
    torch.manual_seed(0)
    finding = train(Recurrent(nn.RNNCell(8, 16)), over_time, steps=12, detectors=DEPTH).findings[0]
    assert (finding.kind, finding.layers, finding.step) == ("vanishing", ("cell",), 0)
    assert "first of 50 calls of layer cell" in finding.message


def test_a_cell_that_amplifies_explodes_over_its_calls() -> None:
    torch.manual_seed(0)
    cell = nn.RNNCell(8, 16, nonlinearity="relu")
    nn.init.orthogonal_(cell.weight_hh, gain=2.0)
    watcher = train(Recurrent(cell), over_time, steps=4, lr=1e-12, detectors=DEPTH)
    assert [(f.kind, f.layers) for f in watcher.findings] == [("exploding", ("cell",))]
    assert any("over the 50 calls of layer cell" in f.message for f in Exploding()(watcher.history[0]))


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell])
def test_a_loss_at_every_call_is_healthy(cell: type[nn.Module]) -> None:
    torch.manual_seed(0)
    assert kinds(train(Recurrent(cell(8, 16), every_state=True), over_time, steps=12, detectors=DEPTH)) == []


@pytest.mark.parametrize(("detector", "norms"), [(Vanishing(), [1e-9, 1, 1, 1]), (Exploding(), [1e9, 1, 1, 1])])
def test_few_calls_are_not_judged_over_time(detector: Detector, norms: list[float]) -> None:
    for calls, findings in ((norms, 0), ([*norms, 1], 1)):
        snapshot = Snapshot(0, ("cell",), grad_norm=[2], weight_norm=[1], calls={"cell": np.array(calls, float)})
        assert len(list(detector(snapshot))) == findings


def test_a_cell_with_gates_may_fall_by_the_square_of_the_ratio() -> None:
    for kind, last, found in (("RNNCell", 1e-4, 1), ("GRUCell", 1e-4, 0), ("LSTMCell", 1e-7, 1)):
        calls = {"cell": np.geomspace(last, 1.0, 40)}
        assert len(list(Vanishing()(Snapshot(0, ("cell",), kinds=(kind,), calls=calls)))) == found

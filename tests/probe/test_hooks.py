"""Whatever a layer takes, gives or is, the gradient at its output is read, and no hook is left."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from gradwatch.paths import Paths
from gradwatch.probe.probe import Probe
from gradwatch.records import Snapshot


@dataclass
class Output:
    logits: Tensor
    note: str = "kept"


class Returns(nn.Linear):
    """A Linear that packs its output into another structure."""

    def __init__(self, pack: Callable[[Tensor], object]) -> None:
        super().__init__(4, 4)
        self.pack = pack

    def forward(self, x: Tensor) -> object:
        return self.pack(super().forward(x))


class Net(nn.Module):
    """A first Linear, a layer of interest, and a way to turn its output into a loss."""

    def __init__(self, layer: nn.Module, loss: Callable[[object], Tensor]) -> None:
        super().__init__()
        self.first, self.layer, self.loss = nn.Linear(4, 4), layer, loss

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.layer(self.first(x)))


def measure(model: nn.Module, *args: object, **options: object) -> Snapshot:
    """One step of a model that returns its loss."""
    probe = Probe(model, **options)
    probe.attach()
    model(*args).backward()
    probe.read(model.parameters())
    snapshot = probe.snapshot(0)
    assert_no_hooks(model)
    return snapshot


def assert_no_hooks(model: nn.Module) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    for param in model.parameters():
        assert not param._backward_hooks


def at(snapshot: Snapshot, column: str, layer: str) -> float:
    return float(getattr(snapshot, column)[snapshot.layers.index(layer)])


@pytest.mark.parametrize(
    ("pack", "loss"),
    [
        (lambda x: x, lambda out: out.square().sum()),
        (lambda x: (x, None), lambda out: out[0].square().sum()),
        (lambda x: [x], lambda out: out[0].square().sum()),
        (lambda x: {"a": {"b": x}}, lambda out: out["a"]["b"].square().sum()),
        (lambda x: Output(x), lambda out: out.logits.square().sum()),
        (
            lambda x: pack_padded_sequence(x[None], torch.tensor([3]), batch_first=True),
            lambda out: out.data.square().sum(),
        ),
    ],
    ids=["tensor", "tuple", "list", "dict", "dataclass", "packed"],
)
def test_reads_every_kind_of_output(pack: Callable[[Tensor], object], loss: Callable[[object], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Net(Returns(pack), loss), torch.randn(3, 4)
    snapshot = measure(model, x)
    expected = (2 * nn.Linear.forward(model.layer, model.first(x))).norm().item()
    assert at(snapshot, "grad_output_norm", "layer") == pytest.approx(expected, rel=1e-5)


def test_output_norms_equal_retained_gradients_through_in_place_relus() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True))
    x = torch.randn(5, 4)
    plain = [nn.ReLU() if isinstance(m, nn.ReLU) else m for m in model]
    outputs, h = [], x
    for layer in plain:
        h = layer(h)
        h.retain_grad()
        outputs.append(h)
    h.square().sum().backward()
    expected = [out.grad.norm().item() for out in outputs]
    snapshot = measure(nn.Sequential(model, Sum()), x)
    assert snapshot.grad_output_norm.tolist() == pytest.approx(expected, rel=1e-5)
    gains = [out.grad.square().mean().sqrt().item() for out in outputs]
    assert snapshot.gain[1:].tolist() == pytest.approx([a / b for a, b in pairwise(gains)], rel=1e-4)


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum()


def test_several_inputs_are_taken_together() -> None:
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.join = nn.Linear(4, 4), nn.Linear(4, 4), nn.Bilinear(4, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.join(self.a(x), input2=self.b(x)).square().sum()

    model, x = Two(), torch.randn(3, 4)
    a, b = model.a(x).detach().requires_grad_(), model.b(x).detach().requires_grad_()
    out = model.join(a, b)
    out.retain_grad()
    out.square().sum().backward()
    rms_in = torch.cat([a.grad.flatten(), b.grad.flatten()]).square().mean().sqrt()
    rms_out = out.grad.square().mean().sqrt()
    assert at(measure(model, x), "gain", "join") == pytest.approx((rms_in / rms_out).item(), rel=1e-5)


class Recurrent(nn.Module):
    def __init__(self, steps: int = 12) -> None:
        super().__init__()
        self.cell, self.steps = nn.RNNCell(3, 5), steps

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 5)
        for t in range(self.steps):
            h = self.cell(x[:, t], h)
        return h.square().sum()


def test_each_call_of_a_cell_is_kept_in_order_of_time() -> None:
    torch.manual_seed(0)
    model, x = Recurrent(), torch.randn(2, 12, 3)
    states, h = [], torch.zeros(2, 5)
    for t in range(12):
        h = model.cell(x[:, t], h)
        h.retain_grad()
        states.append(h)
    h.square().sum().backward()
    expected = [state.grad.norm().item() for state in states]
    snapshot = measure(model, x)
    assert snapshot.calls["cell"].tolist() == pytest.approx(expected, rel=1e-5)
    total = sum(norm**2 for norm in expected) ** 0.5
    assert at(snapshot, "grad_output_norm", "cell") == pytest.approx(total, rel=1e-5)


def test_accumulated_forward_passes_are_not_taken_for_time_steps() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Sum())
    probe = Probe(model)
    probe.attach()
    for _ in range(4):
        model(torch.randn(2, 3)).backward()
    probe.read(model.parameters())
    assert probe.snapshot(0).calls == {}


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_number(reentrant: bool) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())

    class Model(nn.Module):
        def __init__(self, checkpointed: bool) -> None:
            super().__init__()
            self.stem, self.block, self.checkpointed = nn.Linear(4, 4), block, checkpointed

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            h = checkpoint(self.block, h, use_reentrant=reentrant) if self.checkpointed else self.block(h)
            return h.square().sum()

    x = torch.randn(200, 4)
    plain, recomputed = Model(False), Model(True)
    recomputed.load_state_dict(plain.state_dict())
    one = measure(plain, x)
    plain.zero_grad()
    other = measure(recomputed, x)
    columns = ("grad_norm", "grad_output_norm", "gain", "output_rms", "dead_fraction", "saturated_fraction")
    for column in columns:
        for layer in one.layers:
            assert at(other, column, layer) == pytest.approx(at(one, column, layer), rel=1e-5, nan_ok=True), column
    assert other.calls == {}


def test_tied_weights_count_once_in_the_total() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), Sum())
    model[1].weight = model[0].weight
    snapshot = measure(model, torch.randn(3, 4))
    assert snapshot.params == ("0.weight",)
    assert snapshot.total_norm == pytest.approx(at(snapshot, "grad_norm", "0"))
    assert at(snapshot, "grad_norm", "1") == at(snapshot, "grad_norm", "0")


def test_frozen_layers_are_missing_until_they_are_unfrozen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Sum())
    model[0].requires_grad_(False)
    frozen = measure(model, torch.randn(3, 4))
    assert "0" in frozen.missing["grad_norm"]
    assert "0" in frozen.missing["grad_output_norm"]
    assert frozen.params == ("1.weight", "1.bias")
    model[0].requires_grad_(True)
    assert not {"0", "1"} & set(measure(model, torch.randn(3, 4)).missing.get("grad_norm", ()))


def test_a_parameter_without_gradient_is_nan_and_not_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Sum())
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: model[1](model[0](x))
    snapshot = measure(model, torch.randn(3, 4))
    assert "unused" in snapshot.missing["grad_norm"]
    norms = dict(zip(snapshot.params, snapshot.param_grad_norm.tolist(), strict=True))
    assert norms["unused.weight"] != norms["unused.weight"]  # NaN


def test_sparse_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 3, sparse=True), Sum())
    snapshot = measure(model, torch.tensor([1, 1, 4]))
    dense = model[0].weight.grad.to_dense()
    assert snapshot.total_norm == pytest.approx(dense.norm().item(), rel=1e-5)
    assert at(snapshot, "zero_fraction", "0") == pytest.approx(8 / 10)


def test_complex_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, dtype=torch.complex64))
    model.forward = lambda x: model[0](x).abs().square().sum()
    snapshot = measure(model, torch.randn(2, 3, dtype=torch.complex64))
    grads = [param.grad.abs().double().square().sum() for param in model.parameters()]
    assert snapshot.total_norm == pytest.approx(sum(grads).sqrt().item(), rel=1e-5)


def test_lstm_returns_output_and_state() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    model.forward = lambda x: model[0](x)[1][1].square().sum()
    assert at(measure(model, torch.randn(2, 6, 3)), "grad_output_norm", "0") > 0
    packed: PackedSequence = pack_padded_sequence(torch.randn(2, 6, 3), torch.tensor([6, 3]), batch_first=True)
    model.forward = lambda x: model[0](x)[0].data.square().sum()
    assert at(measure(model, packed), "grad_output_norm", "0") > 0


def test_include_and_exclude() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), Sum())
    assert measure(model, torch.randn(3, 4), include=["0", "1"]).layers == ("0", "1")
    assert measure(model, torch.randn(3, 4), exclude=["[12]"]).layers == ("0",)
    assert measure(model, torch.randn(3, 4), include=["3", "2"]).layers == ("2", "3")  # named outright
    assert measure(model, torch.randn(3, 4), include=["0"]).total_norm > 0
    with pytest.raises(ValueError, match=r"'encoder\.\*' matches no layer; the nearest of the 3 layers"):
        Probe(model, include=["encoder.*"])


def test_layers_stand_in_the_order_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(4, 1), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)).sum()

    assert measure(Backwards(), torch.randn(2, 4)).layers == ("body", "head")


def test_an_error_in_the_forward_pass_leaves_no_hook() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 5), Sum())
    probe = Probe(model)
    probe.attach()
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 4))
    probe.detach()
    assert_no_hooks(model)


class Unbound(nn.Module):
    """One of two parts of an output goes into a layer whose result is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.used, self.unused = nn.Linear(4, 6), nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.body(x).view(-1, 2, 3).unbind(1)
        self.unused(first)
        output: Tensor = self.used(second)
        return output


def test_a_part_of_an_output_that_nothing_comes_back_to_is_no_error() -> None:
    probe = Probe(model := Unbound())
    probe.attach()
    model(torch.ones(2, 4)).sum().backward()
    probe.read(model.parameters())
    snapshot = probe.snapshot(step=0)
    assert snapshot is not None
    assert dict(zip(snapshot.layers, snapshot.grad_output_norm > 0, strict=True))["used"]
    assert np.isnan(snapshot.grad_output_norm[snapshot.layers.index("unused")])


def test_the_thread_that_trains_is_watched_and_no_other() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    probe, snapshots = Probe(model), []

    def train() -> None:
        probe.attach()
        model(torch.ones(2, 4)).sum().backward()
        other = threading.Thread(target=lambda: model(100 * torch.ones(2, 4)).sum().backward())
        other.start()
        other.join()
        probe.read(model.parameters())
        snapshots.append(probe.snapshot(0))

    trains = threading.Thread(target=train)
    trains.start()
    trains.join()
    expected = model[0](torch.ones(2, 4)).detach().square().mean().sqrt().item()
    assert at(snapshots[0], "output_rms", "0") == pytest.approx(expected)


def test_the_graph_of_a_network_of_thousands_of_layers_is_read_to_its_end() -> None:
    layers = 4200  # more than the calls that are noted of a small network
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(layers)))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    probe = Probe(model)
    probe.attach()
    model(torch.ones(1, 1)).sum().backward()
    probe.read(model.parameters())
    snapshot = probe.snapshot(step=0)
    assert snapshot is not None
    assert snapshot.feeds == (*(str(place) for place in range(1, layers)), "")
    assert len(Paths.of(snapshot, range(layers)).parts) == 1

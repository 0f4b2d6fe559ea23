"""gradwatch.diagnose: silent on healthy networks of many kinds, and names what is wrong with sick ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from gradwatch import Preflight, diagnose
from gradwatch.testing import assert_healthy_gradients

CLASSES = 5


def he(model: nn.Module) -> nn.Module:
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)
    return model


def mlp(activation: type[nn.Module], depth: int, width: int = 64, out: int = CLASSES) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(16 if i == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, out))


class Residual(nn.Module):
    """Blocks x + gate * branch(x), with the ends of the branches or the gates at zero."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 32)
        self.branches = nn.ModuleList(
            he(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))) for _ in range(6)
        )
        start = {"rezero": 0.0, "layerscale": 1e-5, "fixup": 1.0}[kind]
        self.gates = nn.ParameterList(torch.full((32 if kind == "layerscale" else 1,), start) for _ in range(6))
        self.head = nn.Linear(32, CLASSES)
        if kind == "fixup":
            for layer in (self.head, *(branch[2] for branch in self.branches)):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch, gate in zip(self.branches, self.gates, strict=True):
            x = x + gate * branch(x)
        return self.head(x)


class ResNet(nn.Module):
    def __init__(self, zero_gamma: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
                nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
            )
            for _ in range(8)
        )  # fmt: skip
        self.head = nn.Linear(8, CLASSES)
        if zero_gamma:
            for block in self.blocks:
                nn.init.zeros_(block[4].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.view(-1, 1, 4, 4))
        for block in self.blocks:
            x = functional.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.body, self.head = kind(16, 32, batch_first=True), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.unsqueeze(1).expand(-1, 12, -1))[0][:, -1])


def labels(*shape: int) -> Tensor:
    return torch.randint(0, CLASSES, shape or (128,))


def classified(x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return (torch.randn(128, 16) if x is None else x), labels()


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(16, CLASSES),
    "ReLU and He, deep": lambda: he(mlp(nn.ReLU, 20)),
    "ReLU, default": lambda: mlp(nn.ReLU, 3),
    "Tanh, Xavier": lambda: mlp(nn.Tanh, 4),
    "Sigmoid, shallow": lambda: mlp(nn.Sigmoid, 1),
    "LeakyReLU": lambda: he(mlp(nn.LeakyReLU, 8)),
    "GELU": lambda: mlp(nn.GELU, 4),
    "ReZero": lambda: Residual("rezero"),
    "LayerScale": lambda: Residual("layerscale"),
    "Fixup": lambda: Residual("fixup"),
    "ResNet": lambda: ResNet(False),
    "ResNet with zero gamma": lambda: ResNet(True),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), he(mlp(nn.ReLU, 4))),
    "BatchNorm first": lambda: nn.Sequential(nn.BatchNorm1d(16), he(mlp(nn.ReLU, 4))),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_network_gets_no_word(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    found = diagnose(HEALTHY[name](), classified(), loss=functional.cross_entropy)
    assert found.diagnoses == [], str(found)
    assert found.is_healthy
    assert found.snapshot is not None


@pytest.mark.parametrize("kind", ["rezero", "layerscale", "fixup"])
def test_what_starts_at_zero_is_healthy_over_some_steps_too(kind: str) -> None:
    torch.manual_seed(0)
    assert_healthy_gradients(Residual(kind), classified(), loss=functional.cross_entropy)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_with_an_embedding_gets_no_word(norm_first: bool) -> None:
    torch.manual_seed(0)
    batch = torch.randint(0, 50, (32, 10)), labels(32)
    found = diagnose(Transformer(norm_first), batch, loss=functional.cross_entropy)
    assert found.diagnoses == [], str(found)


def test_scaled_regression_gets_no_word() -> None:
    torch.manual_seed(0)
    batch = torch.randn(128, 16), 3 + 2 * torch.randn(128, 1)
    for loss in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), lambda output, target: (output - target).square().mean()):
        assert diagnose(he(mlp(nn.ReLU, 4, out=1)), batch, loss=loss).diagnoses == []


def with_softmax() -> nn.Module:
    return nn.Sequential(he(mlp(nn.ReLU, 3)), nn.Softmax(-1))


def constant(value: float) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = mlp(nn.Tanh, 3)
        for param in model.parameters():
            nn.init.constant_(param, value)
        return model

    return make


def bce(output: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output[:, 0], (target > 2).float())


def one_unit() -> nn.Module:
    return nn.Sequential(he(mlp(nn.ReLU, 3, out=1)), nn.Softmax(-1))


def uint8() -> tuple[Tensor, Tensor]:
    return classified(torch.randint(0, 256, (128, 16)).float())


def one_wild_sample() -> tuple[Tensor, Tensor]:
    x, y = classified()
    x[7] *= 1e4
    return x, y


def with_nan() -> tuple[Tensor, Tensor]:
    x, y = classified()
    x[3, 3] = torch.nan
    return x, y


def large_targets() -> tuple[Tensor, Tensor]:
    return torch.randn(128, 16), 5000 + 800 * torch.randn(128, 1)


def wide_targets() -> tuple[Tensor, Tensor]:
    return torch.randn(128, 16), 3 * torch.randn(128, 1)


def wild_logits() -> nn.Module:
    model = nn.Sequential(mlp(nn.ReLU, 2), nn.Linear(CLASSES, CLASSES))
    nn.init.normal_(model[1].weight, std=100.0)
    return model


class PlainList(nn.Module):
    """Two of its layers are not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = [nn.Linear(16, 16), nn.Linear(16, 16)], nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = functional.relu(layer(x))
        return self.head(x)


def small_weights() -> nn.Module:
    model = mlp(nn.ReLU, 8)
    for param in model.parameters():
        nn.init.normal_(param, std=0.01)
    return model


cross_entropy = functional.cross_entropy
SICK: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Any, str, str]] = {
    "Softmax before cross-entropy": (with_softmax, classified, cross_entropy, "zero-gradient head", "LogSoftmax"),
    "Sigmoid before BCE with logits": (
        lambda: nn.Sequential(mlp(nn.ReLU, 3, out=1), nn.Sigmoid()), classified, bce, "zero-gradient head", "Sigmoid",
    ),
    "Softmax over one unit": (
        one_unit, lambda: (torch.randn(128, 16), torch.rand(128, 1)), nn.MSELoss(), "zero-gradient head", "single unit"
    ),
    "cross-entropy over one unit": (
        lambda: mlp(nn.ReLU, 2, out=1), lambda: (torch.randn(128, 16), torch.zeros(128).long()), cross_entropy,
        "zero-gradient head", "single unit",
    ),
    "pixels": (lambda: he(mlp(nn.ReLU, 3)), uint8, cross_entropy, "unscaled input", "root mean square 1"),
    "an outlier": (lambda: he(mlp(nn.ReLU, 3)), one_wild_sample, cross_entropy, "outlier batch", "largest sample"),
    "NaN": (lambda: he(mlp(nn.ReLU, 3)), with_nan, cross_entropy, "outlier batch", "1 values NaN or Inf"),
    "large targets": (lambda: he(mlp(nn.ReLU, 3, out=1)), large_targets, nn.MSELoss(), "unscaled target", "targets: "),
    "labels beyond 0 to 1": (
        lambda: he(mlp(nn.ReLU, 3)), classified,
        lambda output, target: functional.binary_cross_entropy_with_logits(output[:, 0], target.float()),
        "unscaled target", "from 0 to 4",
    ),
    "equal weights": (constant(0.1), classified, cross_entropy, "initialization too small", "0.weight"),
    "all weights zero": (
        lambda: constant(0.0)(), classified, cross_entropy, "initialization too small", "they stay 0"
    ),
    "Sigmoid, deep": (lambda: mlp(nn.Sigmoid, 8), classified, cross_entropy, "saturating activation", "Sigmoids"),
    "weights 2.5 times He's": (
        lambda: large_weights(), classified, cross_entropy, "initialization too large", "Each of 6 blocks multiplies"
    ),
    "units that never fire": (lambda: dead_units(), classified, cross_entropy, "dead ReLU", "units of 3"),
    "a Tanh that can't reach its targets": (
        lambda: nn.Sequential(mlp(nn.Tanh, 2, out=1), nn.Tanh()), wide_targets, nn.MSELoss(),
        "unscaled target", "ends in a Tanh",
    ),
    "a ReLU for targets of both signs": (
        lambda: nn.Sequential(mlp(nn.ReLU, 2, out=1), nn.ReLU()), wide_targets, nn.MSELoss(),
        "unscaled target", "ends in a Relu",
    ),
    "wild logits": (lambda: wild_logits(), classified, cross_entropy, "initialization too large", "ln 5 = 1.61"),
    "layers in a plain list": (
        lambda: PlainList(), classified, cross_entropy, "frozen or detached part", "4 parameters, of shapes (16, 16)"
    ),
    "a loss without a graph": (
        lambda: mlp(nn.ReLU, 2), classified, lambda output, target: cross_entropy(output.detach(), target),
        "frozen or detached part", "does not require grad",
    ),
    "labels that are not there": (
        lambda: mlp(nn.ReLU, 2), lambda: (torch.randn(128, 16), torch.full((128,), 9)), cross_entropy,
        "not known", "Target 9 is out of bounds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SICK)
def test_a_sick_network_gets_its_cause_first(name: str) -> None:
    torch.manual_seed(0)
    make, batch, loss, cause, evidence = SICK[name]
    found = diagnose(make(), batch(), loss=loss)
    assert found.diagnoses, str(found)
    assert found.diagnoses[0].cause == cause, str(found)
    assert evidence in found.diagnoses[0].evidence
    assert all(0 < diagnosis.score <= 1 and diagnosis.remedies for diagnosis in found.diagnoses)
    assert [d.score for d in found.diagnoses] == sorted((d.score for d in found.diagnoses), reverse=True)
    assert str(found).startswith("not healthy before training: ")


@pytest.mark.parametrize("end", [nn.Sigmoid, nn.Tanh])
def test_targets_within_the_reach_of_the_last_activation_get_no_word(end: type[nn.Module]) -> None:
    torch.manual_seed(0)
    batch = torch.randn(128, 16), torch.rand(128, 1)
    assert diagnose(nn.Sequential(mlp(nn.Tanh, 2, out=1), end()), batch, loss=nn.MSELoss()).diagnoses == []


def test_one_fault_does_not_hide_another() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(mlp(nn.Sigmoid, 8), nn.Softmax(-1))
    causes = [found.cause for found in diagnose(model, uint8(), loss=cross_entropy).diagnoses]
    assert {"unscaled input", "zero-gradient head", "saturating activation"} <= {*causes}


@pytest.mark.parametrize("make", [constant(0.0), small_weights, lambda: mlp(nn.Sigmoid, 12)])
def test_what_lets_no_gradient_through_is_found(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    found = diagnose(make(), classified(), loss=cross_entropy)
    assert {finding.kind for finding in found.findings} & {"vanishing", "stalled"}
    assert found.diagnoses


class Parts(nn.Module):
    """Two heads, of which one is used; or a part whose output is detached."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.body, self.first, self.second = (
            he(mlp(nn.ReLU, 2)),
            nn.Linear(CLASSES, CLASSES),
            nn.Linear(CLASSES, CLASSES),
        )
        self.detach = detach

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x + self.first(x).detach() if self.detach else self.first(x)


def test_a_head_that_rests_is_told_but_no_fault_and_a_detached_one_is() -> None:
    torch.manual_seed(0)
    resting = diagnose(Parts(False), classified(), loss=cross_entropy)
    assert resting.diagnoses == []
    assert "Not called in this pass: second." in resting.notes
    detached = diagnose(Parts(True), classified(), loss=cross_entropy)
    assert detached.findings[0].layers == ("first.weight", "first.bias")
    assert len(detached.diagnoses) == 1


def test_gated_cells_open_in_training_and_others_do_not() -> None:
    class Cells(nn.Module):
        def __init__(self, kind: type[nn.Module]) -> None:
            super().__init__()
            self.cell, self.head = kind(16, 32), nn.Linear(32, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), 32)
            for _ in range(30):
                state = self.cell(x, state)
            return self.head(state)

    torch.manual_seed(0)
    assert diagnose(Cells(nn.GRUCell), classified(), loss=cross_entropy).diagnoses == []
    assert diagnose(Cells(nn.RNNCell), classified(), loss=cross_entropy).diagnoses[0].cause == "recurrent depth"


def large_weights() -> nn.Module:
    model = he(mlp(nn.ReLU, 6))
    for param in model.parameters():
        param.data *= 2.5
    return model


def dead_units() -> nn.Module:
    model = he(mlp(nn.ReLU, 4))
    nn.init.constant_(model[2].bias, -100.0)
    return model


class Net(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss * (1 + 0 * self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 10)]


class Manual(Net):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(cross_entropy(self.network(batch[0]), batch[1]))
        optimizer.step()


@pytest.mark.parametrize("kind", [Net, Manual])
def test_a_lightning_module_is_passed_as_it_trains(kind: type[Net], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    healthy, sick = kind(he(mlp(nn.ReLU, 6))), kind(with_softmax())
    weights = [param.clone() for param in sick.parameters()]
    state = torch.get_rng_state()
    batch = classified()
    torch.set_rng_state(state)
    assert diagnose(healthy, batch).diagnoses == []
    found = diagnose(sick, batch)
    assert [diagnosis.cause for diagnosis in found.diagnoses] == ["zero-gradient head"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(weights, sick.parameters(), strict=True))
    assert not any(part._forward_pre_hooks for part in sick.modules())
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_is_told() -> None:
    torch.manual_seed(0)
    model = he(mlp(nn.ReLU, 6, width=512))
    found = diagnose(model, classified(), loss=cross_entropy)
    assert list(found.chi) == ["1", "3", "5", "7", "9", "11"]
    assert all(0.8 < chi < 1.2 for chi in found.chi.values())  # He: critical
    saturating = diagnose(mlp(nn.Sigmoid, 6, width=512), classified(), loss=cross_entropy)
    assert all(chi < 0.03 for chi in list(saturating.chi.values())[1:])  # 1/16 of a variance of 1/3
    text = str(found)
    assert "Inputs of 0: root mean square 1" in text
    assert "chi (1 keeps the gradient)" in text
    assert isinstance(found, Preflight)


def test_a_plain_module_needs_a_loss() -> None:
    with pytest.raises(TypeError, match=r"gradwatch\.diagnose\(module, \(inputs, targets\), loss="):
        diagnose(mlp(nn.ReLU, 2), classified())

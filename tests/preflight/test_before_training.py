"""gradwatch.diagnose: silent on healthy networks of many kinds, modules of Lightning, and what it measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from preflight_networks import (
    CLASSES,
    Recurrent,
    Residual,
    ResNet,
    Transformer,
    classified,
    he,
    labels,
    mlp,
    with_softmax,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradwatch import Preflight, diagnose
from gradwatch.testing import assert_healthy_gradients

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
    found = diagnose(HEALTHY[name](), classified(), loss=cross_entropy)
    assert found.diagnoses == [], str(found)
    assert found.is_healthy
    assert found.snapshot is not None


@pytest.mark.parametrize("kind", ["rezero", "layerscale", "fixup"])
def test_what_starts_at_zero_is_healthy_over_some_steps_too(kind: str) -> None:
    torch.manual_seed(0)
    assert_healthy_gradients(Residual(kind), classified(), loss=cross_entropy)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_with_an_embedding_gets_no_word(norm_first: bool) -> None:
    torch.manual_seed(0)
    batch = torch.randint(0, 50, (32, 10)), labels(32)
    found = diagnose(Transformer(norm_first), batch, loss=cross_entropy)
    assert found.diagnoses == [], str(found)


def test_scaled_regression_gets_no_word() -> None:
    torch.manual_seed(0)
    batch = torch.randn(128, 16), 3 + 2 * torch.randn(128, 1)
    for loss in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), lambda output, target: (output - target).square().mean()):
        assert diagnose(he(mlp(nn.ReLU, 4, out=1)), batch, loss=loss).diagnoses == []


class Parts(nn.Module):
    """Two heads, one of them used; or a part with a detached output."""

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


class CutOffBody(nn.Module):
    """A body whose output loses its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU()), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).detach())


def test_a_head_that_is_not_used_is_noted_and_a_body_that_is_cut_off_is_a_fault() -> None:
    torch.manual_seed(0)
    resting = diagnose(Parts(False), classified(), loss=cross_entropy)
    assert resting.diagnoses == []
    assert "Not called in this pass: second." in resting.notes
    beside = diagnose(Parts(True), classified(), loss=cross_entropy)
    assert beside.diagnoses == []
    assert "The loss does not depend on first.weight, first.bias, which get no gradient." in beside.notes
    cut = diagnose(CutOffBody(), classified(), loss=cross_entropy)
    assert cut.findings[0].layers == ("body.0.weight", "body.0.bias")
    assert [cause.cause for cause in cut.diagnoses] == ["frozen or detached part"]


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


def test_the_measurements_are_printed() -> None:
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
    with pytest.raises(TypeError, match=r"expected one, or a loss function, such as loss="):
        diagnose(mlp(nn.ReLU, 2), classified())

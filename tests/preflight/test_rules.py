"""gradwatch.diagnose names the cause of sick networks first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from preflight_networks import CLASSES, classified, he, mlp, with_softmax
from torch import Tensor, nn
from torch.nn import functional

from gradwatch import diagnose


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


def large_weights() -> nn.Module:
    model = he(mlp(nn.ReLU, 6))
    for param in model.parameters():
        param.data *= 2.5
    return model


def dead_units() -> nn.Module:
    model = he(mlp(nn.ReLU, 4))
    nn.init.constant_(model[2].bias, -100.0)
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

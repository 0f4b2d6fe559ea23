"""One set-up for every exported remedy, for the tests that run over all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from gradwatch import remedies
from gradwatch.remedies import (
    AddSkips,
    ChangeOptimizer,
    Clip,
    ClipOutliers,
    Combination,
    FixHead,
    GuardOperations,
    InitializeAgain,
    InsertNormalization,
    KeepGraph,
    LowerLearningRate,
    NormalizeFirst,
    NormalizeGradients,
    OrthogonalRecurrence,
    RaiseLearningRate,
    Remedy,
    RemoveClip,
    RemoveLastActivation,
    ReplaceActivations,
    ReplaceRecurrence,
    RescaleInputs,
    RescaleTargets,
    ResetNormalization,
    ScaleBranches,
    ScaleLoss,
    Setup,
    SkipBadSteps,
    SmoothSteps,
    TrainAll,
    UnfreezeAll,
    UseBfloat16,
    WarmUp,
)


class Classifier(LightningModule):
    """A network with cross-entropy and SGD."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(x)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Regression(Classifier):
    """The same with a squared error, on float targets."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return mse_loss(self(batch[0]).squeeze(-1), batch[1])


class LastStep(nn.Module):
    """A recurrent network's output at the last step."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.recurrent(x)
        logits: Tensor = self.head(outputs[:, -1])
        return logits


class Transformer(nn.Module):
    """One Post-LN encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(x).mean(1))
        return logits


def mlp(activation: type[nn.Module] = nn.Sigmoid, tail: nn.Module | None = None) -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(8, 8), activation()) for _ in range(3)]
    return nn.Sequential(*blocks, nn.Linear(8, 3), *([tail] if tail else []))


def convolutions() -> nn.Module:
    first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))


def labelled(*shape: int, samples: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, *shape, generator=generator) * 3 + 1
    return inputs, torch.arange(samples) % 3


def sick_mlp(**options: Any) -> Setup:
    return Setup(Classifier(mlp()), options=options, batch=labelled(8))


def of(network: nn.Module, *shape: int) -> Setup:
    return Setup(Classifier(network), batch=labelled(*shape))


def regression() -> Setup:
    inputs, _ = labelled(8)
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    return Setup(Regression(network), batch=(inputs, 500 + 100 * inputs[:, 0]))


def bounded() -> Setup:
    inputs, _ = labelled(8)
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
    return Setup(Regression(network), batch=(inputs, 3 * inputs[:, 0]))


def faint_norms() -> Setup:
    norm = nn.LayerNorm(8)
    nn.init.normal_(norm.weight, 0.0, 0.02)
    return of(nn.Sequential(nn.Linear(8, 8), norm, nn.ReLU(), nn.Linear(8, 3)), 8)


def frozen() -> Setup:
    setup = sick_mlp()
    setup.module.network[0].requires_grad_(False)
    return setup


class Forgetful(Classifier):
    """Its optimizer has only one of its layers."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network[0].parameters(), lr=0.1)


def forgetful() -> Setup:
    return Setup(Forgetful(mlp(nn.ReLU)), batch=sick_mlp().batch)


class Cut(nn.Module):
    """Its body is detached from its head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(x).detach())
        return output


class Unguarded(nn.Module):
    """The root of values that may be zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x).relu().sqrt()
        return output


class Signs(nn.Module):
    """Its body's output is told by its sign alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(x).sign())
        return output


class Sums(nn.Module):
    """Four residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(mlp()[0] for _ in range(4)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        output: Tensor = self.head(x)
        return output


CASES: dict[str, tuple[Remedy, Callable[[], Setup]]] = {
    "InitializeAgain": (InitializeAgain(), sick_mlp),
    "InitializeAgain-orthogonal": (InitializeAgain("orthogonal"), lambda: of(convolutions(), 1, 4, 4)),
    "ReplaceActivations": (ReplaceActivations(), sick_mlp),
    "ReplaceActivations-leaky": (ReplaceActivations("LeakyReLU", ("ReLU",)), lambda: of(convolutions(), 1, 4, 4)),
    "InsertNormalization": (InsertNormalization(), sick_mlp),
    "InsertNormalization-batch": (InsertNormalization("batch"), sick_mlp),
    "InsertNormalization-conv": (InsertNormalization(), lambda: of(convolutions(), 1, 4, 4)),
    "InsertNormalization-group": (InsertNormalization("group"), lambda: of(convolutions(), 1, 4, 4)),
    "NormalizeFirst": (NormalizeFirst(), lambda: of(Transformer(), 5, 8)),
    "AddSkips": (AddSkips(), sick_mlp),
    "AddSkips-conv": (AddSkips(), lambda: of(convolutions(), 1, 4, 4)),
    "ReplaceRecurrence": (ReplaceRecurrence(), lambda: of(LastStep(nn.RNN(2, 8, batch_first=True)), 6, 2)),
    "ReplaceRecurrence-LSTM": (ReplaceRecurrence("LSTM"), lambda: of(LastStep(nn.RNN(2, 8, batch_first=True)), 6, 2)),
    "OrthogonalRecurrence": (OrthogonalRecurrence(), lambda: of(LastStep(nn.LSTM(2, 8, batch_first=True)), 6, 2)),
    "UnfreezeAll": (UnfreezeAll(), frozen),
    "KeepGraph": (KeepGraph(), lambda: of(Cut(), 8)),
    "GuardOperations": (GuardOperations(), lambda: of(Unguarded(), 8)),
    "ScaleLoss": (ScaleLoss(), sick_mlp),
    "TrainAll": (TrainAll(), forgetful),
    "RaiseLearningRate": (RaiseLearningRate(), sick_mlp),
    "ScaleBranches": (ScaleBranches(), lambda: of(Sums(), 8)),
    "SmoothSteps": (SmoothSteps(), lambda: of(Signs(), 8)),
    "FixHead": (FixHead(), lambda: of(mlp(nn.ReLU, nn.Softmax(dim=1)), 8)),
    "RemoveLastActivation": (RemoveLastActivation(), bounded),
    "ResetNormalization": (ResetNormalization(), faint_norms),
    "RescaleInputs": (RescaleInputs(), sick_mlp),
    "RescaleInputs-given": (RescaleInputs(1.0, 3.0), lambda: of(convolutions(), 1, 4, 4)),
    "RescaleTargets": (RescaleTargets(), regression),
    "ChangeOptimizer": (ChangeOptimizer(), sick_mlp),
    "LowerLearningRate": (LowerLearningRate(), sick_mlp),
    "WarmUp": (WarmUp(10), sick_mlp),
    "Clip": (Clip(0.5), sick_mlp),
    "RemoveClip": (RemoveClip(), lambda: sick_mlp(gradient_clip_val=1e-4)),
    "UseBfloat16": (UseBfloat16(), lambda: sick_mlp(precision="16-mixed")),
    "NormalizeGradients": (NormalizeGradients(), sick_mlp),
    "SkipBadSteps": (SkipBadSteps(), sick_mlp),
    "ClipOutliers": (ClipOutliers(), sick_mlp),
    "Combination": (Combination((InsertNormalization(), LowerLearningRate(), Clip())), sick_mlp),
}
EXPORTED = {
    name
    for name in remedies.__all__
    if inspect.isclass(found := getattr(remedies, name)) and issubclass(found, Remedy) and not inspect.isabstract(found)
} - {"Advice"}

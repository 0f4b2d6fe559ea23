"""Every cause, from a real training that has it; its healthy twin has none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwatch import Diagnosis, Finding, Snapshot, watch
from gradwatch.causes import advice
from gradwatch.diagnosis import diagnose
from gradwatch.records import Cause, Kind
from gradwatch.torch_internals import output_shape

Batch = tuple[Tensor, Tensor]
CLASSES = 5


def digits(step: int, scale: float = 1.0) -> Batch:
    """Five clusters in 32 dimensions, a new batch at each step."""
    centres = torch.randn(CLASSES, 32, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (128,), generator=generator)
    return scale * (centres[labels] + 0.5 * torch.randn(128, 32, generator=generator)), labels


def forgotten(step: int) -> Batch:
    """Labels that the inputs do not tell, as those that only the first of many calls has seen."""
    return digits(step)[0], digits(step + 1000)[1]


def heights(step: int, scale: float = 1.0, shift: float = 0.0) -> Batch:
    """A smooth function to regress on."""
    x = torch.randn(128, 32, generator=torch.Generator().manual_seed(step))
    return x, scale * torch.sin(x[:, :1]) + shift


def mlp(depth: int, activation: Callable[[], nn.Module], outputs: int = CLASSES, width: int = 32) -> nn.Sequential:
    blocks = [module for _ in range(depth) for module in (nn.Linear(width, width), activation())]
    return nn.Sequential(*blocks, nn.Linear(width, outputs))


def with_weights(model: nn.Module, deviation: float | None = None, bias: float = 0.0) -> nn.Module:
    """He's initialization, or a normal one of a given deviation."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if deviation is None:
                nn.init.kaiming_normal_(module.weight)
            else:
                nn.init.normal_(module.weight, std=deviation)
            nn.init.constant_(module.bias, bias)
    return model


def against_all(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target.squeeze(1)).square().mean()


@dataclass(frozen=True)
class Training:
    """The settings of a training; the defaults are healthy."""

    model: Callable[[], nn.Module] = lambda: with_weights(mlp(3, nn.ReLU))
    batch: Callable[[int], Batch] = digits
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = lambda params: torch.optim.SGD(params, lr=0.1)
    max_norm: float | None = None
    rate: Callable[[int], float] = lambda step: 1.0
    steps: int = 60
    clears: bool = True
    clips_early: bool = False

    def diagnose(self) -> list[Diagnosis]:
        torch.manual_seed(0)
        model = self.model()
        optimizer = self.optimizer([param for param in model.parameters() if param.requires_grad])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        with watch(model, every_n_steps=10, on_finding=lambda finding: None) as watcher:
            for step in range(self.steps):
                if self.clears:
                    optimizer.zero_grad()
                x, y = self.batch(step)
                loss = self.loss(model(x), y)
                if self.clips_early:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                loss.backward()
                watcher.read(optimizer)
                if self.max_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
                watcher.step(optimizer, loss)
                schedule.step()
        return watcher.diagnosis()


class Recurrent(nn.Module):
    """A cell over 40 time steps, or an LSTM's."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for _ in range(40):
            state = self.cell(x, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Detached(nn.Module):
    """Two halves, the first cut off from the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(1, nn.ReLU, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).detach())


class Forgotten(nn.Module):
    """Two halves; see :func:`of_the_head`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(1, nn.ReLU, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Idle(torch.optim.SGD):
    """An optimizer whose step does nothing."""

    def step(self, closure: object = None) -> None:
        """Leave all as it is."""


def of_the_head(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer without the body's parameters."""
    return torch.optim.SGD(params[-2:], lr=0.1)


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Encoder(nn.Module):
    """Post-norm attention layers over eight tokens, deep enough to want a warm-up."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True) for _ in range(12)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.reshape(-1, 1, 32).expand(-1, 4, -1)).mean(1))


def adam(rate: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda params: torch.optim.Adam(params, lr=rate)


def one_bad_batch(step: int) -> Batch:
    x, y = heights(step)
    return (x, y * 300) if step == 45 else (x, y)


def nan_batch(step: int) -> Batch:
    x, y = digits(step)
    return (x * (math.nan if step == 15 else 1.0), y)


def root_loss(out: Tensor, y: Tensor) -> Tensor:
    """A distance whose square root has no slope at 0."""
    return (out - y).square().mean() + (out - out.detach()).square().sum().sqrt()


HEALTHY = Training()
REGRESSION = Training(lambda: with_weights(mlp(3, nn.ReLU, 1)), heights, functional.mse_loss, adam(1e-3))
SICK: dict[str, tuple[Cause, Training]] = {
    "seven sigmoids": ("saturating activation", replace(HEALTHY, model=lambda: mlp(7, nn.Sigmoid))),
    "tiny weights": ("initialization too small", replace(HEALTHY, model=lambda: with_weights(mlp(7, nn.Tanh), 0.01))),
    "huge weights": ("initialization too large", replace(HEALTHY, model=lambda: with_weights(mlp(5, nn.ReLU), 1.0))),
    "thirty layers": ("missing normalization or skip", replace(HEALTHY, model=lambda: mlp(30, nn.ReLU))),
    "gradients that pile up": ("gradients are not zeroed", replace(HEALTHY, clears=False)),
    "a step that does nothing": ("step without effect", replace(HEALTHY, optimizer=lambda p: Idle(p, lr=0.1))),
    "a clip before the backward pass": ("clip without effect", replace(HEALTHY, clips_early=True)),
    "each output against each target": ("shapes broadcast", replace(REGRESSION, loss=against_all)),
    "a step too far": (
        "learning rate too high",
        replace(HEALTHY, optimizer=lambda params: torch.optim.SGD(params, lr=30.0)),
    ),
    "dead from the start": (
        "dead ReLU",
        replace(HEALTHY, model=lambda: with_weights(mlp(3, nn.ReLU), bias=-20.0)),
    ),
    "one softmax unit": (
        "zero-gradient head",
        replace(
            REGRESSION,
            model=lambda: nn.Sequential(with_weights(mlp(3, nn.ReLU, 1)), nn.Softmax(1)),
        ),
    ),
    "raw pixels": ("unscaled input", replace(HEALTHY, batch=lambda step: digits(step, 300.0))),
    "prices": (
        "unscaled target",
        replace(REGRESSION, batch=lambda s: heights(s, 1e4, 1e5), optimizer=lambda p: torch.optim.SGD(p, lr=0.1)),
    ),
    "forty calls": (
        "recurrent depth",
        replace(HEALTHY, model=lambda: with_recurrence(nn.RNNCell(32, 32), 0.3), batch=forgotten),
    ),
    "one bad batch": ("outlier batch", replace(REGRESSION, batch=one_bad_batch, steps=80)),
    "NaN in a batch": ("outlier batch", replace(HEALTHY, batch=nan_batch)),
    "a root at zero": (
        "unguarded operation",
        replace(REGRESSION, loss=root_loss),
    ),
    "a forgotten body": ("frozen or detached part", replace(HEALTHY, model=lambda: Forgotten(), optimizer=of_the_head)),
    "a detached body": ("frozen or detached part", replace(HEALTHY, model=Detached)),
    "clipped to nothing": ("clipping too hard", replace(HEALTHY, max_norm=1e-5)),
    "a step too short": ("learning rate too low", replace(HEALTHY, optimizer=adam(1e-8))),
    "weights that decay": (
        "weight decay too strong",
        replace(HEALTHY, optimizer=lambda params: torch.optim.SGD(params, lr=0.1, weight_decay=1.0), steps=80),
    ),
    "the wrong sign": (
        "unbounded loss",
        replace(HEALTHY, loss=lambda out, y: -functional.cross_entropy(out, y), steps=60),
    ),
    "exp between layers": ("unbounded activation", replace(HEALTHY, model=lambda: mlp(4, Exp))),
    "no warm-up": ("missing warm-up", replace(HEALTHY, model=Encoder, optimizer=adam(2e-2))),
}


def with_recurrence(cell: nn.RNNCell, gain: float) -> nn.Module:
    nn.init.orthogonal_(cell.weight_hh, gain)
    return Recurrent(cell)


def remembering() -> nn.Module:
    cell = nn.LSTMCell(32, 32)
    nn.init.constant_(cell.bias_hh[32:64], 3.0)  # the forget gates begin open
    return Recurrent(cell)


TWINS: dict[str, Training] = {
    "ReLU with He": HEALTHY,
    "seven ReLUs with He": replace(HEALTHY, model=lambda: with_weights(mlp(7, nn.ReLU))),
    "Adam at 0.01": replace(HEALTHY, optimizer=adam(1e-2)),
    "regression": REGRESSION,
    "an LSTM cell": replace(HEALTHY, model=remembering, optimizer=adam(1e-2)),
    "a frozen body": replace(HEALTHY, model=lambda: frozen(Detached())),
    "a rate that warms up from next to nothing": replace(
        HEALTHY, optimizer=adam(1e-2), rate=lambda step: 1e-7 * (step + 1)
    ),
    "a forgotten part in evaluation mode": replace(HEALTHY, model=lambda: Forgotten().eval(), optimizer=of_the_head),
    "a mild clip": replace(HEALTHY, max_norm=1.0),
    "warm-up": replace(
        HEALTHY, model=Encoder, optimizer=adam(2e-2), rate=lambda step: min(1.0, (step + 1) / 40), steps=80
    ),
}


def frozen(model: Detached) -> nn.Module:
    model.body.requires_grad_(False)
    return model


# A clip is seen by what torch 2.6 calls in it, shapes by what a node tells of them.
UNSEEN = {
    "a clip before the backward pass": not hasattr(torch.nn.utils.clip_grad, "_clip_grads_with_norm_"),
    "each output against each target": output_shape(nn.Linear(1, 1)(torch.ones(1, 1)).grad_fn, 0) is None,
}


@pytest.mark.parametrize("name", SICK)
def test_the_cause_is_named_first(name: str) -> None:
    if UNSEEN.get(name):
        pytest.skip(f"not seen with torch {torch.__version__}, as docs/limits.md says")
    cause, training = SICK[name]
    diagnoses = training.diagnose()
    assert diagnoses
    assert diagnoses[0].cause == cause, [f"{d.score:.2f} {d}" for d in diagnoses]


@pytest.mark.parametrize("input_rms", [1.0, 100.0])
@pytest.mark.parametrize("first_loss", [2.3, 30.0])
def test_a_large_first_loss_is_named_where_something_came_of_it(first_loss: float, input_rms: float) -> None:
    losses = {"loss": first_loss, "trace_step": [0], "trace_loss": [first_loss]}
    first = Snapshot(0, ("a",), classes=10.0, input_rms=input_rms, **losses)
    found = Finding("spike", ("loss",), 7, 90.0, 30.0, "The loss spikes.")
    is_named = first_loss == 30.0 and input_rms == 1.0
    diagnoses = diagnose([found], [first])
    assert any("ln 10 = 2.3" in diagnosis.evidence for diagnosis in diagnoses) == is_named
    assert not any("ln 10" in diagnosis.evidence for diagnosis in diagnose([], [first]))


@pytest.mark.parametrize("name", TWINS)
def test_a_healthy_training_has_no_cause(name: str) -> None:
    assert TWINS[name].diagnose() == []


def test_the_trainings_name_every_cause_but_those_with_tests_of_their_own() -> None:
    assert {cause for cause, _ in SICK.values()} == {*get_args(Cause)} - {
        "precision underflow", "replicas out of sync", "posterior collapse", "ignored labels", "constant reward",
        "not known",
    }  # fmt: skip


def halves(**columns: object) -> Iterator[Snapshot]:
    for step in range(12):
        loss = {"trace_step": [step], "trace_loss": [2.3], "trace_total_norm": [math.nan]}
        yield Snapshot(step, ("a", "b"), dtype="float16", loss=2.3, total_norm=1.0, **loss, **columns)


def test_half_precision_that_loses_the_gradient() -> None:
    (diagnosis,) = diagnose([], [*halves(zero_fraction=[0.9, 0.7])])
    assert diagnosis.cause == "precision underflow"
    assert "80%" in diagnosis.evidence
    assert diagnose([], [*halves(zero_fraction=[0.1, 0.0])]) == []
    assert diagnose([], [*halves(skipped=True)])[0].cause == "precision underflow"


@pytest.mark.parametrize("kind", [*get_args(Kind), "my own"])
@pytest.mark.parametrize("history", [[], [Snapshot(0, ())], [Snapshot(3, ("a",), kinds=("ReLU",), gain=[1])]])
def test_every_finding_is_explained(kind: str, history: list[Snapshot]) -> None:
    about = Finding(kind, ("a",), 0, 0.6, 0.5, "it is so.")
    diagnoses = diagnose([about], history)
    assert about in [finding for diagnosis in diagnoses for finding in diagnosis.findings]
    for diagnosis in diagnoses:
        assert diagnosis.cause in get_args(Cause)
        assert 0 <= diagnosis.score <= 1
        assert all(diagnosis.remedies)
        assert str(diagnosis).startswith(f"{diagnosis.cause}. ")


def test_the_evidence_splits_the_gain() -> None:
    sigmoid = SICK["seven sigmoids"][1].diagnose()[0]
    assert "each of the 7 Sigmoids multiplies the gradient by 0.2" in sigmoid.evidence.lower().replace("sig", "Sig")
    assert "(their weights alone: 0.5" in sigmoid.evidence
    assert sigmoid.remedies == advice("saturating activation", "lossy", ("Linear", "Sigmoid"))
    assert np.isfinite(sigmoid.score)

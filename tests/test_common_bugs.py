"""Common bugs are named, in a hundred steps of a small training."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from common_bugs import (
    DIGITS,
    ONE_HOT,
    OUTCOMES,
    PATIENTS,
    PIXELS,
    SCALED,
    STANDARD,
    Around,
    Bug,
    PixelByPixel,
    PlainList,
    ThroughNumPy,
    classifier,
    drawn,
    mlp,
    regressor,
    same,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from gradwatch.preflight.verdict import check_training

mse, adam = functional.mse_loss, partial(Adam, lr=1e-3)
HEAD, RATE, CUT = ("zero-gradient head",), ("learning rate too high",), ("frozen or detached part",)
SMALL, LARGE = ("initialization too small",), ("initialization too large",)
NAN = float("nan")
INPUT, TARGET, PLAIN = ("unscaled input",), ("unscaled target",), ("missing normalization or skip",)
UNGUARDED, SATURATING = ("unguarded operation",), ("saturating activation",)
sigmoid_or_tanh = partial(mlp, 64, *[64] * 5, 10)


def behind(after: object) -> partial[Around]:
    return partial(Around, classifier(), same, after)


def numbers(**changes: object) -> Bug:
    fields = {
        "network": regressor,
        "inputs": STANDARD,
        "targets": SCALED,
        "loss": mse,
        "optimizer": partial(SGD, lr=0.1),
    }
    return Bug(**{**fields, **changes})  # type: ignore[arg-type]


def without_guard(output: Tensor, labels: Tensor) -> Tensor:
    return -(functional.one_hot(labels, 10) * output.relu().log()).sum(1).mean()


BUGS = {
    "nothing": Bug(()),
    "nothing, Adam": Bug((), inputs=PIXELS / 16, optimizer=adam),
    "nothing, regression": numbers(causes=(), optimizer=partial(Adam, lr=1e-2)),
    "nothing, log-softmax twice": Bug((), partial(classifier, last=nn.LogSoftmax(1))),
    "softmax before cross-entropy": Bug(HEAD, partial(classifier, last=nn.Softmax(1))),
    "softmax as a function": Bug(HEAD, behind(partial(torch.softmax, dim=1)), optimizer=adam),
    "softmax over the batch": Bug(HEAD, behind(partial(torch.softmax, dim=0)), optimizer=adam),
    "softmax for log-probabilities": Bug(HEAD, behind(partial(torch.softmax, dim=1)), loss=functional.nll_loss),
    "sigmoid before logits": Bug(
        HEAD, partial(classifier, last=nn.Sigmoid()), targets=ONE_HOT, loss=functional.binary_cross_entropy_with_logits
    ),
    "a ReLU at the end": numbers(causes=TARGET, network=partial(regressor, last=nn.ReLU())),
    "a Tanh at the end": numbers(causes=TARGET, network=partial(regressor, last=nn.Tanh()), targets=5 * SCALED),
    "a Sigmoid at the end": numbers(causes=TARGET, network=partial(regressor, last=nn.Sigmoid()), targets=OUTCOMES),
    "a rate of 1e-7": Bug(("learning rate too low",), optimizer=partial(SGD, lr=1e-7)),
    "Adam's rate of 1e-8": Bug(("learning rate too low",), optimizer=partial(Adam, lr=1e-8)),
    "a rate of 10": Bug(RATE, optimizer=partial(SGD, lr=10.0)),
    "a rate of 30, Tanh": Bug(RATE, partial(classifier, act=nn.Tanh), optimizer=partial(SGD, lr=30.0)),
    "Adam's rate of 0.5": Bug(RATE, optimizer=partial(Adam, lr=0.5)),
    "momentum and a rate": Bug(RATE, optimizer=partial(SGD, lr=0.5, momentum=0.99)),
    "a sum for a mean": Bug(RATE, loss=partial(functional.cross_entropy, reduction="sum")),
    "all weights zero": Bug(SMALL, lambda: drawn(classifier(), nn.init.zeros_)),
    "all weights alike": Bug(SMALL, lambda: drawn(classifier(), lambda w: nn.init.constant_(w, 0.1))),
    "weights of 0.001": Bug(SMALL, lambda: drawn(mlp(64, 128, 128, 128, 10), partial(nn.init.normal_, std=1e-3))),
    "weights of 1": Bug(LARGE, lambda: drawn(classifier(), nn.init.normal_)),
    "biases of -20": Bug(("dead ReLU",), lambda: drawn(classifier(), nn.init.kaiming_normal_, -20.0)),
    "deep Sigmoids": Bug(SATURATING, partial(sigmoid_or_tanh, act=nn.Sigmoid)),
    "deep Sigmoids, Adam": Bug(SATURATING, partial(sigmoid_or_tanh, act=nn.Sigmoid), optimizer=adam),
    "twenty Tanhs": Bug(PLAIN, partial(mlp, 64, *[64] * 20, 10, act=nn.Tanh)),
    "twenty ReLUs": Bug(PLAIN, partial(mlp, 64, *[64] * 20, 10), optimizer=adam),
    "bytes": Bug(INPUT, inputs=16 * PIXELS),
    "bytes, Adam": Bug(INPUT, inputs=16 * PIXELS, optimizer=adam),
    "tiny inputs": Bug(INPUT, inputs=1e-4 * DIGITS),
    "patients as they are": numbers(causes=INPUT, inputs=PATIENTS, targets=OUTCOMES, optimizer=adam),
    "outcomes as they are": numbers(causes=TARGET, targets=OUTCOMES, optimizer=adam),
    "outcomes, absolute error": numbers(causes=TARGET, targets=OUTCOMES, loss=functional.l1_loss, optimizer=adam),
    "the wrong sign": Bug(("unbounded loss",), loss=lambda output, labels: -functional.cross_entropy(output, labels)),
    "a log of zero": Bug(UNGUARDED, loss=without_guard),
    "a root of zero": Bug(UNGUARDED, loss=lambda out, y: (out - out).square().sum(1).sqrt().mean() + out.mean()),
    "deviation of one value": numbers(causes=UNGUARDED, loss=lambda out, y: mse(out / out.std(1, keepdim=True), y)),
    "a NaN in the data": Bug(("outlier batch",), inputs=DIGITS.clone().index_fill_(0, torch.arange(9, 1797, 300), NAN)),
    "division by a variance of zero": Bug(
        ("outlier batch",), partial(Around, classifier(), lambda x: (x - x.mean(0)) / x.var(0), same), PIXELS
    ),
    "decay of 1": Bug(("weight decay too strong",), optimizer=partial(SGD, lr=0.1, weight_decay=1.0)),
    "a part through NumPy": Bug(CUT, ThroughNumPy),
    "layers in a plain list": Bug(CUT, PlainList),
    "an optimizer of the head": Bug(CUT, optimizer=lambda params: SGD([*params][-2:], lr=0.1)),
    "an RNN over 64 pixels": Bug(("recurrent depth",), partial(PixelByPixel, nn.RNN), optimizer=adam),
}


@pytest.mark.parametrize("name", BUGS)
def test_the_cause_is_named_first(name: str) -> None:
    torch.manual_seed(0)
    bug = BUGS[name]
    loader = DataLoader(TensorDataset(bug.inputs, bug.targets), batch_size=32, shuffle=True)
    run = check_training(bug.network(), loader, loss=bug.loss, optimizer=bug.optimizer, steps=100)
    assert tuple(diagnosis.cause for diagnosis in run.diagnoses[:1]) == bug.causes, str(run)

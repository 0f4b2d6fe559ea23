"""The programs with bugs of scale."""

from __future__ import annotations

from functools import partial

from blind.programs_base import Program, bug, cnn, digits, mlp, patients, r_squared, rebuilt, rows, standard
from blind.programs_scales import (
    Adapted,
    Normed,
    Residual,
    Texts,
    Tied,
    adam,
    drawn,
    last_bias,
    learned_only,
    mse,
    one_wrong,
    regressor,
    topics,
    with_column,
    with_some,
    years,
)
from sklearn.datasets import load_breast_cancer, load_wine
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam

kaiming, xavier = nn.init.kaiming_normal_, nn.init.xavier_normal_
deep = partial(mlp, 64, 128, 128, 10)

SCALES: dict[str, Program] = {
    "raw wine into Tanh": bug(
        "UMLAUT (CHI 2021): input not normalized; StackOverflow on wine's proline", "unscaled input",
        "saturating activation",
        network=partial(mlp, 13, 32, 32, 3, act=nn.Tanh), data=rows(load_wine, lambda x: x),
        repair={"data": rows(load_wine)},
    ),
    "one column a million times the others": bug(
        "Humbatova 1910.11015: missing preprocessing; an id or a timestamp among the features", "unscaled input",
        network=partial(mlp, 30, 32, 2), data=rows(load_breast_cancer, with_column(1e6)), optimizer=adam,
        repair={"data": rows(load_breast_cancer)},
    ),
    "years as targets": bug(
        "StackOverflow: regression on a year; the output must first come to 2000", "unscaled target",
        network=partial(mlp, 8, 64, 1), data=partial(years, 2000.0), loss=mse, score=r_squared,
        optimizer=partial(Adam, lr=1e-2), repair={"data": partial(years, 0.0)},
    ),
    "a pixel of 1e8": bug(
        "Humbatova 1910.11015: bad training data", "outlier batch", "unscaled input",
        network=partial(mlp, 64, 64, 10), data=one_wrong(1e8), repair={"data": digits()},
    ),
    "missing inputs are -9999": bug(
        "forums: a sentinel for missing values left in, then the columns not standardized", "unscaled input",
        "outlier batch",
        network=partial(mlp, 30, 32, 2), data=rows(load_breast_cancer, lambda x: with_some(-9999.0, 0.02)(standard(x))),
        optimizer=adam, repair={"data": rows(load_breast_cancer, lambda x: with_some(0.0, 0.02)(standard(x)))},
    ),
    "missing targets are -999": bug(
        "forums: a sentinel for missing labels left in", "unscaled target", "outlier batch",
        network=regressor, data=lambda: learned_only(patients(with_some(-999.0, 0.02))), loss=mse, score=r_squared,
        optimizer=partial(Adam, lr=1e-2),
        repair={"data": lambda: learned_only(patients(with_some(0.0, 0.02)))},
    ),
    "targets are logs of counts": bug(
        "StackOverflow: log(y) where a count is 0 gives -inf", "outlier batch", "unscaled target",
        network=regressor, data=lambda: learned_only(patients(with_some(-float("inf"), 0.02))), loss=mse,
        score=r_squared,
        optimizer=partial(Adam, lr=1e-2),
        repair={"data": lambda: learned_only(patients(with_some(0.0, 0.02)))},
    ),
    "binary cross-entropy of pixels up to 16": bug(
        "forums: an autoencoder's targets must be from 0 to 1 for BCE", "unbounded loss", "unscaled target",
        network=partial(mlp, 64, 48, 64), data=partial(rebuilt, 16.0), optimizer=adam, steps=150,
        loss=functional.binary_cross_entropy_with_logits,
        score=lambda output, x: r_squared(output.sigmoid(), x / x.max()),
        repair={"data": rebuilt},
    ),
    "a CNN with weights of 1": bug(
        "TheDeepChecker 2204.00694: poor weight initialization", "initialization too large",
        network=lambda: drawn(cnn(), nn.init.normal_), data=digits(1, 8, 8), optimizer=partial(SGD, lr=0.05),
        repair={"network": lambda: drawn(cnn(), kaiming)},
    ),
    "weights from 0 to 1": bug(
        "StackOverflow: torch.rand where torch.randn was meant", "initialization too large",
        network=lambda: drawn(deep(), nn.init.uniform_), data=digits(change=lambda x: x / 16),
        repair={"network": lambda: drawn(deep(), kaiming)},
    ),
    "embeddings of 100": bug(
        "forums: nn.Embedding filled by hand", "initialization too large",
        network=partial(Texts, 100.0), data=topics, optimizer=partial(Adam, lr=1e-2),
        repair={"network": partial(Texts, 1.0)},
    ),
    "thirty residual blocks that add up": bug(
        "Fixup 1901.09321: residual branches without scaling blow up with depth", "initialization too large",
        "missing normalization or skip",
        network=partial(Residual, 1.4), data=digits(), optimizer=adam, repair={"network": partial(Residual, 0.1)},
    ),
    "biases of 50 in the last layer": bug(
        "Karpathy's recipe (2019): init the final bias well", "initialization too large",
        network=partial(last_bias, 50.0), data=digits(), optimizer=partial(SGD, lr=0.05),
        repair={"network": partial(last_bias, 0.0)},
    ),
    "tied weights of zero": bug(
        "NeuraLint 2105.08095: weights must not start at a constant", "initialization too small",
        network=partial(Tied, nn.init.zeros_), data=rebuilt, loss=mse, score=r_squared,
        optimizer=partial(Adam, lr=1e-2),
        repair={"network": partial(Tied, xavier)},
    ),
    "an adapter with both factors zero": bug(
        "LoRA 2106.09685 starts one factor at zero; forums: both", "initialization too small",
        network=partial(Adapted, nn.init.zeros_), data=digits(), optimizer=partial(Adam, lr=1e-2),
        repair={"network": partial(Adapted, xavier)},
    ),
    "BatchNorm shifted by -4 before ReLU": bug(
        "TheDeepChecker 2204.00694: dead ReLU", "dead ReLU",
        network=partial(Normed, -4.0), data=digits(), optimizer=partial(SGD, lr=0.05),
        repair={"network": partial(Normed, 0.0)},
    ),
}  # fmt: skip

"""Bugs in the optimizer, its schedule and the weight of the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from blind.programs_base import Program, bug, cnn, digits, mlp, patients, r_squared, rows
from blind.programs_optimizers import bounded, clipped, hoarding, scheduled, slow_body
from sklearn.datasets import load_breast_cancer, load_wine
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

small = partial(mlp, 64, 64, 10)


def two_tasks(weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return (
            functional.cross_entropy(output, labels) + weight * (output.mean(1) - labels.float() / 10).square().mean()
        )

    return loss


sgd, adam = partial(SGD, lr=0.1), partial(Adam, lr=1e-3)
momentum = partial(SGD, lr=0.1, momentum=0.99)
cells = partial(rows, load_breast_cancer)

RATES: dict[str, Program] = {
    "gradients never zeroed": bug(
        "forums' most frequent: loss.backward() without optimizer.zero_grad(); Humbatova 1910.11015, training process",
        "learning rate too high",
        network=cnn, data=digits(1, 8, 8), optimizer=hoarding, repair={"optimizer": sgd},
    ),
    "the rate grows each step": bug(
        "forums: ExponentialLR given 1 / gamma", "learning rate too high",
        network=cnn, data=digits(1, 8, 8),
        optimizer=scheduled(partial(SGD, lr=0.02), partial(ExponentialLR, gamma=1.15)),
        repair={"optimizer": scheduled(partial(SGD, lr=0.1), partial(ExponentialLR, gamma=0.99))},
    ),
    "one cycle to 30": bug(
        "forums: max_lr of OneCycleLR read off the divergent end of the range test", "learning rate too high",
        network=partial(mlp, 13, 32, 32, 3), data=rows(load_wine),
        optimizer=scheduled(sgd, partial(OneCycleLR, max_lr=30.0, total_steps=120)),
        repair={"optimizer": scheduled(sgd, partial(OneCycleLR, max_lr=0.1, total_steps=120))},
    ),
    "momentum of 0.99 in a CNN": bug(
        "TheDeepChecker 2204.00694: unstable training from momentum", "learning rate too high",
        network=cnn, data=digits(1, 8, 8), optimizer=momentum, repair={"optimizer": partial(SGD, lr=0.1, momentum=0.5)},
    ),
    "Adam without averages": bug(
        "forums: betas=(0, 0) by mistake for no momentum; each step is a sign", "learning rate too high",
        network=cnn, data=digits(1, 8, 8), optimizer=partial(Adam, lr=0.01, betas=(0.0, 0.0)),
        repair={"optimizer": partial(Adam, lr=0.01)},
    ),
    "Adam's epsilon of 10": bug(
        "Keras documentation's advice of a large epsilon, taken over", "learning rate too low",
        network=cnn, data=digits(1, 8, 8), optimizer=partial(Adam, lr=3e-3, eps=10.0),
        repair={"optimizer": partial(Adam, lr=3e-3)},
    ),
    "a clip to 1e-6": bug(
        "StackOverflow: the clip's norm confused with an epsilon", "clipping too hard", "learning rate too low",
        network=partial(mlp, 30, 32, 1), data=cells(long=False), loss=functional.binary_cross_entropy_with_logits,
        optimizer=clipped(sgd, 1e-6), repair={"optimizer": clipped(sgd, 1.0)},
    ),
    "the rate halves each step": bug(
        "forums: scheduler.step() per batch where it was meant per epoch", "learning rate too low",
        network=small, data=digits(), optimizer=scheduled(partial(SGD, lr=0.05), partial(ExponentialLR, gamma=0.5)),
        repair={"optimizer": scheduled(partial(SGD, lr=0.05), partial(ExponentialLR, gamma=0.99))},
    ),
    "the loss divided by its samples twice": bug(
        "forums: a mean divided again by the size of the data set", "learning rate too low",
        network=partial(mlp, 10, 32, 1), data=patients, score=r_squared,
        loss=lambda output, y: functional.mse_loss(output, y) / 331, repair={"loss": functional.mse_loss},
    ),
    "a second task that weighs 10000": bug(
        "Humbatova 1910.11015: wrong loss; forums on multi-task weights", "learning rate too high",
        network=small, data=digits(), loss=two_tasks(1e4), repair={"loss": two_tasks(0.1)},
    ),
    "weights cut to 0.01": bug(
        "forums: WGAN's weight clipping (1701.07875) kept for a classifier",
        "weight decay too strong", "initialization too small", "clipping too hard",
        network=partial(mlp, 64, 64, 64, 64, 10), data=digits(), optimizer=bounded(sgd, 0.01),
        repair={"optimizer": sgd},
    ),
    "a body with a rate of 1e-9": bug(
        "forums: parameter groups with a discriminative rate mistyped", "learning rate too low",
        "frozen or detached part",
        network=partial(mlp, 64, 6, 10), data=digits(), optimizer=slow_body,
        repair={"optimizer": partial(Adam, lr=1e-2)},
    ),
}  # fmt: skip

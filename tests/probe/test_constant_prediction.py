"""The loss of a constant prediction, read from the gradient at the network's output."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradwatch
from gradwatch.probe.constant_prediction import MOST_ENTRIES, read_constant
from gradwatch.torch_internals import output_shape

needs_shapes = pytest.mark.skipif(
    output_shape(nn.Linear(1, 1)(torch.ones(1, 1)).grad_fn, 0) is None, reason="this torch tells no shapes in its graph"
)

Loss = Callable[[Tensor, Tensor], Tensor]
INPUTS = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
NUMBERS = INPUTS.sum(1, keepdim=True) + 3.0
LABELS = (INPUTS[:, :1] > 0.5).float()


def chances(loss: Loss, targets: Tensor, *more: nn.Module, steps: int = 2, outputs: int = 1) -> list[float]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs), *more)
    rule = torch.optim.SGD(network.parameters(), 0.01)
    with gradwatch.watch(network, every_n_steps=1, on_finding=lambda _: None) as watcher:
        for _ in range(steps):
            value = loss(network(INPUTS), targets)
            rule.zero_grad()
            value.backward()
            watcher.step(rule, value)
    return [snapshot.chance for snapshot in watcher.history]


SQUARED: dict[str, Loss] = {
    "torch's": functional.mse_loss,
    "by hand": lambda output, target: (output.squeeze(1) - target.squeeze(1)).pow(2).mean(),
    "of a module": nn.MSELoss(),
}


@pytest.mark.parametrize("loss", SQUARED.values(), ids=SQUARED)
def test_a_squared_error_tells_the_variance(loss: Loss) -> None:
    assert chances(loss, NUMBERS) == pytest.approx([float(NUMBERS.var())] * 2, rel=1e-3)


def test_each_column_has_a_constant_of_its_own() -> None:
    targets = torch.cat([NUMBERS, 10 * NUMBERS + 50], 1)
    wanted = float(targets.var(0).mean())
    assert chances(functional.mse_loss, targets, outputs=2) == pytest.approx([wanted] * 2, rel=1e-3)


BINARY: dict[str, tuple[Loss, tuple[nn.Module, ...]]] = {
    "of logits": (functional.binary_cross_entropy_with_logits, ()),
    "of shares": (functional.binary_cross_entropy, (nn.Sigmoid(),)),
    "of shares in the loss": (lambda output, target: functional.binary_cross_entropy(output.sigmoid(), target), ()),
}


@pytest.mark.parametrize(("loss", "more"), BINARY.values(), ids=BINARY)
def test_a_binary_cross_entropy_tells_the_entropy_of_the_labels(loss: Loss, more: tuple[nn.Module, ...]) -> None:
    share = float(LABELS.mean())
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share) + 1 / 128
    assert chances(loss, LABELS, *more) == pytest.approx([entropy] * 2, rel=1e-3)


@needs_shapes
def test_classes_tell_their_logarithm() -> None:
    assert chances(functional.cross_entropy, torch.arange(64) % 4, outputs=4) == pytest.approx([math.log(4)] * 2)


OTHERS: dict[str, Loss] = {
    "a sum": lambda output, target: (output - target).square().sum(),
    "a factor": lambda output, target: 2 * functional.mse_loss(output, target),
    "a penalty": lambda output, target: functional.mse_loss(output, target) + output.square().mean(),
    "absolute errors": functional.l1_loss,
    "weights": lambda output, target: functional.binary_cross_entropy_with_logits(
        output, (target > 3).float(), pos_weight=torch.tensor(5.0)
    ),
    "some of the outputs": lambda output, target: 0.5 * functional.mse_loss(output[:32], target[:32]),
    "a step on the output": lambda output, target: functional.mse_loss(3 * output, target),
}


@pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
def test_other_losses_tell_nothing(loss: Loss) -> None:
    assert all(map(math.isnan, chances(loss, NUMBERS)))


def test_equal_targets_tell_nothing() -> None:
    assert all(map(math.isnan, chances(functional.mse_loss, torch.ones(64, 1))))


def test_only_the_first_measured_steps_and_some_later_ones_are_read() -> None:
    known = [math.isfinite(chance) for chance in chances(functional.mse_loss, NUMBERS, steps=70)]
    assert known == [True] * 65 + [False] * 5


def test_few_samples_and_large_outputs_are_not_read() -> None:
    for shape in ((), (4, 2), (MOST_ENTRIES + 1,)):
        assert read_constant(torch.zeros(shape), torch.zeros(shape)) is None


def test_what_is_not_finite_tells_nothing() -> None:
    assert all(map(math.isnan, chances(lambda output, target: functional.mse_loss(output * math.nan, target), NUMBERS)))

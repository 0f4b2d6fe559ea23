"""The loss that a constant prediction would have, from the gradient that a loss sends to the network's output.

The gradient of a mean squared error over ``n`` outputs is ``2 (output - target) / n``, that of a binary cross-entropy
``(sigmoid(output) - target) / n``. So each tells the targets, in any kind of loop, after the graph is gone, and however
the loss was written. A loss of another kind is told by its value, which is then not that of these targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from gradwatch.plain_values import of_type
from gradwatch.probe.norms import is_plain

CONSTANT_SUMS = ("squared", "spread", "binary", "entropy")  # the numbers that are read, in this order
MOST_ENTRIES = 1 << 17  # of an output, which take some 10 ms: larger ones are images, or words over a vocabulary
_MIN_SAMPLES = 8  # with fewer, a batch says little of how much the targets differ
_NO_LABEL = 0.01  # a target further from 0 and 1 is none of a binary cross-entropy
# Relative. A penalty, a weight of classes or a smoothing of labels changes a loss by more; half precision by less.
_SAME = 1e-2
_ROUNDING = 1e-10  # of the square of a target: targets that differ by less than 1e-5 of it are equal
_FIRST, _EVERY = 16, 16  # measured steps that are read: the first ones, and one of so many later


def read_constant(output: Tensor, grad: Tensor) -> Tensor | None:
    """Return the squared error, that of a constant, the binary cross-entropy, and that of a constant; on the device.

    A constant prediction has one value for each column: the mean over the samples of the batch. Its error is what the
    targets would give in the mean over many batches, so without the part by which a mean of few samples fits them.

    Args:
        output: of the network, of shape ``(samples, ...)``.
        grad: the gradient of the loss there.

    Returns:
        Four numbers; None where there are too few samples or too many entries.

    Example:
        >>> output, target = torch.zeros(8, 1, requires_grad=True), torch.tensor([[1.0], [3.0]] * 4)
        >>> loss = torch.nn.functional.mse_loss(output, target)
        >>> read_constant(output, *torch.autograd.grad(loss, output))[:2]
        tensor([5.0000, 1.1429])
    """
    samples, entries = len(output) if output.dim() else 0, output.numel()
    if samples < _MIN_SAMPLES or entries > MOST_ENTRIES:
        return None
    given = output.detach().reshape(samples, -1).float()
    slope = grad.detach().reshape(samples, -1).float() * entries
    squared = (slope / 2).square().mean()
    target = given - slope / 2
    spread = target.var(0).mean()
    spread = torch.where(spread > _ROUNDING * target.square().mean(), spread, 0.0)
    return torch.stack((squared, spread, *_binary(given, slope)))


def _binary(given: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return the binary cross-entropy, and that of the labels' shares; infinite where the targets are no labels."""
    share = given.clamp(0.0, 1.0)
    of_logits, of_shares = given.sigmoid() - slope, share - slope * share * (1.0 - share)
    off_logits, off_shares = (_off(labels) for labels in (of_logits, of_shares))
    is_share = off_shares < off_logits  # the network ends in a Sigmoid of its own
    labels = torch.where(is_share, of_shares, of_logits).round().clamp(0.0, 1.0)
    logits = torch.where(is_share, share.logit(1e-7), given)
    off = torch.where(torch.minimum(off_shares, off_logits) > _NO_LABEL, math.inf, 0.0)
    mean = labels.mean(0)
    # A few samples seem to be more of one label than they are: the correction is that of Miller, 1955.
    few = ((mean > 0) & (mean < 1)).float() / (2 * len(labels))
    entropies = few - torch.xlogy(mean, mean) - torch.xlogy(1.0 - mean, 1.0 - mean)
    entropy = entropies.clamp(max=math.log(2)).mean()  # torch's function of it ends a CUDA process at a NaN
    return functional.binary_cross_entropy_with_logits(logits, labels) + off, entropy + off


def _off(labels: Tensor) -> Tensor:
    return torch.minimum(labels.abs(), (labels - 1.0).abs()).max()


class ConstantReader:
    """Holds the last output until the first gradient of the step comes, and reads both, in some of the steps.

    Where no loss of the first steps was one of the two kinds, it reads no more.

    Attributes:
        numbers: those of :func:`read_constant` for this step; None where there are none.
        is_open: no gradient of a step that is read has come yet.
    """

    def __init__(self) -> None:
        self.numbers: Tensor | None = None
        self._output: tuple[int, Tensor] | None = None
        self._steps = self._known = 0
        self.is_open = False

    def begin(self) -> None:
        """Begin a measured step."""
        self.end()
        self.is_open = self._steps < _FIRST or (self._known > 0 and self._steps % _EVERY == 0)
        self._steps += 1

    def end(self) -> None:
        """Drop what is held."""
        self.numbers, self._output, self.is_open = None, None, False

    def note(self, edge: int, output: Tensor) -> None:
        """Hold the output of a call, which may be the last one."""
        if self.is_open:
            self._output = edge, output.detach()

    def receive(self, edge: int, grad: Tensor) -> None:
        """Read the first gradient, where it is that of the last output."""
        self.is_open, held, self._output = False, self._output, None
        if held is None or held[0] != edge or not _is_usual(grad) or held[1].shape != grad.shape:
            return
        with torch.no_grad():
            self.numbers = read_constant(held[1], grad)

    def state_dict(self) -> list[int]:
        """Return what a checkpoint needs: a run that goes on reads the steps that it would have read."""
        return [self._steps, self._known]

    def load_state_dict(self, state: Sequence[int]) -> None:
        """Go on from such a state."""
        self._steps, self._known = (of_type(int, value) for value in state)

    def learn(self, constant: float) -> None:
        """Take in what came of a step's numbers."""
        self._known += not math.isnan(constant)


def _is_usual(grad: Tensor) -> bool:
    return type(grad) is Tensor and is_plain(grad) and grad.is_floating_point()


def constant_loss(numbers: Sequence[float], loss: float) -> float:
    """Return the loss of a constant prediction, where the loss is one of these two; NaN where not.

    Example:
        >>> constant_loss([5.0, 1.14, math.inf, math.inf], 5.0), constant_loss([5.0, 1.14, 0.7, 0.69], 2.0)
        (1.14, nan)
    """
    squared, spread, binary, entropy = numbers
    known = spread if math.isclose(squared, loss, rel_tol=_SAME) else math.nan
    if math.isclose(binary, loss, rel_tol=_SAME):
        known = entropy
    return known if 0 < known < math.inf else math.nan  # equal targets: any constant may be right

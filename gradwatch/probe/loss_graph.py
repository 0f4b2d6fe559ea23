"""The end of autograd's graph, next to the loss: shapes that were broadcast, classes, and the last activation."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradwatch.probe.output_range import DISTANCES, Reach, node_name, read_reach
from gradwatch.torch_internals import output_shape, saved

_MOST_NODES = 256  # a loss of many terms has some dozens
# Names of autograd's nodes, without "Backward0". Between a loss and the difference that it is made of stand only
# functions of single entries, and means and sums. Others (Exp, LogSumExp, Amin, Topk) compare all with all on purpose:
# a distance matrix, a kernel, a softmax over pairs, a Chamfer distance.
_BETWEEN = (
    "Mean", "Sum", "Div", "Mul", "Add", "Sub", "Neg", "Sqrt", "Pow", "Abs", "Squeeze", "View", "UnsafeView", "Reshape",
    "Alias", "Clone", "ToCopy", "Stack", "Cat", "Unsqueeze", "Select", "Rsub", "Log", "Cosh", "Log1P", "Nansum",
    "Nanmean", "LinalgVectorNorm", "Norm", *DISTANCES,
)  # fmt: skip
_MEAN = 1  # torch's number of a reduction by the mean
_ON_PURPOSE = ("Unsqueeze", "View", "UnsafeView", "Reshape", "Expand", "AccumulateGrad")


@dataclass(frozen=True)
class LossEnd:
    """The end of the graph of a loss.

    Attributes:
        broadcast: the shapes that were broadcast against each other, in words, with N for the size of the batch: so
            processes with batches of other sizes say the same. Empty where none were.
        classes: of a mean cross-entropy over classes; NaN where the loss is another, or has other terms.
        reach: the network's last activation in front of a squared error; None for another end.
    """

    broadcast: str = ""
    classes: float = math.nan
    reach: Reach | None = None


def read_end(loss: Tensor, divisor: int = 1, *, with_reach: bool = False) -> LossEnd:
    """Read the graph of a loss. Before its backward pass more is known than after it; the reach costs some operations.

    Lightning divides each loss by the number of accumulated batches, also by 1: this last division is passed over.

    Example:
        >>> import torch
        >>> output, target = torch.nn.Linear(2, 1)(torch.ones(8, 2)), torch.ones(8)
        >>> read_end((output - target).square().mean()).broadcast
        '(N, 1) and (N,) to (N, N)'
        >>> read_end((output.squeeze(1) - target).square().mean()).broadcast
        ''
        >>> entropy = torch.nn.functional.cross_entropy(output.expand(8, 3), torch.zeros(8).long())
        >>> read_end(entropy).classes, read_end(entropy / 4, 4).classes, read_end(entropy / 4).classes
        (3.0, 3.0, nan)
    """
    broadcast = next((shapes for node in _nodes_near(loss.grad_fn) for shapes in _broadcasts(node)), "")
    return LossEnd(broadcast, _classes(_undivided(loss.grad_fn, divisor)), read_reach(loss) if with_reach else None)


def _nodes_near(start: Any) -> Iterator[Any]:
    """Yield the nodes from the loss back to the first that is no part of a loss, those included."""
    waiting, seen = deque([start]), {start}
    while waiting and len(seen) < _MOST_NODES:
        node = waiting.popleft()
        if node is None:
            continue
        yield node
        if node_name(node) not in _BETWEEN or not _weighs_alike(node):
            continue
        following = [parent for parent, _ in node.next_functions if parent not in seen]
        seen.update(following)
        waiting += following


def _weighs_alike(node: Any) -> bool:
    """Return False for a product with a matrix of weights, one for each pair: who has such a matrix means the pairs."""
    if node_name(node) not in ("Mul", "Div") or all(parent is not None for parent, _ in node.next_functions):
        return True
    if output_shape(node, 0) == ():
        return True
    kept = [each for each in (saved(node, "self"), saved(node, "other")) if each is not None]
    known = kept[0] if len(kept) == 1 else None  # of a product only the factor without a gradient is kept
    return known is not None and sum(size > 1 for size in known.shape) < 2


def _broadcasts(node: Any) -> Iterator[str]:
    """Yield the shapes of an output and of something without a gradient, where each meets all of the other."""
    name = node_name(node)
    if name not in ("Sub", "Rsub", "Mul", *DISTANCES) or len(node.next_functions) > 2:
        return
    given = [(parent, number) for parent, number in node.next_functions if parent is not None]
    if len(given) != 1:  # both have a gradient: pairs of outputs are compared
        return
    parent, number = given[0]
    to = _shape_with(name, node)
    if node_name(parent) == "Expand":  # a loss function of torch's, which expands both
        to, (parent, number) = output_shape(parent, number), parent.next_functions[0]
    if parent is None or to is None or node_name(parent) in _ON_PURPOSE:
        return
    shape = output_shape(parent, number)
    if shape is None or not _meets_all(shape, to):
        return
    other = _other_shape(name, node, shape, to)
    if other is not None:
        yield f"{_in_words(shape, shape[0])} and {_in_words(other, shape[0])} to {_in_words(to, shape[0])}"


def _in_words(shape: Sequence[int], samples: int) -> str:
    """Return a shape as text, with N for the samples.

    Example:
        >>> _in_words((64, 1), 64), _in_words((64,), 64)
        ('(N, 1)', '(N,)')
    """
    sizes = ", ".join("N" if size == samples else str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def _shape_with(name: str, node: Any) -> tuple[int, ...] | None:
    return None if name in DISTANCES else output_shape(node, 0)


def _meets_all(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Return True if the first dimension, the samples, was brought together with another of the same length.

    Example:
        >>> _meets_all((8, 1), (8, 8)), _meets_all((8,), (8, 8)), _meets_all((8, 1), (8, 5)), _meets_all((8, 3), (8, 3))
        (True, True, False, False)
    """
    samples = shape[0] if shape else 0
    padded = (1,) * (len(to) - len(shape)) + tuple(shape)
    grown = [size for own, size in zip(padded, to, strict=True) if own == 1 and size > 1]
    return samples > 1 and grown == [samples]


def _other_shape(name: str, node: Any, shape: Sequence[int], to: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of the other operand; None where it is no row against a column."""
    missing = (shape[0],) if len(to) == 2 and len(shape) == 2 else (to[0], *(1 for _ in to[1:]))
    if len(to) > 2:
        missing = to[1:]
    if name == "Mul":
        known = saved(node, "other") if node.next_functions[0][0] is not None else saved(node, "self")
        if known is None or math.prod(known.shape) * shape[0] > math.prod(to):
            return None
        return tuple(known.shape)
    if name in DISTANCES:
        target = saved(node, "target")
        if target is not None and 0 not in target.stride():
            return tuple(target.shape)  # it was made of such shapes itself, as a target of temporal differences may be
    return missing


def _undivided(node: Any, divisor: int) -> Any:
    """Return the node in front of a division by this number; the node itself where it is none."""
    other = saved(node, "other") if node is not None and node_name(node) == "Div" else None
    if not isinstance(other, Tensor) or other.dim() or other.device.type != "cpu":
        return node
    return node.next_functions[0][0] if other.numpy() == divisor else node  # on the host, so nothing is waited for


def _classes(node: Any) -> float:
    """Return the number of classes of a cross-entropy, whose value says what ln C means only where it is a mean."""
    if node is None or node_name(node) not in ("NllLoss", "NllLoss2D") or saved(node, "reduction") != _MEAN:
        return math.nan
    parent, number = node.next_functions[0]
    shape = None if parent is None or node_name(parent) != "LogSoftmax" else output_shape(parent, number)
    return float(shape[1]) if shape is not None and len(shape) > 1 and shape[1] > 1 else math.nan

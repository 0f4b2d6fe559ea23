"""The end of a network: the functions between its last layer and the loss, read from autograd's graph."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradwatch.probe.loss_graph import read_end
from gradwatch.probe.output_range import DISTANCES, bounded_before, given, node_name
from gradwatch.torch_internals import saved

# Names of autograd's nodes, without "Backward0". A search from the loss back ends at layers with weights.
_LAYERS = ("Addmm", "Mm", "Bmm", "Convolution", "Linear", "Embedding", "NativeBatchNorm", "NativeLayerNorm", "Mkldnn")
_EXPECT_LOGITS = {
    "LogSoftmax": ("Softmax", "Sigmoid"),
    "NllLoss": ("Softmax",),
    "NllLoss2D": ("Softmax",),
    "BinaryCrossEntropyWithLogits": ("Sigmoid", "Softmax"),
}


@dataclass(frozen=True)
class Head:
    """The end of a network.

    Attributes:
        over_one: a softmax over a single unit, whose output is 1 whatever the weights are.
        twice: the activation whose probabilities go where logits are expected, and the function that gets them.
        distance: the output and the target of a loss that measures a distance.
        binary: the targets of a binary cross-entropy.
        bounded: for an activation in front of such a distance, its name and the share of the targets out of its range.
        surprise: the value of a cross-entropy over classes, and the number of classes.
        broadcast: the shapes of output and target that were broadcast against each other; empty where none were.
        chance: the loss of a constant prediction, where the loss is a cross-entropy or a squared error and nothing
            else: ln C, or the variance of the targets; NaN elsewhere.
    """

    over_one: bool = False
    twice: tuple[str, str] | None = None
    distance: tuple[Tensor, Tensor] | None = None
    binary: Tensor | None = None
    bounded: tuple[str, float] | None = None
    surprise: tuple[float, int] | None = None
    broadcast: str = ""
    chance: float = math.nan


def read_head(loss: Tensor) -> Head:
    """Read the graph from the loss back to the last layer. Call it before the backward pass, which frees the graph."""
    nodes = list(_nodes(loss.grad_fn))
    distances = [(saved(node, "self"), saved(node, "target")) for node in nodes if node_name(node) in DISTANCES]
    binary = [saved(node, "target") for node in nodes if node_name(node).startswith("BinaryCrossEntropy")]
    surprise = next((pair for node in nodes if node_name(node) == "NllLoss" for pair in _surprise(node)), None)
    squared = next(((a, b) for a, b in distances if a is not None and b is not None), None)
    return Head(
        over_one=any(_is_over_one(node) for node in nodes),
        twice=next((pair for node in nodes for pair in _twice(node)), None),
        distance=squared,
        binary=next((target for target in binary if target is not None), None),
        bounded=next((pair for node in nodes if node_name(node) in DISTANCES for pair in _bounded(node)), None),
        surprise=surprise,
        broadcast=read_end(loss).broadcast,
        chance=_chance(float(loss.detach()), surprise, squared) if loss.numel() == 1 else math.nan,
    )


_SAME = 1e-4  # relative: a penalty, a weight of classes or a smoothing of labels changes the loss by more
_MIN_TARGETS = 16  # with fewer, the variance of one batch is not that of the data


def _chance(loss: float, surprise: tuple[float, int] | None, squared: tuple[Tensor, Tensor] | None) -> float:
    if surprise is not None and math.isclose(loss, surprise[0], rel_tol=_SAME):
        return math.log(surprise[1])
    if squared is None or squared[0].shape != squared[1].shape or len(squared[1].shape) == 0:
        return math.nan
    output, target = (values.detach().double() for values in squared)
    if len(target) < _MIN_TARGETS or not math.isclose(loss, float((output - target).square().mean()), rel_tol=_SAME):
        return math.nan
    return float((target - target.mean(0)).square().mean())


def _nodes(start: Any, end: tuple[str, ...] = _LAYERS) -> Iterator[Any]:
    """Yield the nodes from the loss back to the nearest layers, each once."""
    waiting, seen = deque([start]), {start}
    while waiting:
        node = waiting.popleft()
        if node is None or node_name(node) in end:
            continue
        yield node
        following = [parent for parent, _ in node.next_functions if parent not in seen]
        seen.update(following)
        waiting += following


def _is_over_one(node: Any) -> bool:
    if node_name(node) not in ("Softmax", "LogSoftmax"):
        return False
    dim, result = saved(node, "dim"), saved(node, "result")
    if dim is None or result is None:
        return False
    return bool(result.shape[dim - 2**64 if dim >= 2**63 else dim] == 1)  # autograd keeps it unsigned: -1 is 2**64 - 1


def _twice(node: Any) -> Iterator[tuple[str, str]]:
    for parent in given(node):
        if node_name(parent) in _EXPECT_LOGITS.get(node_name(node), ()):
            yield node_name(parent), node_name(node)


def _bounded(node: Any) -> Iterator[tuple[str, float]]:
    for reach in bounded_before(node):
        yield reach.activation, float(reach.numbers[0])


def _surprise(node: Any) -> Iterator[tuple[float, int]]:
    logs, target = saved(node, "self"), saved(node, "target")
    if logs is None or target is None or logs.dim() != 2:
        return
    counted = (target >= 0) & (target < logs.shape[1])  # ignore_index is -100
    if counted.any():
        of_targets = logs.detach()[counted].gather(1, target[counted, None])
        yield -float(of_targets.mean()), logs.shape[1]


def params_of(loss: Tensor) -> Iterator[nn.Parameter]:
    """Yield the parameters that a loss depends on, whichever module has them."""
    for node in _nodes(loss.grad_fn, ()):
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            yield variable

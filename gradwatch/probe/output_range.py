"""The values that the last activation of a network can give, beside the targets that its loss compares them with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwatch.torch_internals import saved

# Names of autograd's nodes, without "Backward0".
DISTANCES = ("MseLoss", "SmoothL1Loss", "HuberLoss")
RESHAPES = (
    "Alias", "Clone", "Expand", "Permute", "Reshape", "Select", "Slice", "Squeeze", "T", "ToCopy", "Transpose",
    "UnsafeView", "Unsqueeze", "View",
)  # fmt: skip
_INF = float("inf")
RANGES = {
    "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Relu": (0.0, _INF), "Softplus": (0.0, _INF),
    "Exp": (0.0, _INF), "Hardsigmoid": (0.0, 1.0),
}  # fmt: skip
_MOST_NODES = 64  # between a loss of several terms and its distances
_COMBINES = ("Add", "Mean", "Mul", "Div", "Sum", "Squeeze", "View", "Stack", "Alias")


@dataclass(frozen=True)
class Reach:
    """The end of a network in front of a distance.

    Attributes:
        activation: name of the last activation, such as ``Sigmoid``.
        numbers: the share of the targets that it cannot give, and the mean square of how far they are beyond its
            range, as a vector on the device.
    """

    activation: str
    numbers: Tensor


def read_reach(loss: Tensor) -> Reach | None:
    """Read the end of the network from the graph of a squared error, before its backward pass; None for another end.

    Example:
        >>> output = torch.nn.Linear(1, 1)(torch.ones(4, 1)).sigmoid()
        >>> read_reach(torch.nn.functional.mse_loss(output, torch.tensor([[0.5], [3.0], [-1.0], [1.0]])))
        Reach(activation='Sigmoid', numbers=tensor([0.5000, 1.2500]))
    """
    waiting, seen = [loss.grad_fn], 0
    while waiting and seen < _MOST_NODES:
        node, seen = waiting.pop(0), seen + 1
        if node is None:
            continue
        if node_name(node) == "MseLoss":
            return next(bounded_before(node), None)
        if node_name(node) in _COMBINES:
            waiting += [parent for parent, _ in node.next_functions]
    return None


def bounded_before(node: Any) -> Iterator[Reach]:
    """Yield the reach of an activation whose output a distance gets."""
    for parent in given(node):
        target = saved(node, "target")
        if node_name(parent) in RANGES and target is not None:
            low, high = RANGES[node_name(parent)]
            beyond = (target.detach() - target.detach().clamp(low, high)).float()
            yield Reach(node_name(parent), torch.stack([(beyond != 0).float().mean(), beyond.square().mean()]))


def given(node: Any) -> Iterator[Any]:
    """Yield the nodes whose outputs a node gets, past reshapes."""
    for parent, _ in node.next_functions:
        while parent is not None and node_name(parent) in RESHAPES:
            parent = parent.next_functions[0][0]
        if parent is not None:
            yield parent


def node_name(node: Any) -> str:
    """Return the name of an autograd node without its namespace and its ending."""
    return str(node.name()).rpartition(":")[2].partition("Backward")[0]

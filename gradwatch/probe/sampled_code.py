"""The layers that give the mean and the deviation of a sampled code, as in a variational autoencoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from gradwatch.probe.output_range import node_name

_MOST_NODES = 4096  # of a loss that are looked at, once a run: some 10 ms
_MOST_FUNCTIONS = 16  # kinds, from a sum back to the layers: slices, a clamp, a factor of 1/2, an exp
_POSITIVE = ("Exp", "Softplus", "Sqrt")  # what makes a deviation of a layer's output

Layers = tuple[str, ...]


def code_layers(loss_node: Any, layer_of: Callable[[Any], str | None]) -> Layers:
    """Return the layers that give a code's mean and deviation; one layer where it gives both, none without a code.

    A code is a sum of a layer's output, the mean, and of a product of noise with a positive function of such an output.
    The mean goes a second way to the loss, which is its divergence; the shift of an affine coupling does not.

    Args:
        loss_node: the loss's place in autograd's graph.
        layer_of: returns the layer whose output a node computes, or None.

    References:
        D. P. Kingma, M. Welling, Auto-encoding variational Bayes, ICLR 2014, for the sum.
    """
    ways: dict[tuple[Any, int], int] = {}
    codes = []
    for node in _nodes(loss_node):
        for place in node.next_functions:
            ways[place] = ways.get(place, 0) + 1
        if node_name(node) in ("Add", "Addcmul"):
            codes.append(node)
    for node in codes:
        for mean, noise in _as_code(node):
            of_mean, _ = _layer_behind(mean[0], layer_of)
            of_deviation, functions = _layer_behind(noise, layer_of)
            if functions.isdisjoint(_POSITIVE):
                continue
            if ways.get(mean, 0) > 1 and of_mean and of_deviation:
                return tuple(dict.fromkeys((of_mean, of_deviation)))
    return ()


def _nodes(start: Any) -> Iterator[Any]:
    waiting, seen = deque([start]), {start}
    while waiting and len(seen) < _MOST_NODES:
        node = waiting.popleft()
        yield node
        following = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= following
        waiting += following


def _as_code(node: Any) -> Iterator[tuple[tuple[Any, int], Any]]:
    """Yield the place of the mean, and the node of the deviation, where a sum may be a code."""
    given = [place for place in node.next_functions if place[0] is not None]
    if node_name(node) == "Addcmul":
        if len(given) == 2 and node.next_functions[0][0] is not None:  # noise has no gradient
            yield given[0], given[1][0]
        return
    if len(given) != 2:
        return
    for mean, product in (given, given[::-1]):
        factors = [parent for parent, _ in product[0].next_functions]
        if node_name(product[0]) == "Mul" and sum(factor is None for factor in factors) == 1:
            yield mean, next(factor for factor in factors if factor is not None)


def _layer_behind(node: Any, layer_of: Callable[[Any], str | None]) -> tuple[str | None, set[str]]:
    """Return the layer from whose output functions of one argument make this, and the names of these functions."""
    functions: set[str] = set()
    while node is not None and len(functions) < _MOST_FUNCTIONS:
        layer = layer_of(node)
        if layer is not None:
            return layer, functions
        functions.add(node_name(node))
        given = [parent for parent, _ in node.next_functions if parent is not None]
        node = given[0] if len(given) == 1 else None
    return None, functions

"""What the hooks hand over: the tensors of a call, and who called what and got which gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a module's input or output: a tensor, or tuples, lists, mappings and dataclasses of them.

    Example:
        >>> import torch
        >>> len(list(tensors_in({"logits": torch.zeros(1), "states": (torch.zeros(1), None)})))
        2
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):  # after the others: to ask an abstract class costs more than they do
        for item in value.values():
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


class Graph:
    """What the hooks saw, as flat lists: thousands of small objects a step would cost more than the hooks.

    Attributes:
        sizes: entries of each edge; an edge is one tensor of the graph.
        arrivals: the edge of each gradient, in the order they came; the i-th one's norm is in slot ``slots[i]``.
        slots: see ``arrivals``.
        layers: the layer of each call.
        passes: the forward pass of each call.
        inputs, outputs: pairs of a call and an edge.
        first_call: layer -> its place in the order of first calls.
        norms: layer, entries and norm (a device scalar) of the output, for each call.
        saturated: layer and share of saturated outputs (a device scalar), for each call of a bounded activation.
        shares, arrival_shares, norm_shares: how much each edge, arrival and norm counts where other ranks, which share
            the batch, hold copies of it; empty where nobody does.
        inputs_given: entries and norm (a device scalar) of the floating tensors that the first call was given.
        dtype: the half precision that a layer put out last; empty where none did.
        cut_by_unit: layers of whose units this process holds only some.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.arrivals: list[int] = []
        self.slots: list[int] = []
        self.layers: list[str] = []
        self.passes: list[int] = []
        self.inputs: list[tuple[int, int]] = []
        self.outputs: list[tuple[int, int]] = []
        self.first_call: dict[str, int] = {}
        self.norms: list[tuple[str, int, Tensor]] = []
        self.saturated: list[tuple[str, Tensor]] = []
        self.shares: list[float] = []
        self.arrival_shares: list[float] = []
        self.norm_shares: list[float] = []
        self.inputs_given: list[tuple[int, Tensor]] = []
        self.dtype = ""
        self.cut_by_unit: set[str] = set()

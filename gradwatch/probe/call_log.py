"""The log of one measured step's layer calls and gradients, and the tensors of a call."""

from __future__ import annotations

from collections import UserDict
from types import MemberDescriptorType
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a module's input or output: a tensor, or tuples, lists, dicts and dataclasses of them.

    Containers are read past what their classes override, so no user code runs. One that holds itself is read once.
    Other containers (a generator, a mapping that computes its values) are skipped.

    Example:
        >>> import torch
        >>> len(tensors_in({"logits": torch.zeros(1), "states": (torch.zeros(1), None)}))
        2
    """
    found: list[Tensor] = []
    opened: dict[int, Any] = {}  # by id; a container that is held here keeps its id
    waiting = [value]
    while waiting:
        item = waiting.pop()
        # Not isinstance: an object may have a __class__ that lies or raises.
        if issubclass(type(item), Tensor):
            found.append(item)
        elif id(item) not in opened and (parts := _parts(item)):
            opened[id(item)] = item
            waiting += reversed(parts)
    return found


def _parts(container: Any) -> list[Any]:
    kind = type(container)
    if issubclass(kind, tuple):
        return [*tuple.__iter__(container)]
    if issubclass(kind, list):
        return [*list.__iter__(container)]
    if issubclass(kind, dict):
        return [*dict.values(container)]
    if issubclass(kind, UserDict):
        return [_field(container, "data")]
    return [_field(container, name) for name in getattr(kind, "__dataclass_fields__", ())]


def _field(owner: Any, name: str) -> Any:
    """Return an attribute of an object, without running a property; None where it has none."""
    try:
        held = object.__getattribute__(owner, "__dict__")
        return dict.get(held, name)
    except (AttributeError, TypeError):  # the class has slots
        slot = getattr(type(owner), name, None)
        return slot.__get__(owner) if isinstance(slot, MemberDescriptorType) and _is_set(slot, owner) else None


def _is_set(slot: MemberDescriptorType, owner: Any) -> bool:
    try:
        slot.__get__(owner)
    except AttributeError:
        return False
    return True


class CallLog:
    """The calls and gradients of one measured step, in flat lists: many small objects would cost more than the hooks.

    An *edge* is the number of a tensor in autograd's graph. A *slot* is the number of a scalar that waits in
    :class:`~gradwatch.probe.scalars.DeviceScalars` to be sent to the host.

    Attributes:
        sizes: entries of each edge.
        arrivals: the edge of each gradient, in the order they came.
        slots: the slot of the norm of each arrival.
        of_loss: for each arrival, if it came in the backward pass of the loss; all False where the loss is not known.
        layers: the layer of each call.
        passes: the forward pass of each call, counted from 0.
        inputs, outputs: pairs of a call and an edge.
        norms: call, entries and norm (a device scalar) of its output.
        saturated: place in ``norms``, and the share of saturated outputs (a device scalar) of a bounded activation.
        peaks: call, largest output of each unit, and number of samples, of a ReLU.
        shares, arrival_shares, norm_shares: weight of each edge, arrival and norm in a sum over all ranks, where ranks
            that share a batch hold copies; empty where none do.
        inputs_given: call, entries and norm (a device scalar) of the floating tensors that the first layer was given.
        dtype: half precision of the last output that had one; empty where none had.
        cut_by_unit: layers of which this process holds only some units.
        unwatched: layers whose hooks failed.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.arrivals: list[int] = []
        self.slots: list[int] = []
        self.of_loss: list[bool] = []
        self.layers: list[str] = []
        self.passes: list[int] = []
        self.inputs: list[tuple[int, int]] = []
        self.outputs: list[tuple[int, int]] = []
        self.norms: list[tuple[int, int, Tensor]] = []
        self.saturated: list[tuple[int, Tensor]] = []
        self.peaks: list[tuple[int, Tensor, int]] = []
        self.shares: list[float] = []
        self.arrival_shares: list[float] = []
        self.norm_shares: list[float] = []
        self.inputs_given: list[tuple[int, int, Tensor]] = []
        self.dtype = ""
        self.cut_by_unit: set[str] = set()
        self.unwatched: set[str] = set()

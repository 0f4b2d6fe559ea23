"""What the hooks hand over: the tensors of a call, and who called what and got which gradient."""

from __future__ import annotations

from collections import UserDict
from types import MemberDescriptorType
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a module's input or output: a tensor, or tuples, lists, dicts and dataclasses of them.

    Containers are read past what their classes override, so no code of the user's runs; one that holds itself is read
    once. Other containers (a generator, a mapping that makes its values when it is asked) are passed over.

    Example:
        >>> import torch
        >>> len(tensors_in({"logits": torch.zeros(1), "states": (torch.zeros(1), None)}))
        2
    """
    found: list[Tensor] = []
    opened: dict[int, Any] = {}  # holds them, so that an id stays that of the same container
    waiting = [value]
    while waiting:
        item = waiting.pop()
        # By its type: an object may pretend to be of another class, or fail when it is asked for its own.
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
    """Return what an object holds under a name, without running a property; None where it holds nothing."""
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
    """What the hooks saw, as flat lists: thousands of small objects a step would cost more than the hooks.

    Attributes:
        sizes: entries of each edge; an edge is one tensor of the graph.
        arrivals: the edge of each gradient, in the order they came; the i-th one's norm is in slot ``slots[i]``.
        slots: see ``arrivals``.
        of_loss: for each arrival, if it came in the backward pass that is known to be that of the loss.
        layers: the layer of each call.
        passes: the forward pass of each call.
        inputs, outputs: pairs of a call and an edge.
        norms: call, entries and norm (a device scalar) of its output.
        saturated: places in ``norms``, and the share of saturated outputs (a device scalar) of a bounded activation.
        peaks: call, largest output of each unit, and number of samples, of a ReLU.
        shares, arrival_shares, norm_shares: how much each edge, arrival and norm counts where other ranks, which share
            the batch, hold copies of it; empty where nobody does.
        inputs_given: call, entries and norm (a device scalar) of the floating tensors that the first layer was given.
        dtype: the half precision that a layer put out last; empty where none did.
        cut_by_unit: layers of whose units this process holds only some.
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

"""Forward hooks that put a tensor hook on every layer's output, for the length of one measured step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.module_tracker import ModuleTracker

from gradwatch.probe.activations import UnitActivity, is_relu, saturated_share, saturation_of
from gradwatch.probe.norms import stored_values
from gradwatch.probe.scalars import DeviceScalars


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a module's input or output: a tensor, or tuples, lists, mappings and dataclasses of them.

    Example:
        >>> len(list(tensors_in({"logits": torch.zeros(1), "states": (torch.zeros(1), None)})))
        2
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


class Edge:
    """One tensor of the graph: its size, and the slots of the norms of the gradients that arrived at it."""

    __slots__ = ("numel", "slots")

    def __init__(self, numel: int) -> None:
        self.numel = numel
        self.slots: list[int] = []


@dataclasses.dataclass(slots=True)
class Call:
    """One call of a layer: the edges it read and those it made, and which forward pass it belongs to."""

    layer: str
    forward_pass: int
    inputs: list[Edge]
    outputs: list[Edge]


class LayerHooks:
    """Reads the gradient at every layer's output (and input) while attached; holds no graph once detached.

    A forward hook puts a tensor hook on the output, since full backward hooks break on in-place modules. A tensor is
    known by its place in the graph: an input that another layer put out gets no second hook, and an in-place ReLU's
    input is told from its output, though both are one Python object.

    Forward passes that belong to one optimizer step (accumulation) are told apart by their order: a forward call after
    a gradient came, outside a backward pass, begins a new one.

    Args:
        layers: name -> module.
        activity: takes the outputs of ReLUs.

    Attributes:
        calls: every call since the hooks were attached.
        first_call: layer -> its place in the order of first calls.
        forward_norms: layer, entries and norm (a device scalar) of the output, for each call.
        saturated: layer and share of saturated outputs (a device scalar), for each call of a bounded activation.

    Example:
        >>> model, scalars = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), DeviceScalars()
        >>> hooks = LayerHooks(dict(model.named_children()), UnitActivity())
        >>> hooks.attach(scalars)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> hooks.detach()
        >>> [(call.layer, len(call.outputs[0].slots)) for call in hooks.calls]
        [('0', 1), ('1', 1)]
    """

    def __init__(self, layers: Mapping[str, nn.Module], activity: UnitActivity) -> None:
        self._activity = activity
        self._hooks = [(module, self._after(name, module)) for name, module in layers.items()]
        self._pre_hooks = [(m, self._before(name)) for name, m in layers.items() if getattr(m, "inplace", False)]
        self._handles: list[RemovableHandle] = []
        self._edges: dict[tuple[Any, int], Edge] = {}
        self._inputs_before: dict[str, list[Edge]] = {}
        self._tracker = ModuleTracker()  # only asked whether a backward pass is running
        self._forget(DeviceScalars())

    def _forget(self, scalars: DeviceScalars) -> None:
        self.calls: list[Call] = []
        self.first_call: dict[str, int] = {}
        self.forward_norms: list[tuple[str, int, Tensor]] = []
        self.saturated: list[tuple[str, Tensor]] = []
        self._scalars = scalars
        self._forward_pass = 0
        self._gradients = scalars.count  # how many had come at the last forward call

    def attach(self, scalars: DeviceScalars) -> None:
        """Put the hooks in place and start anew; ``scalars`` takes the norms."""
        self.detach()
        self._forget(scalars)
        # An in-place module's input is its output by the time of the forward hook: it is looked at before.
        self._handles += [m.register_forward_pre_hook(hook, with_kwargs=True) for m, hook in self._pre_hooks]
        self._handles += [m.register_forward_hook(hook, with_kwargs=True) for m, hook in self._hooks]

    def detach(self) -> None:
        """Remove every hook and let go of the graph; the numbers stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._edges.clear()
        self._inputs_before.clear()

    def _before(self, name: str) -> Callable[..., None]:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._inputs_before[name] = self._edges_of((args, kwargs))

        return before

    def _after(self, name: str, module: nn.Module) -> Callable[..., None]:
        look = self._look(name, module)

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            outputs = self._edges_of(output)
            if not outputs:
                return
            self._note_forward_pass()
            inputs = self._inputs_before.pop(name, None)
            if inputs is None:
                inputs = self._edges_of((args, kwargs) if kwargs else args)
            if name not in self.first_call:
                self.first_call[name] = len(self.first_call)
            self.calls.append(Call(name, self._forward_pass, inputs, outputs))
            look(next(tensors_in(output)))

        return after

    def _note_forward_pass(self) -> None:
        if self._scalars.count != self._gradients and not self._tracker.is_bw:
            self._forward_pass += 1
            self._gradients = self._scalars.count

    def _look(self, name: str, module: nn.Module) -> Callable[[Tensor], None]:
        """What is read of the output: at once, not in a batch, since an in-place module may overwrite it next."""
        if is_relu(module):  # passes on what is non-finite, so the layer before it tells; its norm is left out
            return lambda output: self._activity.see(name, output.detach())
        saturation = saturation_of(module)

        def look(output: Tensor) -> None:
            values = stored_values(output)
            dtype = torch.float32 if values.itemsize < 4 else None
            self.forward_norms.append((name, values.numel(), torch.linalg.vector_norm(values, dtype=dtype)))
            if saturation is not None:
                self.saturated.append((name, saturated_share(saturation, values)))

        return look

    def _edges_of(self, value: Any) -> list[Edge]:
        if type(value) is tuple and len(value) == 1:
            value = value[0]
        if isinstance(value, Tensor):  # nearly always: the general way costs three times as much
            return [self._edge(value)] if value.requires_grad else []
        return [self._edge(tensor) for tensor in tensors_in(value) if tensor.requires_grad]

    def _edge(self, tensor: Tensor) -> Edge:
        # A leaf (a parameter that is fed in, an input that requires a gradient) has no node; it is its own key.
        node = tensor.grad_fn
        key = (tensor, 0) if node is None else (node, tensor.output_nr)
        edge = self._edges.get(key)
        if edge is None:
            edge = self._edges[key] = Edge(tensor.numel())
            self._listen(tensor, edge.slots)
        return edge

    def _listen(self, tensor: Tensor, slots: list[int]) -> None:
        norm = self._scalars.norm

        def on_gradient(grad: Tensor) -> None:
            slots.append(norm(grad))

        handle: RemovableHandle = tensor.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        if tensor.grad_fn is None:  # a leaf outlives the step, and a hook on it would too
            self._handles.append(handle)

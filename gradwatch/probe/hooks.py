"""Forward hooks that put a tensor hook on every layer's output, for the length of one measured step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.module_tracker import ModuleTracker

from gradwatch.probe.activations import UnitActivity, saturated_share
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
    """One tensor of the graph: the slots of the norms of the gradients that arrived at it."""

    __slots__ = ("arrival", "numel", "slots")

    def __init__(self, numel: int) -> None:
        self.numel = numel
        self.slots: list[int] = []
        self.arrival = -1


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
        scalars: takes the norms.
        activity: takes the outputs of ReLUs.

    Example:
        >>> model, scalars = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), DeviceScalars()
        >>> with LayerHooks(dict(model.named_children()), scalars, UnitActivity()) as hooks:
        ...     model(torch.ones(1, 2)).sum().backward()
        >>> [(call.layer, len(call.outputs[0].slots)) for call in hooks.calls]
        [('0', 1), ('1', 1)]
    """

    def __init__(self, layers: Mapping[str, nn.Module], scalars: DeviceScalars, activity: UnitActivity) -> None:
        self.calls: list[Call] = []
        self.first_call: dict[str, int] = {}
        self.forward_norms: list[tuple[str, int, Tensor]] = []
        self.saturated: list[tuple[str, Tensor]] = []
        self._scalars = scalars
        self._activity = activity
        self._edges: dict[tuple[Any, int], Edge] = {}
        self._early_inputs: dict[str, list[Edge]] = {}
        self._handles: list[RemovableHandle] = []
        self._forward_pass = 0
        self._arrivals = 0
        self._gradient_came = False
        self._tracker = ModuleTracker()  # only asked whether a backward pass is running
        for name, module in layers.items():
            self._attach(name, module)

    def __enter__(self) -> LayerHooks:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _attach(self, name: str, module: nn.Module) -> None:
        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._after_forward(name, module, args if not kwargs else (args, kwargs), output)

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._early_inputs[name] = self._edges_of((args, kwargs))

        if getattr(module, "inplace", False):  # by the time of the forward hook its input is its output
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after, with_kwargs=True))

    def _after_forward(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
        if not outputs:
            return
        if self._gradient_came and not self._tracker.is_bw:
            self._forward_pass += 1
            self._gradient_came = False
        self.first_call.setdefault(name, len(self.first_call))
        before = self._early_inputs.pop(name, None)
        edges = self._edges_of(inputs) if before is None else before
        self.calls.append(Call(name, self._forward_pass, edges, [self._edge(tensor) for tensor in outputs]))
        self._look_forward(name, module, outputs[0].detach())

    def _look_forward(self, name: str, module: nn.Module, output: Tensor) -> None:
        # Read at once, not in a batch: an in-place module may overwrite it next.
        with torch.no_grad():
            dtype = torch.float32 if output.itemsize < 4 else None
            self.forward_norms.append((name, output.numel(), torch.linalg.vector_norm(output, dtype=dtype)))
            self._activity.see(name, module, output)
            share = saturated_share(module, output)
            if share is not None:
                self.saturated.append((name, share))

    def _edges_of(self, value: Any) -> list[Edge]:
        return [self._edge(tensor) for tensor in tensors_in(value) if tensor.requires_grad]

    def _edge(self, tensor: Tensor) -> Edge:
        # A leaf (a parameter that is fed in, an input that requires a gradient) has no node; it is its own key.
        node = tensor.grad_fn
        key = (tensor, 0) if node is None else (node, tensor.output_nr)
        edge = self._edges.get(key)
        if edge is None:
            edge = self._edges[key] = Edge(tensor.numel())
            self._listen(tensor, edge)
        return edge

    def _listen(self, tensor: Tensor, edge: Edge) -> None:
        def on_gradient(grad: Tensor) -> None:
            edge.slots.append(self._scalars.norm(grad))
            edge.arrival = self._arrivals
            self._arrivals += 1
            self._gradient_came = True

        handle = tensor.register_hook(on_gradient)
        if tensor.grad_fn is None:  # a leaf outlives the step, and a hook on it would too
            self._handles.append(handle)

    def detach(self) -> None:
        """Remove every hook and let go of the graph; the numbers stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._edges.clear()
        self._early_inputs.clear()

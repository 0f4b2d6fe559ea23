"""Forward hooks that put a tensor hook on every layer's output, for the length of one measured step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.module_tracker import ModuleTracker

from gradwatch.probe.activations import UnitActivity, is_relu, saturated_share, saturation_of
from gradwatch.probe.graph import Graph, tensors_in
from gradwatch.probe.norms import stored_values
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.shards import is_sharded

_TRACKER = ModuleTracker()  # only asked whether a backward pass is running; it can't be pickled, so nobody holds it

# These, like ReLUs, put out NaN and Inf where such came in, so that the layer before them tells. On ResNet-18 (32
# images of 32 x 32) their outputs are 75 MB, which need not be read.
_PASS_ON = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class ModuleHook(partial[None]):
    """A hook that does not follow its module: a copy of the module, pickled or deep, holds one that does nothing."""

    def __reduce__(self) -> Any:
        """What pickle and deepcopy take in its place."""
        return _nothing, ()


def _takes_over_inputs(module: nn.Module) -> bool:
    """Whether a hook in front of the module makes other tensors of its inputs, as FSDP2 and tensor parallelism do."""
    return any(map(is_sharded, module.parameters(recurse=False)))


def _nothing() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*_: Any) -> None:
    pass


class LayerHooks:
    """Reads the gradient at every layer's output (and input) while attached; holds no graph once detached.

    A forward hook puts a tensor hook on the output, since full backward hooks break on in-place modules. A tensor is
    known by its place in autograd's graph: an input that another layer put out gets no second hook, and an in-place
    ReLU's input is told from its output, though both are one Python object.

    Forward passes that belong to one optimizer step (accumulation) are told apart by their order: a forward call after
    a gradient came, outside a backward pass, begins a new one.

    Args:
        layers: name -> module.
        activity: takes the outputs of ReLUs.

    Attributes:
        graph: what was seen since the hooks were attached.

    Example:
        >>> model, scalars = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), DeviceScalars()
        >>> hooks = LayerHooks(dict(model.named_children()), UnitActivity())
        >>> hooks.attach(scalars)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> hooks.detach()
        >>> hooks.graph.layers, hooks.graph.arrivals
        (['0', '1'], [1, 0])
    """

    def __init__(self, layers: Mapping[str, nn.Module], activity: UnitActivity) -> None:
        self.graph = Graph()
        self._scalars = DeviceScalars()
        self._activity = activity
        self._hooks = [(m, ModuleHook(self._after, name, self._look(name, m))) for name, m in layers.items()]
        self._pre_hooks = [
            (module, ModuleHook(self._before, name), _takes_over_inputs(module))
            for name, module in layers.items()
            if getattr(module, "inplace", False) or _takes_over_inputs(module)
        ]
        self._handles: list[RemovableHandle] = []
        self._edges: dict[tuple[Any, int], int] = {}
        self._takers: list[partial[None]] = []  # what is called with the gradient of each edge, for all steps
        self._inputs_before: dict[str, Sequence[int]] = {}
        self._pass = 0
        self._arrived = 0  # how many gradients had come at the last forward call

    def attach(self, scalars: DeviceScalars) -> None:
        """Put the hooks in place and start anew; ``scalars`` takes the norms."""
        self.detach()
        self.graph, self._scalars = Graph(), scalars
        self._pass = self._arrived = 0
        # An in-place module's input is its output by the time of the forward hook: it is looked at before.
        self._handles += [
            module.register_forward_pre_hook(hook, prepend=first, with_kwargs=True)
            for module, hook, first in self._pre_hooks
        ]
        self._handles += [m.register_forward_hook(hook, with_kwargs=True) for m, hook in self._hooks]

    def detach(self) -> None:
        """Remove every hook and let go of autograd's graph; ``graph`` stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._edges.clear()
        self._inputs_before.clear()

    def forget(self) -> None:
        """Let go of what was seen: its scalars would wait on the device until the next measured step."""
        self.graph, self._scalars = Graph(), DeviceScalars()

    def _before(self, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            self._inputs_before[name] = self._edges_of((args, kwargs))

    def _after(
        self, name: str, look: Callable[[Tensor], None], _: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        if torch.compiler.is_compiling():  # in code that is being compiled the hook shall leave no trace
            return
        outputs = self._edges_of(output)
        if outputs:
            inputs = self._inputs_before.pop(name, None) if self._inputs_before else None
            if inputs is None:
                inputs = self._edges_of((args, kwargs) if kwargs else args[0] if len(args) == 1 else args)
            if not self.graph.layers:
                self._see_inputs((args, kwargs))
            self._note_call(name, inputs, outputs)
            look(output if isinstance(output, Tensor) else next(tensors_in(output)))

    def _see_inputs(self, given: Any) -> None:
        for tensor in tensors_in(given):
            if tensor.is_floating_point():
                values = stored_values(tensor)
                norm = torch.linalg.vector_norm(values, dtype=torch.float32 if values.itemsize < 4 else None)
                self.graph.inputs_given.append((values.numel(), norm))

    def _note_call(self, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        graph = self.graph
        if len(graph.arrivals) != self._arrived and not _TRACKER.is_bw:
            self._pass += 1
            self._arrived = len(graph.arrivals)
        call = len(graph.layers)
        graph.layers.append(name)
        graph.passes.append(self._pass)
        for edge in inputs:
            graph.inputs.append((call, edge))
        for edge in outputs:
            graph.outputs.append((call, edge))
        if name not in graph.first_call:
            graph.first_call[name] = len(graph.first_call)

    def _look(self, name: str, module: nn.Module) -> Callable[[Tensor], None]:
        """What is read of the output: at once, not in a batch, since an in-place module may overwrite it next."""
        if is_relu(module):
            return partial(self._activity.see, name)
        if isinstance(module, _PASS_ON):
            return _do_nothing
        saturation = saturation_of(module)

        def look(output: Tensor) -> None:
            values, graph = stored_values(output), self.graph
            dtype = None
            if values.itemsize < 4:
                dtype, graph.dtype = torch.float32, str(values.dtype).removeprefix("torch.")
            graph.norms.append((name, values.numel(), torch.linalg.vector_norm(values, dtype=dtype)))
            if saturation is not None:
                graph.saturated.append((name, saturated_share(saturation, values)))

        return look

    def _edges_of(self, value: Any) -> Sequence[int]:
        if isinstance(value, Tensor):  # nearly always: the general way costs three times as much
            return (self._edge(value),) if value.requires_grad else ()
        return [self._edge(tensor) for tensor in tensors_in(value) if tensor.requires_grad]

    def _edge(self, tensor: Tensor) -> int:
        # A leaf (a parameter that is fed in, an input that requires a gradient) has no node; it is its own key.
        node = tensor.grad_fn
        key = (tensor, 0) if node is None else (node, tensor.output_nr)
        edge = self._edges.get(key)
        if edge is None:
            sizes = self.graph.sizes
            edge = self._edges[key] = len(sizes)
            sizes.append(tensor.numel())
            if edge == len(self._takers):
                self._takers.append(partial(self._on_gradient, edge))
            handle: RemovableHandle = tensor.register_hook(self._takers[edge])  # type: ignore[no-untyped-call]
            if node is None:  # a leaf outlives the step, and a hook on it would too
                self._handles.append(handle)
        return edge

    def _on_gradient(self, edge: int, grad: Tensor | None) -> None:
        if grad is not None:  # None comes to one of several outputs (unbind, chunk) that the loss does not depend on
            self.graph.arrivals.append(edge)
            self.graph.slots.append(self._scalars.norm(grad))

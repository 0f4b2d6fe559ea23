"""Forward hooks that put a tensor hook on every layer's output, for the length of one measured step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwatch.containment import Containment
from gradwatch.layer_kinds import NORMALIZATIONS, runs_forward_of
from gradwatch.probe.call_log import CallLog, tensors_in
from gradwatch.probe.dead_units import is_relu, peaks_of, saturated_share, saturation_of
from gradwatch.probe.module_hooks import TRACKER, LossPass, TrainingThread, WatchingHook, add_hook, add_pre_hook
from gradwatch.probe.modules import is_scripted, own_parameters
from gradwatch.probe.norms import entry_count, is_plain, is_readable, stored_values
from gradwatch.probe.parameters import NONE
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.shards import is_sharded
from gradwatch.torch_internals import (
    dispatch_mode_count,
    function_mode_count,
    functorch_level,
    is_batched,
    past_dispatch_modes,
    past_torch_function,
)

# Calls of one step beyond which no further is noted: a loop that never steps an optimizer would fill the memory with
# their norms. A cell that is called 500 times in each of 100 batches stays below it.
_MOST_CALLS = 1 << 16
_INPUTS_A_PASS = 4  # of the first layer; more than others' calls of the model in one batch, as a rule


def _takes_over_inputs(module: nn.Module) -> bool:
    """Return True if a pre-hook replaces the module's inputs, as FSDP2 and tensor parallelism do."""
    return any(map(is_sharded, own_parameters(module).values()))


def _do_nothing(*_: Any) -> None:
    pass


class LayerHooks:
    """Reads the gradient at every layer's output (and input) while attached; holds no graph once detached.

    A forward hook puts a tensor hook on the output, since full backward hooks break on in-place modules. A tensor is
    known by its place in autograd's graph (an *edge*): an input that another layer put out gets no second hook, and an
    in-place ReLU's input is told from its output, though both are one Python object.

    Forward passes that belong to one optimizer step (accumulation) are told apart by their order: a forward call after
    a gradient came, outside a backward pass, begins a new one.

    Args:
        layers: name -> module.
        containment: switches off a layer whose hook fails.
        loss_pass: knows which backward pass is that of the loss.

    Attributes:
        graph: what was seen since the hooks were attached.

    Example:
        >>> model, scalars = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), DeviceScalars()
        >>> hooks = LayerHooks(dict(model.named_children()), Containment())
        >>> hooks.attach(scalars)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> hooks.detach()
        >>> hooks.graph.layers, hooks.graph.arrivals
        (['0', '1'], [1, 0])
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], containment: Containment, loss_pass: LossPass | None = None
    ) -> None:
        self.graph = CallLog()
        self._loss_pass = loss_pass or LossPass()
        self._scalars = DeviceScalars()
        self._containment = containment
        self.training = TrainingThread(self._is_idle)
        self._out: set[str] = set()
        hookable = {name: module for name, module in layers.items() if not is_scripted(module)}
        self._hooks = [
            (name, module, self._hook(name, self._after, self._look(name, module))) for name, module in hookable.items()
        ]
        self._pre_hooks = [
            (name, module, self._hook(name, self._before), _takes_over_inputs(module))
            for name, module in hookable.items()
            if module.__dict__.get("inplace", False) or _takes_over_inputs(module)
        ]
        self._handles: list[RemovableHandle] = []
        self._leaf_handles: list[RemovableHandle] = []
        self._leaves: dict[Tensor, int] = {}
        self._mark: object | None = None  # of the step under way; what comes to a hook of an earlier one is not counted
        self._inputs_before: dict[str, Sequence[int]] = {}
        self._pass = 0
        self._first: str | None = None  # the layer that is called first
        self._looks = 0
        self._arrived = 0  # how many gradients had come at the last forward call

    def _hook(self, name: str, function: Callable[..., None], *args: Any) -> WatchingHook:
        return WatchingHook.of(self.training, partial(self._fail, name), function, name, *args)

    def _is_idle(self) -> bool:
        return not self.graph.layers

    def _fail(self, name: str, error: Exception) -> None:
        self._out.add(name)
        self.graph.unwatched.add(name)
        self._containment.fail(f"layer {name}", error)

    def attach(self, scalars: DeviceScalars) -> None:
        """Put the hooks in place, if they are not, and start anew; ``scalars`` takes the norms."""
        self.rest()
        self.training.begin()
        self.graph, self._scalars, self._mark = CallLog(), scalars, object()
        self.graph.unwatched |= self._out
        self._pass = self._arrived = 0
        self._first = None
        if not self._handles:
            self.resume()

    def resume(self) -> None:
        """Put the hooks in place; what was seen stays."""
        self.pause()
        # An in-place module's input is its output by the time of the forward hook: it is looked at before.
        for name, module, hook, first in self._pre_hooks:
            if name not in self._out:
                self._handles.append(add_pre_hook(module, hook, prepend=first, with_kwargs=True))
        for name, module, hook in self._hooks:
            if name not in self._out:
                self._handles.append(add_hook(module, hook, with_kwargs=True))

    def pause(self) -> None:
        """Remove the hooks from the modules; gradients of what they have seen still arrive."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def rest(self) -> None:
        """End the step; the hooks stay on the modules, for the next one, and do nothing."""
        for handle in self._leaf_handles:
            handle.remove()
        self._leaf_handles.clear()
        self._leaves.clear()
        self._inputs_before.clear()
        self._mark = None

    def detach(self) -> None:
        """End the step and remove every hook; ``graph`` stays."""
        self.pause()
        self.rest()

    def forget(self) -> None:
        """Let go of what was seen: its scalars would wait on the device until the next measured step."""
        self.graph, self._scalars = CallLog(), DeviceScalars()

    def _before(self, name: str, _: nn.Module, args: Any, kwargs: Any = None) -> None:
        if torch.compiler.is_compiling() or self._mark is None or kwargs is None:
            return
        self._inputs_before[name] = self._edges_of((args, kwargs))

    def _after(
        self, name: str, look: Callable[[int, Tensor], None], _: nn.Module, args: Any, kwargs: Any, *output: Any
    ) -> None:
        if torch.compiler.is_compiling():  # first, and here: in code that is being compiled no trace shall be left
            return
        if self._mark is None or not output or len(self.graph.layers) >= _MOST_CALLS:
            return  # without an output: fusing layers has moved the hook, and it is called in another way
        outputs = self._edges_of(output[0])
        if not outputs:
            return
        inputs = self._inputs_before.pop(name, None) if self._inputs_before else None
        if inputs is None:
            inputs = self._edges_of((args, kwargs) if kwargs else args[0] if len(args) == 1 else args)
        call = self._note_call(name, inputs, outputs)
        if call == 0 or (name == self._first and self._begins_anew(call)):
            self._see_inputs(call, (args, kwargs))
        if type(output[0]) is Tensor:
            if not output[0].is_meta:
                look(call, output[0])
        else:
            self._look_at_first(call, look, output[0])

    def _begins_anew(self, call: int) -> bool:
        """Return True unless a cell goes on: its call follows on one of its own in the same pass."""
        layers, passes = self.graph.layers, self.graph.passes
        return layers[call] != layers[call - 1] or passes[call] != passes[call - 1]

    @staticmethod
    def _look_at_first(call: int, look: Callable[[int, Tensor], None], output: Any) -> None:
        """Read the first of several outputs that holds floating or complex numbers."""
        with past_torch_function():
            for first in filter(is_readable, tensors_in(output)):
                look(call, first)
                return

    def _see_inputs(self, call: int, given: Any) -> None:
        """Read what the first layer is given, a few times a pass: some calls may not belong to the step."""
        graph = self.graph
        if call == 0 or graph.passes[call] != graph.passes[call - 1]:
            self._first, self._looks = graph.layers[call], _INPUTS_A_PASS
        if not self._looks:
            return
        self._looks -= 1
        with past_torch_function():
            for tensor in filter(is_readable, tensors_in(given)):
                values = stored_values(tensor)
                norm = torch.linalg.vector_norm(values, dtype=torch.float32 if values.itemsize < 4 else None)
                graph.inputs_given.append((call, values.numel(), norm))

    def _note_call(self, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        graph = self.graph
        if len(graph.arrivals) != self._arrived and not TRACKER.is_bw:
            self._pass += 1
            self._arrived = len(graph.arrivals)
            # Data that requires a gradient is not held beyond its pass; parameters are there for longer anyway.
            self._leaves = {leaf: edge for leaf, edge in self._leaves.items() if isinstance(leaf, nn.Parameter)}
        call = len(graph.layers)
        graph.layers.append(name)
        graph.passes.append(self._pass)
        for edge in inputs:
            graph.inputs.append((call, edge))
        for edge in outputs:
            graph.outputs.append((call, edge))
        return call

    def _look(self, name: str, module: nn.Module) -> Callable[[int, Tensor], None]:
        """Return the reading of an output: at once, not in a batch, as an in-place module may overwrite it next."""
        if is_relu(module):
            return self._look_at_units
        # These, like ReLUs, put out NaN and Inf only where such came in, so that the layer before them tells. On
        # ResNet-18 (32 images of 32 x 32) their outputs are 75 MB, which need not be read. A forward of the user's may
        # make NaN itself: it is read.
        if runs_forward_of(module, NORMALIZATIONS):
            return _do_nothing
        return partial(self._look_at_size, saturation_of(module))

    def _look_at_units(self, call: int, output: Tensor) -> None:
        peaks = peaks_of(output) if is_plain(output) else None
        if peaks is not None:
            self.graph.peaks.append((call, *peaks))

    def _look_at_size(self, saturation: tuple[float, float] | None, call: int, output: Tensor) -> None:
        values, graph = stored_values(output), self.graph
        dtype = None
        if values.itemsize < 4:
            dtype, graph.dtype = torch.float32, str(values.dtype).removeprefix("torch.")
        graph.norms.append((call, values.numel(), torch.linalg.vector_norm(values, dtype=dtype)))
        if saturation is not None and values.numel():
            graph.saturated.append((len(graph.norms) - 1, saturated_share(saturation, values)))

    def _edges_of(self, value: Any) -> Sequence[int]:
        if type(value) is Tensor:  # nearly always: the general way costs three times as much
            edge = self._edge(value) if value.requires_grad else NONE
            return (edge,) if edge != NONE else ()
        if type(value) is tuple:  # a cell's input and state
            edges = []
            for item in value:
                if type(item) is not Tensor:
                    break
                if item.requires_grad and (edge := self._edge(item)) != NONE:
                    edges.append(edge)
            else:
                return edges
        with past_torch_function():  # what a subclass of Tensor does with an operation is its user's own affair
            wanted = [tensor for tensor in tensors_in(value) if tensor.requires_grad and is_readable(tensor)]
            return [edge for edge in map(self._edge, wanted) if edge != NONE]

    def _edge(self, tensor: Tensor) -> int:
        """Return the number of a tensor's place in autograd's graph; a new one gets a hook."""
        try:
            node: Any = tensor.grad_fn
        except RuntimeError:  # a view whose base was changed in a way that autograd forbids, if one uses the view
            return NONE
        if node is None:  # a leaf (a parameter that is fed in, an input that requires a gradient) is its own place
            edge = self._leaves.get(tensor)
            if edge is None:
                edge = self._leaves[tensor] = self._new_edge(tensor)
            return edge
        # The number is kept by the node itself. Whoever holds a node holds the whole graph behind it, and a loop that
        # makes no backward pass would fill the memory with them.
        number, kept = tensor.output_nr, node.metadata
        key = self._mark if number == 0 else (self._mark, number)
        edge = kept.get(key)
        if edge is None:
            edge = kept[key] = self._new_edge(tensor)
        return edge

    def _new_edge(self, tensor: Tensor) -> int:
        sizes = self.graph.sizes
        edge = len(sizes)
        sizes.append(entry_count(tensor) if tensor.is_nested else tensor.numel())
        taker = partial(self._on_gradient, self._mark, edge)
        handle: RemovableHandle = tensor.register_hook(taker)  # type: ignore[no-untyped-call]
        if tensor.grad_fn is None:  # a leaf outlives the step, and a hook on it would too
            self._leaf_handles.append(handle)
        return edge

    def _on_gradient(self, mark: object, edge: int, grad: Tensor | None) -> None:
        # None comes to one of several outputs (unbind, chunk) that the loss does not depend on. A gradient that is
        # computed for many losses at once, or by compiled autograd, has no values.
        if torch.compiler.is_compiling() or grad is None or mark is not self._mark or functorch_level() is not None:
            return
        try:
            if type(grad) is Tensor and not (dispatch_mode_count() or function_mode_count()):
                self._take(edge, grad)
            else:
                with past_torch_function(), past_dispatch_modes():
                    self._take(edge, grad)
        except Exception as error:
            if not is_batched(grad):
                self._fail(self._layer_of(edge), error)

    def _layer_of(self, edge: int) -> str:
        """Return the layer that put out an edge, or that was given it."""
        pairs = [*self.graph.outputs, *self.graph.inputs]
        return next((self.graph.layers[call] for call, other in pairs if other == edge), "(unknown)")

    def _take(self, edge: int, grad: Tensor) -> None:
        if (type(grad) is Tensor and grad.is_cpu) or (is_readable(grad) and not is_batched(grad)):
            slot = self._scalars.norm(grad)  # first: it may fail
            self.graph.arrivals.append(edge)
            self.graph.slots.append(slot)
            self.graph.of_loss.append(self._loss_pass.is_running)

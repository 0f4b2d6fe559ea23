"""Forward hooks that put a tensor hook on every layer's output, for the length of one measured step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwatch.containment import Containment
from gradwatch.layer_kinds import NORMALIZATIONS, runs_forward_of
from gradwatch.probe.call_log import CallLog, tensors_in
from gradwatch.probe.carried import CarriedGradients
from gradwatch.probe.constant_prediction import ConstantReader
from gradwatch.probe.dead_units import is_relu, peaks_of, saturated_share, saturation_of
from gradwatch.probe.layer_graph import LayerGraph, Pairs
from gradwatch.probe.layers import is_scripted, own_parameters
from gradwatch.probe.module_hooks import TRACKER, LossPass, StepHooks, add_hook, add_pre_hook
from gradwatch.probe.norms import entry_count, is_plain, is_readable, stored_values
from gradwatch.probe.parameters import NONE
from gradwatch.probe.readings import ALL, Readings
from gradwatch.probe.sampled_code import Layers, code_layers
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

# Most calls of a step that are noted: a loop that never steps an optimizer would fill the memory with their norms. A
# cell that is called 500 times in each of 100 batches stays below it.
_MOST_CALLS = 1 << 16
GRAPH = "the graph of the layers"
CARRIED = "the gradients of earlier steps"  # the part that is out of service where looking at them fails
CONSTANT = "the loss of a constant prediction"
_INPUTS_A_PASS = 4  # calls of the first layer that are read; some may be a validation, and no part of the step


def _takes_over_inputs(module: nn.Module) -> bool:
    """Return True if a pre-hook replaces the module's inputs, as FSDP2 and tensor parallelism do."""
    return any(map(is_sharded, own_parameters(module).values()))


class LayerHooks(StepHooks):
    """Reads the gradient at every layer's output (and input) while attached; holds no graph once detached.

    A forward hook puts a tensor hook on the output, since full backward hooks break on in-place modules. A tensor is
    identified by its place in autograd's graph (an *edge*): node and output number. So an input that another layer put
    out gets no second hook, and an in-place ReLU's input differs from its output, though both are one Python object.

    An optimizer step may have several forward passes (accumulation). A forward call outside a backward pass begins a
    new one if a gradient has come since the last call.

    Attributes:
        log: calls and gradients since the hooks were attached.
        carried: gradients of earlier steps, which it looks at before a backward pass adds to them.
        graph: which layers take the output of which.
        constant: tells the loss of a constant prediction.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        containment: Containment,
        loss_pass: LossPass | None = None,
        readings: Readings = ALL,
    ) -> None:
        self._readings = readings
        super().__init__("layer", containment, loss_pass)
        self.log = CallLog()
        self.carried = CarriedGradients()
        self.constant = ConstantReader()
        plain = [name for name, module in layers.items() if not own_parameters(module)]
        self.graph = LayerGraph(plain, len(layers))
        self._made: list[tuple[int, Any]] = []  # new edges of the call that is being read, and their nodes
        hookable = {name: module for name, module in layers.items() if not is_scripted(module)}
        self._hooks = [(n, m, self._hook(n, self._after, self._reader(n, m))) for n, m in hookable.items()]
        self._pre_hooks = [
            (name, module, self._hook(name, self._before), _takes_over_inputs(module))
            for name, module in hookable.items()
            if module.__dict__.get("inplace", False) or _takes_over_inputs(module)
        ]
        self._leaves: dict[Tensor, int] = {}
        self._inputs_before: dict[str, Sequence[int]] = {}
        self._pass = 0
        self._first: str | None = None  # the layer that is called first
        self._input_reads_left = 0
        self._arrived = 0  # number of gradients that had come at the last forward call

    def _is_idle(self) -> bool:
        return not self.log.layers

    def _fail(self, name: str, error: Exception) -> None:
        self.log.unwatched.add(name)
        super()._fail(name, error)

    def _begin(self) -> None:
        self.log = CallLog()
        self.log.unwatched |= self._failed
        self.log.hooked = frozenset(name for name, _, _ in self._hooks)
        self.graph.begin(self._mark)
        self.constant.begin()
        self._made.clear()
        self._pass = self._arrived = 0
        self._first = None

    def _add_hooks(self) -> Iterator[RemovableHandle]:
        # An in-place module's input is its output by the time of the forward hook, so it is read before.
        for name, module, hook, first in self._pre_hooks:
            if name not in self._failed:
                yield add_pre_hook(module, hook, prepend=first, with_kwargs=True)
        for name, module, hook in self._hooks:
            if name not in self._failed:
                yield add_hook(module, hook, with_kwargs=True)

    def rest(self) -> None:
        """End the step; the hooks stay on the modules and do nothing until the next one."""
        super().rest()
        self._leaves.clear()
        self._inputs_before.clear()
        self._made.clear()
        self.carried.end()
        self.constant.end()

    @property
    def pairs(self) -> Pairs | None:
        """Return the pairs of a layer and one that takes its output; None where they are not known."""
        return None if self._containment.is_out(GRAPH) else self._containment.run(GRAPH, self.graph.pairs)

    def forget(self) -> None:
        """Drop what was read: its scalars would wait on the device until the next measured step."""
        self.log, self._scalars = CallLog(), DeviceScalars()

    def _before(self, name: str, _: nn.Module, args: Any, kwargs: Any = None) -> None:
        if torch.compiler.is_compiling() or self._mark is None or kwargs is None:
            return
        self._inputs_before[name] = self._edges_of((args, kwargs))

    def _after(
        self, name: str, read: Callable[[int, Tensor], None], _: nn.Module, args: Any, kwargs: Any, *output: Any
    ) -> None:
        if torch.compiler.is_compiling():  # first: nothing of this function may be compiled into the user's code
            return
        if self._mark is None or not output or len(self.log.layers) >= _MOST_CALLS:
            return  # no output: fusing layers has moved the hook to where it is called with other arguments
        self.log.ran.add(name)
        outputs = self._edges_of(output[0])
        if not outputs:
            return
        inputs = self._inputs_before.pop(name, None) if self._inputs_before else None
        if inputs is None:
            inputs = self._edges_of((args, kwargs) if kwargs else args[0] if len(args) == 1 else args)
        call = self._note_call(name, inputs, outputs)
        if call == 0 or (name == self._first and self._begins_anew(call)):
            self._read_inputs(call, (args, kwargs))
        if type(output[0]) is Tensor:
            if not output[0].is_meta:
                read(call, output[0])
                self.constant.note(outputs[0], output[0])
        else:
            self._read_first(call, read, output[0])

    def _begins_anew(self, call: int) -> bool:
        """Return False if a cell goes on: its last call was the call before this one, in the same pass."""
        layers, passes = self.log.layers, self.log.passes
        return layers[call] != layers[call - 1] or passes[call] != passes[call - 1]

    @staticmethod
    def _read_first(call: int, read: Callable[[int, Tensor], None], output: Any) -> None:
        """Read the first of several outputs that holds floating or complex numbers."""
        with past_torch_function():
            for first in filter(is_readable, tensors_in(output)):
                read(call, first)
                return

    def _read_inputs(self, call: int, given: Any) -> None:
        """Read what the first layer is given, in the first few calls of a pass."""
        log = self.log
        if call == 0 or log.passes[call] != log.passes[call - 1]:
            self._first, self._input_reads_left = log.layers[call], _INPUTS_A_PASS
        if not self._input_reads_left:
            return
        self._input_reads_left -= 1
        with past_torch_function():
            for tensor in filter(is_readable, tensors_in(given)):
                values = stored_values(tensor)
                log.inputs_given.append((call, values.numel(), self._scalars.norm_now(values)))

    def _note_call(self, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        log = self.log
        in_backward = TRACKER.is_bw
        if len(log.arrivals) != self._arrived and not in_backward:
            self._pass += 1
            self._arrived = len(log.arrivals)
            log.pass_starts.append(self._arrived)
            # Parameters live longer than a pass anyway; data that requires a gradient must not be held beyond its pass.
            self._leaves = {leaf: edge for leaf, edge in self._leaves.items() if isinstance(leaf, nn.Parameter)}
        call = len(log.layers)
        log.layers.append(name)
        log.passes.append(self._pass)
        if in_backward:
            log.in_backward.add(call)
        self._containment.run(GRAPH, self._note_in_graph, name, inputs, outputs, in_backward)
        self._made.clear()  # in any case, as its nodes hold all of the graph
        for edge in inputs:
            log.inputs.append((call, edge))
        for edge in outputs:
            log.outputs.append((call, edge))
        return call

    def _note_in_graph(self, name: str, inputs: Sequence[int], outputs: Sequence[int], in_backward: bool) -> None:
        leaf, number = self._edge_of_leaf, self._pass
        self.graph.note(name, inputs, outputs, self._made, leaf, forward_pass=number, in_backward=in_backward)

    def _edge_of_leaf(self, node: Any) -> int | None:
        return self._leaves.get(node.variable) if self._leaves else None

    def _reader(self, name: str, module: nn.Module) -> Callable[[int, Tensor], None]:
        """Return the function that reads a layer's output."""
        # It reads at once and not in a batch, since an in-place module may overwrite the output next.
        if is_relu(module):
            return self._read_units if self._readings.units else lambda *_: None
        # Normalizations, like ReLUs, pass NaN and Inf on: the output of the layer before shows them. On ResNet-18 (32
        # images of 32 x 32) their outputs are 75 MB, which need not be read. A user's forward may make NaN itself.
        if runs_forward_of(module, NORMALIZATIONS):
            return lambda *_: None
        saturation = saturation_of(module) if self._readings.saturation else None
        return partial(self._read_size if saturation or self._readings.outputs else self._note_dtype, saturation)

    def _read_units(self, call: int, output: Tensor) -> None:
        peaks = peaks_of(output) if is_plain(output) else None
        if peaks is not None:
            self.log.peaks.append((call, *peaks))

    def _note_dtype(self, _: object, __: int, output: Tensor) -> None:
        if output.itemsize < 4:
            self.log.dtype = str(output.dtype).removeprefix("torch.")

    def _read_size(self, saturation: tuple[float, float] | None, call: int, output: Tensor) -> None:
        values, log = stored_values(output), self.log
        self._note_dtype(saturation, call, values)
        log.norms.append((call, values.numel(), self._scalars.norm_now(values)))
        if saturation is not None and values.numel():
            share = self._scalars.one(saturated_share(saturation, values))
            log.saturated.append((len(log.norms) - 1, share))

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
        with past_torch_function():  # a user's subclass of Tensor must not see our operations
            wanted = [tensor for tensor in tensors_in(value) if tensor.requires_grad and is_readable(tensor)]
            return [edge for edge in map(self._edge, wanted) if edge != NONE]

    def _edge(self, tensor: Tensor) -> int:
        """Return the edge of a tensor; a new one gets a hook. NONE where autograd refuses to tell."""
        try:
            node: Any = tensor.grad_fn
        except RuntimeError:  # a view whose base was changed in a forbidden way: an error only for who uses the view
            return NONE
        if node is None:  # a leaf: a parameter that is fed in, or an input that requires a gradient
            edge = self._leaves.get(tensor)
            if edge is None:
                edge = self._leaves[tensor] = self._new_edge(tensor)
            return edge
        # The node itself keeps the edge's number. A table here would hold the nodes, and with each the whole graph: a
        # loop without a backward pass would fill the memory. The mark makes numbers of earlier steps invalid.
        number, kept = tensor.output_nr, node.metadata
        key = self._mark if number == 0 else (self._mark, number)
        edge = kept.get(key)
        if edge is None:
            edge = kept[key] = self._new_edge(tensor)
        return edge

    def _new_edge(self, tensor: Tensor) -> int:
        sizes = self.log.sizes
        edge = len(sizes)
        sizes.append(entry_count(tensor) if tensor.is_nested else tensor.numel())
        receive = partial(self._on_gradient, self._mark, edge)
        handle: RemovableHandle = tensor.register_hook(receive)  # type: ignore[no-untyped-call]
        self._made.append((edge, tensor.grad_fn))
        if tensor.grad_fn is None:  # a leaf outlives the step, and a hook on it would too
            self._leaf_handles.append(handle)
        return edge

    def _on_gradient(self, mark: object, edge: int, grad: Tensor | None) -> None:
        # grad is None at one of several outputs (unbind, chunk) that the loss does not depend on. It has no values if
        # it is computed for many losses at once (vmap), or by compiled autograd.
        if torch.compiler.is_compiling() or grad is None or mark is not self._mark or functorch_level() is not None:
            return
        try:
            if type(grad) is Tensor and not (dispatch_mode_count() or function_mode_count()):
                self._keep(edge, grad)
            else:
                with past_torch_function(), past_dispatch_modes():
                    self._keep(edge, grad)
        except Exception as error:
            if not is_batched(grad):
                self._fail(self._layer_of(edge), error)

    def code_layers(self, loss_node: Any) -> Layers:
        """Return the layers that give the mean and the deviation of a sampled code, if the loss has one."""
        makers = {edge: self.log.layers[call] for call, edge in self.log.outputs}
        return code_layers(loss_node, lambda node: makers.get(node.metadata.get(self._mark, NONE)))

    def _layer_of(self, edge: int) -> str:
        """Return the layer whose output, or else input, an edge is."""
        pairs = [*self.log.outputs, *self.log.inputs]
        return next((self.log.layers[call] for call, other in pairs if other == edge), "(unknown)")

    def _keep(self, edge: int, grad: Tensor) -> None:
        if self.carried.is_open:
            self._containment.run(CARRIED, self.carried.look, self._scalars)
        if (type(grad) is Tensor and grad.is_cpu) or (is_readable(grad) and not is_batched(grad)):
            if self.constant.is_open:
                self._containment.run(CONSTANT, self.constant.receive, edge, grad)
            slot = self._scalars.norm(grad)  # before the lists below, which must stay equally long: it may fail
            self.log.arrivals.append(edge)
            self.log.slots.append(slot)
            self.log.of_loss.append(self._loss_pass.is_running)

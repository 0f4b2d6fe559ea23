"""The graph of the layers: which of them take the output of which, read from autograd's graph while they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.autograd.function import BackwardCFunction

from gradwatch.torch_internals import current_node

Pairs = frozenset[tuple[str, str]]  # of a layer, and one that takes its output

# Calls that are noted; later ones are those of other batches, or of a loop that goes on alike. And nodes of autograd's
# graph that are visited in a step: about 20 ms. A network of thousands of layers needs more of both: so many a layer.
_MOST_CALLS, _CALLS_A_LAYER = 1 << 12, 2
_MOST_NODES, _NODES_A_LAYER = 1 << 15, 8


@dataclass(frozen=True)
class _Call:
    """A call of a layer.

    Attributes:
        layer: its name.
        inputs, outputs: edges, see :class:`~gradwatch.probe.call_log.CallLog`.
        new: those of the outputs that no call had put out before.
        function: number of the function of the user's, or of checkpointing, that runs it in the backward pass; 0 for a
            call of the forward pass.
        forward_pass: number of the forward pass.
    """

    layer: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    new: frozenset[int]
    function: int = 0
    forward_pass: int = 0


class LayerGraph:
    """Notes the calls of a step, and from which earlier tensors each new one was made.

    An example: in ``x = a(data); y = x + b(x).relu(); loss = c(y)`` the tensor ``y`` is no output of a layer. So the
    graph is walked from it back to tensors that are known: the outputs of ``a`` and ``b``. Each node is visited once,
    as a tensor that is an input of some layer is known from then on. A step whose calls are those of the step before is
    not walked at all.

    A function that runs layers in the backward pass (reentrant checkpointing) is one node of the forward pass. It gets
    a number below zero, and the layers that it runs later are put in its place.

    Args:
        plain: layers without parameters.
        layers: number of all layers.

    Attributes:
        is_unknown: layers ran in the backward pass, and nothing tells where they belong; or the graph is too large.
    """

    def __init__(self, plain: Collection[str] = (), layers: int = 0) -> None:
        self._plain = frozenset(plain)
        self._most_calls = max(_MOST_CALLS, _CALLS_A_LAYER * layers)
        self._most_nodes = max(_MOST_NODES, _NODES_A_LAYER * layers)
        self._calls: list[_Call] = []
        self._sources: dict[int, Sequence[int]] = {}  # edge, or number of a function -> the edges it was made of
        self._functions = 0
        self._plan: tuple[list[_Call], dict[int, Sequence[int]], Pairs | None] = ([], {}, None)
        self._follows = self.is_unknown = False
        self.begin(None)

    def begin(self, mark: object) -> None:
        """Begin a step; nodes keep the number of their edge under its mark."""
        if self._calls and not (self._functions or self.is_unknown):
            self._plan = self._calls, self._plan[1] if self._follows else self._sources, self.pairs()
        self._mark = mark
        self._found: Pairs | None = None
        self._calls, self._sources = [], {}
        self._functions, self._left = 0, self._most_nodes
        self._known: set[int] = set()  # edges that are outputs of calls
        self._forward: set[str] = set()
        self.is_unknown = False
        self._follows = bool(self._plan[0])

    def note(
        self,
        layer: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        made: Sequence[tuple[int, Any]],
        edge_of_leaf: Callable[[Any], int | None],
        *,
        forward_pass: int,
        in_backward: bool,
    ) -> None:
        """Note a call.

        Args:
            layer: its name.
            inputs: edges that it was given.
            outputs: edges that it has put out.
            made: edges that are new, with their nodes.
            edge_of_leaf: returns the edge of a leaf that a layer was given or has put out.
            forward_pass: number of the forward pass, from 0.
            in_backward: it runs in a backward pass.
        """
        if len(self._calls) >= self._most_calls or (in_backward and layer in self._forward):
            return  # checkpointing that is not reentrant: the gradient comes by the first call's graph
        if not in_backward:
            self._forward.add(layer)
        if self._follows and self._goes_on(layer, tuple(inputs), tuple(outputs), forward_pass):
            return
        function = self._running_function() if in_backward else 0
        new = frozenset(edge for edge in outputs if edge not in self._known)
        self._calls.append(_Call(layer, tuple(inputs), tuple(outputs), new, function, forward_pass))
        self._known.update(outputs)
        for edge, node in made:
            self._sources[edge] = self._walk(node, edge_of_leaf) if node is not None else ()

    def _goes_on(self, layer: str, inputs: tuple[int, ...], outputs: tuple[int, ...], forward_pass: int) -> bool:
        """Take the next call of the step before, and return True, if this one is the same; else follow it no more."""
        plan, place = self._plan[0], len(self._calls)
        if place < len(plan):
            call = plan[place]
            if call.layer == layer and (call.inputs, call.outputs, call.forward_pass) == (
                inputs,
                outputs,
                forward_pass,
            ):
                self._calls.append(call)
                return True
        self._follows = False
        self._sources = dict(self._plan[1])
        for call in self._calls:
            self._known.update(call.outputs)
        return False

    def _running_function(self) -> int:
        node = current_node()
        number = 0 if node is None else node.metadata.get((self._mark, "function"), 0)
        self.is_unknown = self.is_unknown or not number
        return number

    def _walk(self, start: Any, edge_of_leaf: Callable[[Any], int | None]) -> Sequence[int]:
        """Return the known edges, and the numbers of functions, that a node was made of."""
        functions: list[tuple[int, Any]] = []
        if isinstance(start, BackwardCFunction):
            result: Sequence[int] = (self._number_of(start, functions),)
        else:
            result = self._found_from(start, edge_of_leaf, functions)
        while functions:
            number, node = functions.pop()
            self._sources[number] = self._found_from(node, edge_of_leaf, functions)
        return result

    def _found_from(
        self, start: Any, edge_of_leaf: Callable[[Any], int | None], functions: list[tuple[int, Any]]
    ) -> Sequence[int]:
        found: dict[int, None] = {}
        waiting, seen = [start], {start}
        while waiting:
            for node, number in waiting.pop().next_functions:
                if node is None:
                    continue
                if type(node).__name__ == "AccumulateGrad":  # nearly half of all nodes: the parameters
                    edge = edge_of_leaf(node)
                    if edge is not None:
                        found[edge] = None
                    continue
                edge = node.metadata.get(self._mark if number == 0 else (self._mark, number))
                if edge is not None:
                    found[edge] = None
                elif isinstance(node, BackwardCFunction):
                    found[self._number_of(node, functions)] = None
                elif node not in seen:
                    self._left -= 1
                    if self._left < 0:
                        self.is_unknown = True
                        return ()
                    seen.add(node)
                    waiting.append(node)
        return tuple(found)

    def _number_of(self, node: Any, functions: list[tuple[int, Any]]) -> int:
        number: int = node.metadata.get((self._mark, "function"), 0)
        if not number:
            self._functions -= 1
            number = node.metadata[self._mark, "function"] = self._functions
            functions.append((number, node))
        return number

    def pairs(self) -> Pairs | None:
        """Return the pairs of a layer and one that takes its output; None where they are not known."""
        if self.is_unknown or not self._calls:
            return None
        if self._follows and len(self._calls) == len(self._plan[0]):
            return self._plan[2]
        if self._found is None:
            sources = self._plan[1] if self._follows else self._sources
            self._found = frozenset(_Resolution(self._calls, sources, self._plain).pairs())
        return self._found


class _Resolution:
    """Turns calls and edges into pairs of layers.

    A layer that runs several times in one forward pass is looked through: what takes its output takes that of what is
    before this call too. If it has no parameters (a ReLU that a whole network shares) it has no place of its own.
    """

    def __init__(self, calls: Sequence[_Call], sources: Mapping[int, Sequence[int]], plain: Collection[str]) -> None:
        self._sources = sources
        self._makers: dict[int, list[int]] = {}  # edge -> the calls that put it out
        self._ends_of_call: list[frozenset[str | int]] = []  # layers, and functions, that stand for a call
        self._inside: dict[int, dict[str, None]] = {}  # function -> the layers that it runs
        self._taken: set[tuple[str, str | int]] = set()  # a layer, and a layer or function whose output it takes
        times = Counter((call.layer, call.forward_pass) for call in calls)
        repeated = {layer for (layer, _), count in times.items() if count > 1}
        for number, call in enumerate(calls):
            given = {*call.inputs, *(e for edge in call.new for e in sources.get(edge, ())), *call.outputs} - call.new
            makers = self._makers_of(given)
            own: frozenset[str | int] = frozenset([call.layer])
            if call.layer in repeated:
                own = makers if call.layer in plain else makers | own
            self._ends_of_call.append(own)
            if call.layer not in repeated or call.layer not in plain:
                self._taken |= {(call.layer, maker) for maker in makers if maker != call.layer}
                if call.function:
                    self._inside.setdefault(call.function, {})[call.layer] = None
            for edge in call.outputs:
                self._makers.setdefault(edge, []).append(number)

    def _makers_of(self, edges: Collection[int]) -> frozenset[str | int]:
        """Return the layers, and functions, that put out some edges, or what these were made of."""
        found: set[str | int] = set()
        waiting, seen = list(edges), set(edges)
        while waiting:
            edge = waiting.pop()
            if edge < 0:
                found.add(edge)
            elif edge in self._makers:
                found.update(*(self._ends_of_call[call] for call in self._makers[edge]))
            else:
                more = [other for other in self._sources.get(edge, ()) if other not in seen]
                seen.update(more)
                waiting += more
        return frozenset(found)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the pairs of a layer and one that takes its output."""
        for layer, maker in self._taken:
            for name in self._ends(maker):
                yield name, layer
        for number, names in self._inside.items():
            fed = {layer for layer, maker in self._taken if maker in names}
            for maker in self._makers_of(self._sources.get(number, ())):
                for end in self._ends(maker):
                    yield from ((end, name) for name in names if name not in fed and name != end)

    def _ends(self, maker: str | int) -> set[str]:
        """Return a layer itself; of a function, the layers in it that no other one in it takes the output of."""
        found: set[str] = set()
        waiting, seen = [maker], {maker}
        while waiting:
            maker = waiting.pop()
            if isinstance(maker, str):
                found.add(maker)
            elif names := self._inside.get(maker):
                found |= names.keys() - {other for layer, other in self._taken if layer in names}
            else:  # a function that runs no layers is passed over
                more = self._makers_of(self._sources.get(maker, ())) - seen
                seen |= more
                waiting += more
        return found

"""Hooks for tensor parallelism, which know the part of an output, and of its gradient, that this process holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradwatch.containment import Containment
from gradwatch.probe.hooks import LayerHooks
from gradwatch.probe.module_hooks import LossPass
from gradwatch.probe.norms import is_readable
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.readings import Readings
from gradwatch.probe.shards import is_partial, is_sharded, local_part, part_count


@dataclass(frozen=True)
class Cut:
    """Division of an activation among the processes that share a batch.

    Attributes:
        parts: number of parts; 1 where each process holds all of it.
        by_unit: the parts are units (channels, or entries of the last dimension), not samples.
    """

    parts: int = 1
    by_unit: bool = False


WHOLE = Cut()


class ParallelHooks(LayerHooks):
    """LayerHooks that distinguish parts of activations from copies.

    A layer of torch's tensor parallelism returns plain tensors, which don't say what they are. But autograd's graph
    does: where a DTensor became a plain tensor, the node knows how it was cut. From each tensor the graph is walked
    back to such a node, or to an output that is known already. Where nothing is found, each process holds all of the
    tensor. Where the graph was detached on the way there is no number, and the layer is listed as missing.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        containment: Containment,
        loss_pass: LossPass,
        readings: Readings,
        ranks: Ranks,
    ) -> None:
        self._ranks = ranks
        super().__init__(layers, containment, loss_pass, readings)

    def _share(self, cut: Cut) -> float:
        """Return how much the entries held here count in a sum over all processes, so that each counts once."""
        return min(cut.parts, self._ranks.sharing) / self._ranks.sharing

    def _new_edge(self, tensor: Tensor) -> int:
        edge, cut = super()._new_edge(tensor), self._cut_of(tensor)
        self.log.sizes[edge] = local_part(tensor.detach()).numel()
        self.log.shares.append(float("nan") if cut is None else self._share(cut))
        return edge

    def _keep(self, edge: int, grad: Tensor) -> None:
        share = self._share(Cut(part_count(grad))) if is_sharded(grad) else self.log.shares[edge]
        if not math.isnan(share) and not is_partial(grad) and is_readable(grad):
            super()._keep(edge, grad)
            self.log.arrival_shares.append(share)

    def _reader(self, name: str, module: nn.Module) -> Callable[[int, Tensor], None]:
        read = super()._reader(name, module)

        def read_part(call: int, output: Tensor) -> None:
            cut = self._cut_of(output)
            if cut is None or is_partial(output):
                return
            if cut.by_unit:
                self.log.cut_by_unit.add(name)
            read(call, local_part(output.detach()))
            if len(self.log.norms) > len(self.log.norm_shares):
                self.log.norm_shares.append(self._share(cut))

        return read_part

    def _cut_of(self, tensor: Any) -> Cut | None:
        if is_sharded(tensor):
            return _cut_by(tensor)
        node = tensor.grad_fn
        if node is None:
            return _of_leaf(tensor)
        kept, key = node.metadata, (self._mark, "cut")
        if key not in kept:
            kept[key] = self._walk(node)
        cut: Cut | None = kept[key]
        return cut

    def _walk(self, node: Any) -> Cut | None:
        """Return the cut that the nodes behind this one agree on, down to the first known ones; None if they differ."""
        found: set[Cut | None] = set()
        waiting, seen = [node], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            kept = node.metadata  # see LayerHooks._edge
            if (self._mark, "cut") in kept:
                found.add(kept[self._mark, "cut"])
            elif hasattr(node, "dtensor_spec"):
                found.add(_cut_by(node.dtensor_spec))
            elif hasattr(node, "variable"):
                found.add(_of_leaf(node.variable))
            else:
                waiting += [behind for behind, _ in node.next_functions]
        cuts = found - {WHOLE}  # a bias that every process holds says nothing about the sum
        return None if len(cuts) > 1 else next(iter(cuts), WHOLE)


def _of_leaf(tensor: Tensor) -> Cut | None:
    return WHOLE if isinstance(tensor, nn.Parameter) or not tensor.requires_grad else None


def _cut_by(value: Any) -> Cut:
    """Return the cut of a DTensor, or of a DTensor's spec."""
    cut = [(size, p.dim) for size, p in zip(value.device_mesh.shape, value.placements, strict=True) if p.is_shard()]
    units = 1 if value.ndim > 3 else value.ndim - 1
    return Cut(math.prod(size for size, _ in cut), any(dim == units for _, dim in cut)) if cut else WHOLE

"""Copies of parameters and buffers that several processes hold: do they agree, and which process differs.

An example: three processes with the checksums 5, 5 and 7 of a weight. Each multiplies its own with two weights of its
own, which sum to zero over the processes, and the products are added up:

    process        0      1      2      sum
    checksum       5      5      7
    first weight   4     -9      5      20 - 45 + 35 = 10
    second        -2      3     -1     -10 + 15 -  7 = -2

Where all agree, both sums are 0. Where one alone differs by d, they are its own weights times d, here (5, -1) times 2,
and the weights of no other process are parallel to that. So two cells a tensor tell whether and who, however many
processes there are, and they are sums like all others of the step. All numbers are integers that float64 holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from gradwatch.layer_kinds import is_normalization
from gradwatch.probe.layers import named_modules, own_buffers, own_parameters, plain_name
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.shards import is_sharded, local_part
from gradwatch.probe.sum_layout import SumLayout, Sums
from gradwatch.torch_internals import fsdp2_class, ignored_by_ddp, is_flat_piece

Weights = npt.NDArray[np.int64]  # (2, processes): two for each process, by its number
Term = tuple[str, Any, Any, Any]  # field, cells, slots of the numbers (None for a count), their weights

_PRIME = 1048573  # the largest under 2 ** 20
# A sum of weights below 2 ** 14 times checksums below 2 ** 20 is exact in float64 for up to 2 ** 19 processes.
_LARGEST_WEIGHT = 2**13
_SUMS = ("copies", "first_apart", "second_apart", "live")


def checksums(tensors: Sequence[Tensor]) -> Tensor:
    """Return a number below 2 ** 20 for the bits of each tensor, on their device; nothing is read back.

    Eight bytes at a time are added as an integer, which costs one pass and no copy.

    Example:
        >>> one, other = checksums([torch.ones(3), torch.tensor([1.0, 1.0, 1.0001])]).tolist()
        >>> one == other
        False
    """
    return torch.stack([_sum_of_bits(tensor) for tensor in tensors]).remainder_(_PRIME)


def _sum_of_bits(tensor: Tensor) -> Tensor:
    values = tensor.detach()
    flat = values.contiguous().view(-1)
    size, offset = flat.numel() * flat.itemsize, flat.storage_offset() * flat.itemsize
    if offset % 8 or flat.stride(0) != 1:  # that of a single entry may be any
        flat = flat.clone(memory_format=torch.contiguous_format)
    if size % 8 == 0:
        return flat.view(torch.int64).sum()
    octets = flat.view(torch.uint8)
    whole = size - size % 8
    return octets[:whole].view(torch.int64).sum() + octets[whole:].sum(dtype=torch.int64)


def has_bits(tensor: Tensor) -> bool:
    """Return True if the bits of a tensor, or of the part of it that is here, can be read."""
    kind, here = type(tensor), tensor
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        return False
    if is_sharded(tensor):
        if any(placement.is_partial() for placement in tensor.placements):  # type: ignore[attr-defined]
            return False
        here = local_part(tensor.detach())
    elif kind not in (Tensor, nn.Parameter) and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    is_odd = here.is_meta or here.is_quantized or here.is_nested or here.is_mkldnn
    return here.layout is torch.strided and not (is_odd or here.is_conj() or here.is_neg())


def add_replicas(layout: SumLayout, terms: Sequence[Term]) -> None:
    """Add what :meth:`Replicas.read` returned to a step's sums."""
    for field, at, slots, weight in terms:
        if slots is None:
            layout.count(field, at, weight)
        else:
            layout.add(field, at, slots, weight=weight)


@dataclass(frozen=True)
class Held:
    """A tensor of the model that other processes hold too.

    Attributes:
        weights: those of all processes; the sum over those that should hold the same is zero.
        is_buffer: it is judged only while no process changes it.
    """

    tensor: Tensor
    weights: Weights
    is_buffer: bool


class Replicas:
    """The parameters and buffers of a model by name, and how they are compared between processes.

    A parameter has to be the same after each step. A buffer is judged only if no process changes it: DDP evens out
    statistics before the next forward pass, or never. Those of normalizations are not even looked at.

    Args:
        model: the model; None compares nothing.
        ranks: the processes.

    Attributes:
        names: all of the model's tensors, whether they are compared or not.

    Example:
        >>> replicas = Replicas(None, None)
        >>> replicas.lengths["copies"], replicas.apart({})
        (0, {})
    """

    def __init__(self, model: nn.Module | None, ranks: Ranks | None) -> None:
        self._model, self._ranks = model, ranks
        self.names: tuple[str, ...] = () if model is None else tuple(dict.fromkeys(n for n, _, _ in _tensors(model)))
        self._places = {name: place for place, name in enumerate(self.names)}
        self._weights: dict[Any, Weights | None] = {}
        self._by_place: dict[int, Weights] = {}
        self._before: dict[torch.device, tuple[tuple[int, ...], Tensor]] = {}  # the buffers' last checksums
        self._live: set[int] = set()

    def __deepcopy__(self, memo: object) -> Replicas:
        return Replicas(None, None)  # its meshes can't be copied, and a copy of a probe begins anew

    def switch_off(self) -> None:
        """Compare nothing, since the processes have tensors of different names."""
        self.names, self._places = (), {}

    @property
    def lengths(self) -> dict[str, int]:
        """Return the fields that the sums need, and their lengths."""
        return dict.fromkeys(_SUMS, len(self.names))

    @torch.no_grad()
    def read(self, scalars: DeviceScalars) -> list[Term]:
        """Compute the checksums of what this process holds, and return what they add to a step's sums."""
        if not self.names or self._ranks is None:
            return []
        me, terms = dist.get_rank(), list[Term]()
        by_device: dict[torch.device, list[tuple[int, Held, Tensor]]] = {}
        for place, held in self._held().items():
            here = local_part(held.tensor)
            by_device.setdefault(here.device, []).append((place, held, here))
        for together in by_device.values():
            sums = checksums([tensor for _, _, tensor in together])
            at = np.array([place for place, _, _ in together], np.intp)
            own = np.array([held.weights[:, me] for _, held, _ in together], np.float64)
            slots, is_buffer = scalars.values(sums), np.array([held.is_buffer for _, held, _ in together], np.bool_)
            terms += [("first_apart", at, slots, own[:, 0]), ("second_apart", at, slots, own[:, 1])]
            terms += [("copies", at[~is_buffer], None, 1.0)]
            self._by_place |= {place: held.weights for place, held, _ in together}
            if is_buffer.any():
                terms += self._buffers(scalars, at[is_buffer], sums[int(is_buffer.argmax()) :])
        return terms

    def _buffers(self, scalars: DeviceScalars, at: Any, sums: Tensor) -> list[Term]:
        """Count the buffers, which come last, once it is known whether they have changed since the last time."""
        places = tuple(at.tolist())
        earlier, before = self._before.get(sums.device, ((), sums))
        self._before[sums.device] = places, sums
        if earlier != places:
            return []
        return [("copies", at, None, 1.0), ("live", at, scalars.values(sums != before), 1.0)]

    def apart(self, sums: Sums) -> dict[str, int]:
        """Return the tensors that are not the same everywhere, and the process that differs; -1 if not one alone."""
        if not self.names or self._ranks is None:
            return {}
        self._live |= {*np.flatnonzero(sums["live"]).tolist()}
        # Where a process has nothing to add, the weights of the others do not sum to zero.
        differs = (sums["first_apart"] != 0) | (sums["second_apart"] != 0)
        found = np.flatnonzero(differs & (sums["copies"] == self._ranks.world)).tolist()
        return {
            self.names[place]: _the_one(
                self._by_place[place], int(sums["first_apart"][place]), int(sums["second_apart"][place])
            )
            for place in found
            if place not in self._live and place in self._by_place
        }

    def _held(self) -> dict[int, Held]:
        """Return what this process holds and others too, by place: first parameters, then buffers."""
        assert self._model is not None
        assert self._ranks is not None
        held: dict[int, Held] = {}
        whole = _whole_mesh(self._model, self._ranks)
        for name, tensor, is_buffer in _tensors(self._model):
            place = self._places.get(name)
            if place is None or place in held or place in self._live or not has_bits(tensor):
                continue
            if is_buffer and not self._ranks.same_buffers:
                continue
            weights = self._weights_of(tensor, is_buffer, whole)
            if weights is not None:
                held[place] = Held(tensor, weights, is_buffer)
        return dict(sorted(held.items(), key=lambda item: item[1].is_buffer))

    def _weights_of(self, tensor: Any, is_buffer: bool, whole: Any) -> Weights | None:
        """Return the weights of all processes for a tensor; None where no other holds the same, or that is unknown."""
        mesh = tensor.device_mesh if is_sharded(tensor) else None
        key = (mesh, tuple(tensor.placements)) if mesh is not None else is_flat_piece(tensor)
        if key not in self._weights:
            groups = self._groups(tensor, whole)
            self._weights[key] = None if groups is None or groups.shape[1] == 1 else zero_sum_weights(groups)
        return self._weights[key]

    def _groups(self, tensor: Any, whole: Any) -> npt.NDArray[np.int64] | None:
        """Return the numbers of the processes, a row for those that should hold the same."""
        assert self._ranks is not None
        if is_sharded(tensor):
            return _groups_of_mesh(tensor, whole, self._ranks.world)
        if is_flat_piece(tensor) and self._ranks.pieces > 1:
            return None  # HYBRID_SHARD has copies of each piece, but does not say where
        return np.array([_members(self._ranks)], np.int64)


def zero_sum_weights(groups: npt.NDArray[np.int64]) -> Weights:
    """Return two weights for each process, by its number, that sum to zero over each row of processes.

    Example:
        >>> weights = zero_sum_weights(np.array([[0, 2], [1, 3]]))
        >>> (weights[:, 0] + weights[:, 2]).tolist(), (weights[:, 1] + weights[:, 3]).tolist()
        ([0, 0], [0, 0])
    """
    # Random, as a rule could have a split of the processes that it is blind to; the same on all of them by the seed.
    drawn = np.random.RandomState(0).randint(-_LARGEST_WEIGHT // 2, _LARGEST_WEIGHT // 2, (2, int(groups.max()) + 1))
    weights = np.zeros_like(drawn, np.int64)
    for group in groups:
        weights[:, group] = drawn[:, group] - drawn[:, np.roll(group, 1)]
    return weights


def _the_one(weights: Weights, first: int, second: int) -> int:
    """Return the only process whose weights are parallel to the sums; of a pair, both are."""
    ones, others = weights
    # Products of 64 bits may overflow, and are then compared modulo 2 ** 64. Those few that agree are compared exactly:
    # 20,000 tensors that differ on 1,000 processes would take 2 s otherwise, and take 0.2 s.
    may_be = (ones * np.int64(second) == others * np.int64(first)) & ((ones != 0) | (others != 0))
    found = [i for i in np.flatnonzero(may_be).tolist() if int(ones[i]) * second == int(others[i]) * first]
    return found[0] if len(found) == 1 else -1


def _members(ranks: Ranks) -> list[int]:
    return list(range(ranks.world)) if ranks.group is None else dist.get_process_group_ranks(ranks.group)


def _whole_mesh(model: nn.Module, ranks: Ranks) -> Any:
    """Return the mesh of a parameter that has all processes; None where there is none."""
    params = (param for _, module in named_modules(model) for param in own_parameters(module).values())
    meshes = (param.device_mesh for param in params if is_sharded(param))  # type: ignore[attr-defined]
    return next((mesh for mesh in meshes if mesh.size() == ranks.world), None)


def _groups_of_mesh(tensor: Any, whole: Any, world: int) -> npt.NDArray[np.int64] | None:
    """Return the processes that hold the same part of a DTensor, row by row."""
    mesh, names = tensor.device_mesh, tensor.device_mesh.mesh_dim_names or ()
    if mesh.size() == world:
        whole, cut = mesh, [not placement.is_replicate() for placement in tensor.placements]
    elif whole is None or not names or not set(names) <= set(whole.mesh_dim_names or ()):
        return None
    else:  # FSDP2's parameters lie on the dimension of the batches alone, and are the same along the others
        placements = dict(zip(names, tensor.placements, strict=True))
        cut = [name in placements and not placements[name].is_replicate() for name in whole.mesh_dim_names]
    order = [dim for dim, is_cut in enumerate(cut) if is_cut] + [dim for dim, is_cut in enumerate(cut) if not is_cut]
    copies = int(np.prod([size for size, is_cut in zip(whole.mesh.shape, cut, strict=True) if not is_cut], dtype=int))
    return np.asarray(whole.mesh.permute(order).reshape(-1, copies).tolist(), np.int64)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield the parameters and buffers that a model's processes should hold alike, by name; True for a buffer."""
    in_fsdp2, in_fsdp1 = _of_sharding_wrappers(model)
    modules = list(named_modules(model))
    ignored = {
        f"{plain_name(name)}.{key}" if name else key for name, module in modules for key in ignored_by_ddp(module)
    }
    seen: set[int] = set()
    for name, module in modules:
        prefix = f"{plain_name(name)}." if plain_name(name) else ""
        for key, param in own_parameters(module).items():
            # FSDP makes a DTensor, or a piece, of all but what it was told to ignore, which is nobody's business.
            is_left = (id(module) in in_fsdp2 and not is_sharded(param)) or (
                id(module) in in_fsdp1 and not is_flat_piece(param)
            )
            if id(param) not in seen and not is_left and prefix + key not in ignored:
                yield prefix + key, param, False
            seen.add(id(param))
        for key, buffer in {} if is_normalization(module) else own_buffers(module):
            # Numbers of processes, offsets and seeds are integers, and only DDP makes these the same for all.
            is_theirs = not (buffer.is_floating_point() or buffer.is_complex()) and bool(in_fsdp1 or in_fsdp2)
            if id(buffer) not in seen and not is_theirs and prefix + key not in ignored:
                yield prefix + key, buffer, True
            seen.add(id(buffer))


def _of_sharding_wrappers(model: nn.Module) -> tuple[set[int], set[int]]:
    """Return the modules in FSDP2, and those in FSDP1, by their ids."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    found: tuple[set[int], set[int]] = set(), set()
    for inside, kind in zip(found, (fsdp2_class(), FullyShardedDataParallel), strict=True):
        for _, module in named_modules(model):
            if id(module) not in inside and isinstance(module, kind):
                inside |= {id(part) for _, part in named_modules(module)}
    return found

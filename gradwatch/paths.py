"""The paths of the gradient from the loss back to the inputs, through the graph of the layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from gradwatch.layer_kinds import is_attention
from gradwatch.records import some_of
from gradwatch.snapshot import Array, Snapshot

_COMPARABLE = 0.5  # of the longest path; one that is shorter leads to a part beside the network
Followers = tuple[tuple[int, ...], ...]  # for each of some layers, those nearest to it on the way to the loss


@lru_cache(maxsize=64)
def _followers(feeds: tuple[str, ...], members: tuple[int, ...]) -> Followers:
    """Return for each member the members that take its output, directly or past layers that are none; by number."""
    number = {place: i for i, place in enumerate(members)}
    ahead: list[frozenset[int]] = [frozenset()] * len(feeds)
    for place in range(len(feeds) - 1, -1, -1):
        takers = [int(other) for other in feeds[place].split()]
        near = [frozenset([number[other]]) if other in number else ahead[other] for other in takers if other > place]
        ahead[place] = frozenset().union(*near)
    return tuple(tuple(sorted(ahead[place])) for place in members)


@dataclass(frozen=True)
class Paths:
    """Some layers of a Snapshot, as nodes of a graph that leads to the loss.

    Where a Snapshot does not know its graph, the layers are one chain in their order.

    Attributes:
        followers: for each layer the numbers of the layers that take its output.

    Example:
        >>> fork = Snapshot(0, ("side", "trunk", "join"), feeds=("2", "2", ""))
        >>> paths = Paths.of(fork, [0, 1, 2])
        >>> paths.followers, paths.starts
        (((2,), (2,), ()), (0, 1))
        >>> paths.shares(np.array([1e-6, 0.5, 1.0]))
        array([1.e-06, 5.e-01, 1.e+00])
    """

    followers: Followers

    @classmethod
    def of(cls, snapshot: Snapshot, places: Iterable[int]) -> Paths:
        """Return the paths through the layers at some places."""
        members = tuple(int(place) for place in places)
        if len(snapshot.feeds) != len(snapshot.layers):
            return cls(tuple((i + 1,) if i + 1 < len(members) else () for i in range(len(members))))
        return cls(_followers(snapshot.feeds, members))

    @cached_property
    def fed(self) -> frozenset[int]:
        """The layers that take the output of others."""
        return frozenset(other for others in self.followers for other in others)

    @property
    def starts(self) -> tuple[int, ...]:
        """The layers that take the output of none of the others: the ends of the gradient's way."""
        return tuple(i for i in range(len(self.followers)) if i not in self.fed)

    @property
    def parts(self) -> list[list[int]]:
        """The layers in groups that no path connects, such as an actor and a critic."""
        group = list(range(len(self.followers)))

        def root(i: int) -> int:
            while group[i] != i:
                i = group[i] = group[group[i]]
            return i

        for i, others in enumerate(self.followers):
            for other in others:
                group[root(other)] = root(i)
        found: dict[int, list[int]] = {}
        for i in range(len(group)):
            found.setdefault(root(i), []).append(i)
        return list(found.values())

    def shares(self, norms: Array) -> Array:
        """Return each norm over the largest on the way to the loss, by the way on which that is smallest.

        It is 1 at the end of a way, and where the largest is not finite.
        """
        loudest = np.array(norms, np.float64)
        for i in range(len(norms) - 1, -1, -1):
            if self.followers[i]:
                loudest[i] = max(loudest[i], min(loudest[other] for other in self.followers[i]))
        usable = np.isfinite(loudest) & (loudest > 0)
        result: Array = np.divide(norms, loudest, out=np.ones(len(norms)), where=usable)
        return result

    def multiples(self, norms: Array) -> Array:
        """Return each norm over that at the end of its way, by the way on which that is largest.

        It is 1 for exact zeros and non-finite values. The end, and not the smallest: a branch that starts near zero
        (ReZero, LoRA, a zero-initialized BatchNorm) is faint inside, and every layer before it would be loud.
        """
        ends, result = np.full(len(norms), np.nan), np.ones(len(norms))
        for i in range(len(norms) - 1, -1, -1):
            known = [ends[other] for other in self.followers[i] if ends[other] > 0]
            is_usable = bool(norms[i] > 0 and np.isfinite(norms[i]))
            ends[i] = max(known) if known else norms[i] if is_usable else np.nan
            result[i] = norms[i] / ends[i] if is_usable else 1.0
        return result

    def longest(self, lengths: Sequence[float]) -> dict[int, tuple[float, tuple[int, ...]]]:
        """Return for each start the longest path from it, and its length; each layer adds a length of its own."""
        best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * len(self.followers)
        after = [-1] * len(self.followers)
        total = [0.0] * len(self.followers)
        for i in range(len(self.followers) - 1, -1, -1):
            total[i] = lengths[i]
            if self.followers[i]:
                after[i] = max(self.followers[i], key=lambda other: total[other])
                total[i] += total[after[i]]
        for start in self.starts:
            path = [start]
            while after[path[-1]] >= 0:
                path.append(after[path[-1]])
            best[start] = total[start], tuple(path)
        return {start: best[start] for start in self.starts}


def main_path(snapshot: Snapshot) -> list[int]:
    """Return the places of the layers on one path from the inputs to the loss; all of them where no graph is known.

    Of the paths with at least half as many weighted layers as the longest it is the one at whose first layer most of
    the gradient is left: a fault of weights is one only where no good path is left. Gains of layers beside one another
    multiply nothing.

    Example:
        >>> actor_and_critic = Snapshot(
        ...     0, ("actor.0", "actor.1", "critic.0", "critic.1"), feeds=("1", "", "3", ""),
        ...     grad_output_norm=[1e-3, 1, 0.5, 1], weight_gain=[1] * 4,
        ... )
        >>> main_path(actor_and_critic)
        [2, 3]
    """
    if len(snapshot.feeds) != len(snapshot.layers):
        return list(range(len(snapshot.layers)))
    norms = snapshot.grad_output_norm
    places = np.flatnonzero(~np.isnan(norms) | ~np.isnan(snapshot.weight_gain))
    if not len(places):
        return list(range(len(snapshot.layers)))
    paths = Paths.of(snapshot, places.tolist())
    is_weighted = ~np.isnan(snapshot.weight_gain[places])
    found = paths.longest((is_weighted + 1e-6).tolist())  # of two that have the same weights, that with more layers
    longest = max(length for length, _ in found.values())
    long = [path for length, path in found.values() if length >= _COMPARABLE * longest]
    shares = paths.shares(np.nan_to_num(norms[places], nan=0.0))
    return [int(places[i]) for i in max(long, key=lambda path: (_share_at_start(path, is_weighted, shares), len(path)))]


def _share_at_start(path: Sequence[int], is_weighted: npt.NDArray[np.bool_], shares: Array) -> float:
    return float(next((shares[i] for i in path if is_weighted[i]), 0.0))


_HOLDERS = ("ParameterList", "ParameterDict")  # of torch: never called, whoever uses what they hold


def beside_the_way(snapshot: Snapshot) -> npt.NDArray[np.bool_]:
    """Return for each parameter True if it gets no gradient because its layer is beside the way to the loss.

    It is where the layer was not called; where its output is one more of a network that learns, and the loss does not
    take it; and where its gradient is exactly zero while there is another way for the gradient. A layer that was called
    with data, and whose output lost its graph, is not: there something is cut off. False where nothing is known.

    Example:
        >>> snapshot = Snapshot(
        ...     0, ("fc", "spare"), grad_output_norm=[1, np.nan], ran=[1, 0],
        ...     params=("fc.weight", "spare.weight"), param_grad_norm=[1, np.nan],
        ... )
        >>> beside_the_way(snapshot)
        array([False,  True])
    """
    place = {layer: i for i, layer in enumerate(snapshot.layers)}
    norms, is_graph_known = snapshot.grad_output_norm, len(snapshot.feeds) == len(snapshot.layers)
    alive = np.nan_to_num(norms, nan=0.0) > 0
    learned_from, has_good_start = _behind(snapshot, alive) if is_graph_known else (alive, False)
    result = np.zeros(len(snapshot.params), np.bool_)
    for i in np.flatnonzero(~(snapshot.param_grad_norm > 0)).tolist():
        layer = _user_of(snapshot, place, snapshot.params[i])
        if layer is None or np.isnan(snapshot.ran[layer]):
            continue
        is_zero = snapshot.param_grad_norm[i] == 0
        result[i] = snapshot.ran[layer] == 0 or (has_good_start if is_zero else learned_from[layer])
    return result


def _user_of(snapshot: Snapshot, place: Mapping[str, int], param: str) -> int | None:
    """Return the place of the layer that computes with a parameter; None where it is not known."""
    owner = param.rpartition(".")[0] or "(root)"
    outer = place.get(owner.rpartition(".")[0])
    layer = place.get(owner)
    if layer is None or snapshot.kinds[layer] in _HOLDERS:
        return None
    if outer is not None and snapshot.ran[layer] == 0 and is_attention(snapshot.kinds[outer]):
        return outer  # torch's attention computes with the weights of a part that it never calls
    return layer


def _behind(snapshot: Snapshot, alive: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], bool]:
    """Return for each layer if it, or one it takes its input from, gets a gradient, and if a first layer gets one."""
    learned_from = alive.copy()
    takes_from_reached = np.zeros(len(alive), np.bool_)
    reached = ~np.isnan(snapshot.grad_output_norm)
    for place, takers in enumerate(snapshot.feeds):
        for other in map(int, takers.split()):
            learned_from[other] |= learned_from[place]
            takes_from_reached[other] |= reached[place]
    return learned_from, bool((alive & ~takes_from_reached).any())


def unused_in_words(history: Sequence[Snapshot]) -> str:
    """Return in words which parameters had no gradient in any Snapshot and stand beside the way; empty for none.

    Example:
        >>> params = {"params": ("fc.weight", "spare.weight"), "param_grad_norm": [1, np.nan]}
        >>> unused_in_words([Snapshot(0, ("fc", "spare"), grad_output_norm=[1, np.nan], ran=[1, 0], **params)])
        'unused: 1 of 2 parameters get no gradient, as nothing on the way to the loss uses them: spare.weight'
    """
    known = [snapshot for snapshot in history if snapshot.params and (snapshot.param_grad_norm > 0).any()]
    if not known:
        return ""
    unused: set[str] = set(known[-1].params)
    for snapshot in known:
        beside = beside_the_way(snapshot)
        unused &= {name for name, is_beside in zip(snapshot.params, beside.tolist(), strict=True) if is_beside}
        if not unused:
            return ""
    names = [name for name in known[-1].params if name in unused and not _is_canceled_bias(name, unused, known[-1])]
    if not names:
        return ""
    text = f"unused: {len(names)} of {len(known[-1].params)} parameters get no gradient, as nothing on the way to the "
    return f"{text}loss uses them: {some_of(names)}"


def _is_canceled_bias(name: str, unused: set[str], snapshot: Snapshot) -> bool:
    weight = name.removesuffix("bias") + "weight"
    return name.endswith("bias") and weight in snapshot.params and weight not in unused

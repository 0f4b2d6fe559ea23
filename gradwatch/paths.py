"""The paths of the gradient from the loss back to the inputs, through the graph of the layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

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

    @property
    def starts(self) -> tuple[int, ...]:
        """The layers that take the output of none of the others: the ends of the gradient's way."""
        fed = {other for others in self.followers for other in others}
        return tuple(i for i in range(len(self.followers)) if i not in fed)

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


def _share_at_start(path: Sequence[int], is_weighted: np.typing.NDArray[np.bool_], shares: Array) -> float:
    return float(next((shares[i] for i in path if is_weighted[i]), 0.0))

"""Short names of layers: without what all have in common, shortened by whole words, and always unique."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

_GAP = "..."  # stands for the words that are left out; plain ASCII, as logs and old consoles show it too
_SHORT_ENOUGH = 24  # names up to here are read at a glance, and can be copied as they are
_NUMBER = re.compile(r"\d+")
Words = tuple[str, ...]


def common_prefix(names: Iterable[str]) -> str:
    """Return the words that all dotted names begin with, with their dot; each name keeps a word of its own.

    The module itself, ``(root)``, is in front of nothing and does not count.

    Example:
        >>> common_prefix(["net.encoder.0", "net.encoder.1", "net.head", "(root)"])
        'net.'
        >>> common_prefix(["net.fc"]), common_prefix(["conv", "conv.bias"])
        ('', '')
    """
    paths = [name.split(".") for name in dict.fromkeys(names) if not name.startswith("(")]
    if len(paths) < 2:
        return ""
    least = min(map(len, paths)) - 1
    shared = 0
    while shared < least and len({path[shared] for path in paths}) == 1:
        shared += 1
    return "".join(f"{word}." for word in paths[0][:shared])


def short_names(names: Sequence[str], width: int) -> list[str]:
    """Return the names without their common prefix, those longer than ``width`` without some of their words.

    Where all are short, with at most 24 characters, they stay as they are. Names that differ in numbers alone lose the
    same words. A short name stands for one layer only: no other layer has its words in the same order. Where that takes
    more room, a name stays longer than ``width``.

    Example:
        >>> blocks = [f"bert.layer.{i}.{end}.dense" for i in (0, 11) for end in ("attention.output", "output")]
        >>> short_names(blocks, 20)
        ['0...output.dense', '0.output.dense', '11...output.dense', '11.output.dense']
    """
    if max(map(len, names), default=0) <= min(width, _SHORT_ENOUGH):
        return list(names)
    prefix = common_prefix(names)
    cut = {name: name.removeprefix(prefix) for name in names}
    groups: dict[str, list[Words]] = {}
    for name in dict.fromkeys(cut.values()):
        groups.setdefault(_NUMBER.sub("#", name), []).append(tuple(name.split(".")))
    shapes = [tuple(shape.split(".")) for shape in groups]
    found: dict[str, str] = {}
    for shape, group in zip(shapes, groups.values(), strict=True):
        alike = _Alike(shape, group, [other for other in shapes if other != shape and other[-1] == shape[-1]])
        found |= alike.shortened(width)
    short = [found[cut[name]] for name in names]
    # Names with dots in a row could be mistaken for shortened ones.
    return short if len(set(short)) == len(set(names)) else list(names)


@dataclass(frozen=True)
class _Alike:
    """Names that differ in numbers alone, as words, and the shapes of others that end in the same word."""

    shape: Words
    members: Sequence[Words]
    others: Sequence[Words]

    @cached_property
    def _droppable(self) -> list[int]:
        """The places of words that all members share, in the order in which they are dropped; the first goes last."""
        same = [place for place in range(len(self.shape) - 1) if len({words[place] for words in self.members}) == 1]
        return [*(place for place in same if place), *(place for place in same if not place)]

    def shortened(self, width: int) -> dict[str, str]:
        """Return name -> short name."""
        longest = max(self.members, key=lambda words: len(".".join(words)))
        kept = set(range(len(self.shape)))
        for place in self._droppable:
            if len(_joined(longest, kept)) <= width:
                break
            if self._is_clear(kept - {place}):
                kept = kept - {place}
        for place in self._droppable:  # what was dropped early may have room again
            if len(_joined(longest, kept | {place})) <= max(width, len(_joined(longest, kept))):
                kept = kept | {place}
        return {".".join(words): _joined(words, kept) for words in self.members}

    def _is_clear(self, kept: set[int]) -> bool:
        """Return True if no other shape has the words of this one, in their order."""
        runs = [re.escape(".".join(self.shape[place] for place in run)) for run in _runs(sorted(kept))]
        pattern = re.compile(("" if 0 in kept else r".*\.") + r"\..*\.".join(runs), re.DOTALL)
        return not any(pattern.fullmatch(".".join(other)) for other in self.others)


def _joined(words: Words, kept: set[int]) -> str:
    runs = _runs(sorted(kept))
    text = _GAP.join(".".join(words[place] for place in run) for run in runs)
    return text if 0 in kept else f"{_GAP}{text}"


def _runs(places: Sequence[int]) -> list[list[int]]:
    """Split places, in order, where one is missing."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs

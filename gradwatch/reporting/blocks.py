"""Rows of a table of layers, in which repeated blocks are folded into one: ``encoder.layers.0-11.mlp``."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

# Numbers that are folded, from the surest sign of a repeated block to the weakest.
_PLACE = re.compile(r"(?<![^.])\d+(?![^.])")  # a word of its own: the place in a list
_IN_BLOCK = re.compile(rf"{_PLACE.pattern}|\d+(?=[^.]*\.)")  # also in a block's name: denselayer12.conv
_ANY = re.compile(r"\d+")
_MOST_RUNS = 2  # 0-4,6-11 is read at a glance; of more runs only both ends are named


@dataclass(frozen=True)
class Row:
    """A layer, or the layers at the same place of repeated blocks.

    Attributes:
        name: of the layer; of several the numbers are folded, ``encoder.layers.0-11.mlp``. No two rows share one.
        members: places of its layers, in network order.
    """

    name: str
    members: tuple[int, ...]

    @property
    def is_folded(self) -> bool:
        """Return True for several layers."""
        return len(self.members) > 1


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of a folded row's values; NaN where none is known.

    Example:
        >>> Spread.of([3.0, math.nan, 1.0, 2.0, math.inf])
        Spread(median=2.5, lowest=1.0, highest=inf)
    """

    median: float = math.nan
    lowest: float = math.nan
    highest: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of the values that are known."""
        known = [value for value in values if not math.isnan(value)]
        return cls(median(known), min(known), max(known)) if known else cls()


def rows_of(
    names: Sequence[str],
    kinds: Sequence[str] = (),
    marks: Sequence[str] = (),
    apart: Collection[int] = (),
    most: int = 40,
) -> list[Row]:
    """Return the rows for layers in network order: one each where that is few enough, else with blocks folded.

    Layers whose names differ in numbers alone share a row if their kind is the same. Sick layers keep their own rows;
    where there are too many of them, those with the same mark share a row. Then numbers within a word are folded too.
    There may still be more than ``most`` rows, in a network that repeats nothing.

    Args:
        names: of the layers; no two are the same.
        kinds: classes of the layers.
        marks: what is wrong with each layer; empty for a healthy one. Layers with other marks never share a row.
        apart: places of layers that always keep a row, such as those with the largest gradient.
        most: number of rows that are enough.

    Example:
        >>> layers = ["embed", *(f"layers.{i}.{end}" for i in range(12) for end in ("attn", "mlp")), "head"]
        >>> [row.name for row in rows_of(layers, most=10)]
        ['embed', 'layers.0-11.attn', 'layers.0-11.mlp', 'head']
        >>> sick = ["vanishing" if name == "layers.0.mlp" else "" for name in layers]
        >>> [row.name for row in rows_of(layers, marks=sick, most=10)]
        ['embed', 'layers.0-11.attn', 'layers.0.mlp', 'layers.1-11.mlp', 'head']
    """
    alone = [Row(name, (place,)) for place, name in enumerate(names)]
    if len(alone) <= most:
        return alone
    told = list(marks) or [""] * len(names)
    sick = {place for place, mark in enumerate(told) if mark}
    for numbers, own in ((_PLACE, sick), (_PLACE, set()), (_IN_BLOCK, set()), (_ANY, set())):
        rows = _folded(names, kinds, told, {*apart, *own}, numbers)
        if len(rows) <= most:
            break
    return rows


def extremes(*columns: Sequence[float]) -> set[int]:
    """Return the places of the lowest and the highest value of each column, where its values differ.

    Example:
        >>> sorted(extremes([3.0, math.nan, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]))
        [0, 2]
    """
    found: set[int] = set()
    for values in columns:
        known = sorted((value, place) for place, value in enumerate(values) if not math.isnan(value))
        if known and known[0][0] < known[-1][0]:
            found |= {known[0][1], known[-1][1]}
    return found


def _folded(
    names: Sequence[str], kinds: Sequence[str], marks: Sequence[str], apart: set[int], numbers: re.Pattern[str]
) -> list[Row]:
    groups: dict[tuple[str | int, ...], list[int]] = {}
    for place, name in enumerate(names):
        kind = kinds[place] if kinds else ""
        key = (place,) if place in apart else (numbers.sub("#", name), kind, marks[place])
        groups.setdefault(key, []).append(place)
    rows: list[Row] = []
    used = set(names)
    for group in groups.values():
        label = _label([names[place] for place in group], numbers)
        # Layers of two kinds, or sick and healthy ones, may have the same ranges: the second of them stay unfolded.
        folds = len(group) > 1 and label not in used
        rows += [Row(label, tuple(group))] if folds else [Row(names[place], (place,)) for place in group]
        used.add(label)
    return sorted(rows, key=lambda row: row.members[0])


def _label(names: Sequence[str], numbers: re.Pattern[str]) -> str:
    """Return the first name with the range of all names' numbers at each place."""
    ranges = map(_range, zip(*map(numbers.findall, names), strict=True))
    return numbers.sub(lambda _: next(ranges), names[0])


def _range(numbers: Sequence[str]) -> str:
    """Return numbers in short.

    Example:
        >>> _range(["1", "2", "0"]), _range(["0", "1", "7"]), _range(["0", "2", "4", "6"])
        ('0-2', '0-1,7', '0-6')
    """
    known = sorted({int(number): number for number in numbers}.items())
    breaks = [i for i, ((before, _), (after, _)) in enumerate(pairwise(known), 1) if after > before + 1]
    if len(breaks) >= _MOST_RUNS:
        breaks = []
    runs = [known[start:end] for start, end in pairwise([0, *breaks, len(known)])]
    return ",".join(run[0][1] if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs)

"""The values of a large network for loggers: by block in place of by layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gradwatch.records import Finding, Snapshot
from gradwatch.reporting.blocks import Row, Spread, rows_of
from gradwatch.reporting.keys import DEFAULT_COLUMNS

# Weights & Biases wants under 10,000 keys in a project (docs.wandb.ai/models/track/limits), and 1,000 layers have up to
# 5,000. TensorBoard draws a chart for each key: 10,000 of them open no more.
MOST_LAYERS = 1000
_MOST_ROWS = 100
_MOST_FOUND = 100  # layers with a finding
_ENDS = ("median", "lowest", "highest")


class BlockValues:
    """Makes of a Snapshot with very many layers one with a few, which a logger can take.

    Repeated blocks are folded, as in the table at the end of a fit. Of each the median, the lowest and the highest are
    three layers of the new Snapshot, such as ``encoder.layers.0-1199.mlp median``. A layer that repeats nothing stays
    itself. The layers that findings were about follow, each by its own name: at most 100, in the order in which they
    were found. Their places are kept free from the start, since the place is part of TensorBoard's tags.

    Where less repeats, stretches of neighbours are taken together instead: ``stem.3 to stem.27 median``.

    Up to 1,000 layers a Snapshot is returned as it is.

    Example:
        >>> layers = tuple(f"layers.{i}" for i in range(2000))
        >>> folded = BlockValues()(Snapshot(0, layers, grad_norm=range(2000)), [])
        >>> folded.layers[:3], folded.grad_norm[:3]
        (('layers.0-1999 median', 'layers.0-1999 lowest', 'layers.0-1999 highest'), array([ 999.5,    0. , 1999. ]))
    """

    def __init__(self) -> None:
        self._found: dict[str, None] = {}
        self._rows: tuple[tuple[str, ...], list[Row]] = ((), [])

    def __call__(self, snapshot: Snapshot, findings: Iterable[Finding]) -> Snapshot:
        """Return the Snapshot for a logger."""
        if len(snapshot.layers) <= MOST_LAYERS:
            return snapshot
        if self._rows[0] != snapshot.layers:
            self._rows = snapshot.layers, _rows(snapshot)
        place = {layer: i for i, layer in enumerate(snapshot.layers)}
        new = (layer for finding in findings for layer in finding.layers if layer in place)
        self._found |= dict.fromkeys(list(dict.fromkeys(new))[:_MOST_FOUND])
        found = [layer for layer in list(self._found)[:_MOST_FOUND] if layer in place]
        at = [place[layer] for layer in found]
        free = _MOST_FOUND - len(found)
        names = [name for row in self._rows[1] for name in _names(row)]
        columns: dict[str, Any] = {
            column: [*self._values(getattr(snapshot, column)), *getattr(snapshot, column)[at], *[np.nan] * free]
            for column in DEFAULT_COLUMNS
        }
        columns |= {name: getattr(snapshot, name) for name in ("total_norm", "total_norm_after", "loss", "skipped")}
        return Snapshot(snapshot.step, (*names, *found, *(f"(free {i})" for i in range(free))), **columns)

    def _values(self, column: Any) -> Iterable[float]:
        values = column.tolist()
        for row in self._rows[1]:
            spread = Spread.of([values[place] for place in row.members])
            yield from (getattr(spread, end) for end in _ENDS) if row.is_folded else [spread.median]


def _names(row: Row) -> Sequence[str]:
    return [f"{row.name} {end}" for end in _ENDS] if row.is_folded else [row.name]


def _rows(snapshot: Snapshot) -> list[Row]:
    """Return the rows; where there are too many of them, stretches of neighbours."""
    rows = rows_of(snapshot.layers, snapshot.kinds, most=_MOST_ROWS)
    if len(rows) <= _MOST_ROWS:
        return rows
    stretches = np.array_split(np.arange(len(snapshot.layers)), _MOST_ROWS)
    ends = [(snapshot.layers[places[0]], snapshot.layers[places[-1]]) for places in stretches]
    return [Row(f"{a} to {b}", tuple(places.tolist())) for (a, b), places in zip(ends, stretches, strict=True)]

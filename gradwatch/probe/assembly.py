"""Columns become Snapshots, with the layers in the order in which the network runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from gradwatch.probe.columns import Columns
from gradwatch.probe.layers import kind_of, network_order
from gradwatch.records import COLUMNS, Snapshot


class Assembly:
    """Makes the Snapshots of one run.

    Args:
        layers: name -> module, in the order of the columns.

    Example:
        >>> empty = dict.fromkeys(COLUMNS, np.full(2, np.nan))
        >>> trace = {"trace_step": np.empty(0), "trace_loss": np.empty(0), "trace_total_norm": np.empty(0)}
        >>> columns = {**empty, **trace, "first_calls": {"head": 1, "body": 0}, "calls": {}, "total_norm": 1.0}
        >>> Assembly({"head": nn.Linear(1, 1), "body": nn.ReLU()}).make(0, columns).layers
        ('body', 'head')
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = {name: kind_of(module) for name, module in layers.items()}
        self._order: list[int] | None = None
        self._trace = _no_trace()

    def make(self, step: int, columns: Columns) -> Snapshot | None:
        """A Snapshot; None where nobody had a gradient, so that the trace goes into the next one."""
        trace = {name: np.concatenate([earlier, columns.pop(name)]) for name, earlier in self._trace.items()}
        order = self._order_by(columns.pop("first_calls"))
        self._trace = trace if np.isnan(columns["total_norm"]) else _no_trace()
        if self._trace is trace:
            return None
        names, kinds = list(self._layers), list(self._layers.values())
        calls = columns.pop("calls")
        fields: dict[str, Any] = {
            **columns,
            **trace,
            **{name: columns[name][order] for name in COLUMNS},
            "calls": {names[i]: calls[i] for i in order if i in calls},
            "loss": float(trace["trace_loss"][-1]) if len(trace["trace_loss"]) else float("nan"),
        }
        return Snapshot(step, tuple(names[i] for i in order), tuple(kinds[i] for i in order), **fields)

    def _order_by(self, first_calls: Mapping[str, float]) -> list[int]:
        """The places of the layers in network order, once one of them has run."""
        if self._order is None and first_calls:
            places = {name: i for i, name in enumerate(self._layers)}
            self._order = [places[name] for name in network_order(list(places), first_calls)]
        return list(range(len(self._layers))) if self._order is None else self._order


def _no_trace() -> dict[str, Any]:
    return {"trace_step": np.empty(0, np.int64), "trace_loss": np.empty(0), "trace_total_norm": np.empty(0)}

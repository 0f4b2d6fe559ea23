"""The network of the report: a tree of its modules in which repeated blocks are folded, and a table of its layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradwatch.records import Finding, Snapshot
from gradwatch.reporting.blocks import Spread
from gradwatch.reporting.keys import layer_values
from gradwatch.reporting.text import number, percent

_FOLD_FROM = 3  # alike blocks in a row; two are read as fast as their fold
_NUMBERED = re.compile(r"(.*?)(\d+)")
_COLUMNS = (  # column of a Snapshot, head, explanation
    ("size", "trained numbers", "number of its trained parameters"),
    ("grad_norm", "gradient", "L2 norm of the gradient of its parameters"),
    ("weight_norm", "weights", "L2 norm of its parameters"),
    ("update_to_weight", "update / weight", "size of the step over that of the weights; about 1e-3 is usual"),
    ("grad_output_norm", "gradient at output", "L2 norm of the gradient at its output"),
    ("gain", "gain", "gradient at its input over the gradient at its output; about 1 is usual"),
    ("output_rms", "output", "root mean square of its output"),
    ("zero_fraction", "zero %", "share of exact zeros in its gradient"),
    ("dead_fraction", "dead %", "share of a ReLU's units that were active for no sample"),
    ("saturated_fraction", "flat %", "share of a bounded activation's outputs where it is flat"),
    ("nonfinite", "NaN, Inf", "number of NaN and Inf in the gradient of its parameters"),
)


@dataclass
class Node:
    """A module, or several alike ones in a row, and what is in it.

    Attributes:
        label: the last part of its name; of alike modules a range, ``0 to 11``.
        name: its whole name; empty for several.
        kind: its class, where it is known.
        row: its place among the layers; None where it is none itself.
        marks: kind of finding -> number of layers in it that have one.
        grads, updates: spread over its layers.
        children: what is in it, in the order of the network.
        copies: number of alike modules that it stands for.
        is_open: its children are shown at first.
    """

    label: str
    name: str = ""
    kind: str = ""
    row: int | None = None
    marks: dict[str, int] = field(default_factory=dict)
    grads: Spread = field(default_factory=Spread)
    updates: Spread = field(default_factory=Spread)
    children: list[Node] = field(default_factory=list)
    copies: int = 1
    is_open: bool = False

    def layers(self) -> Iterator[int]:
        """Yield the places of all layers in it."""
        if self.row is not None:
            yield self.row
        for child in self.children:
            yield from child.layers()

    @property
    def shape(self) -> tuple[object, ...]:
        """Return what alike modules have in common: their class, and the names and classes in them."""
        return (self.kind, self.row is None, *((child.label, child.shape) for child in self.children))


def tree_of(snapshot: Snapshot, marks: Mapping[str, Sequence[str]], modules: Mapping[str, str]) -> list[Node]:
    """Return the modules of a network, in its order.

    Args:
        snapshot: its layers, and their numbers.
        marks: layer -> kinds of the findings about it.
        modules: name -> class of the modules around the layers, as far as it is known.

    Example:
        >>> layers = ("stem", *(f"blocks.{i}.fc" for i in range(12)))
        >>> stem, blocks = tree_of(Snapshot(0, layers), {"blocks.3.fc": ["dead"]}, {})
        >>> blocks.label, blocks.marks, [(node.label, node.copies) for node in blocks.children]
        ('blocks', {'dead': 1}, [('0 to 11', 12)])
    """
    root = Node("")
    for row, layer in enumerate(snapshot.layers):
        node, parts = root, layer.split(".")
        for depth, part in enumerate(parts, 1):
            found = next((child for child in node.children if child.label == part), None)
            if found is None:
                name = ".".join(parts[:depth])
                found = Node(part, name, modules.get(name, ""))
                node.children.append(found)
            node = found
        node.row, node.kind = row, snapshot.kinds[row]
    _fold(root)
    _count(root, snapshot, marks)
    return root.children


def _fold(node: Node) -> None:
    """Put alike children in a row, numbered one after the other, into one."""
    for child in node.children:
        _fold(child)
    runs: list[list[Node]] = []
    for child in node.children:
        if runs and _follows(runs[-1][-1], child):
            runs[-1].append(child)
        else:
            runs.append([child])
    node.children = [each for run in runs for each in ([_folded(run)] if len(run) >= _FOLD_FROM else run)]


def _follows(before: Node, node: Node) -> bool:
    first, second = _NUMBERED.fullmatch(before.label), _NUMBERED.fullmatch(node.label)
    is_next = first and second and first[1] == second[1] and int(second[2]) == int(first[2]) + 1
    return bool(is_next) and before.shape == node.shape


def _folded(run: list[Node]) -> Node:
    return Node(f"{run[0].label} to {run[-1].label}", kind=run[0].kind, children=run, copies=len(run))


def _count(node: Node, snapshot: Snapshot, marks: Mapping[str, Sequence[str]]) -> None:
    for child in node.children:
        _count(child, snapshot, marks)
    rows = list(node.layers())
    for row in rows:
        for kind in marks.get(snapshot.layers[row], ()):
            node.marks[kind] = node.marks.get(kind, 0) + 1
    node.grads = Spread.of(snapshot.grad_norm[rows].tolist())
    node.updates = Spread.of(snapshot.update_to_weight[rows].tolist())


@dataclass(frozen=True)
class Cell:
    """A value of the table: as text, and as a number to sort by; empty for none."""

    text: str
    order: str


@dataclass(frozen=True)
class LayerTable:
    """The layers of one step; columns without any value are left out."""

    heads: Sequence[tuple[str, str]]  # with explanation
    rows: Sequence[tuple[str, str, Sequence[Cell], Sequence[str]]]  # layer, kind, values, kinds of findings


def table_of(snapshot: Snapshot, marks: Mapping[str, Sequence[str]]) -> LayerTable:
    """Return the layers of a step with all their values."""
    columns = {name: layer_values(snapshot, name) for name, _, _ in _COLUMNS}
    known = [name for name, values in columns.items() if not np.isnan(values).all()]
    heads = [(head, text) for name, head, text in _COLUMNS if name in known]
    cells = [[_cell(name, value) for value in columns[name].tolist()] for name in known]
    lines = zip(*cells, strict=True) if cells else ((),) * len(snapshot.layers)
    rows = [
        (layer, kind, list(line), marks.get(layer, ()))
        for layer, kind, line in zip(snapshot.layers, snapshot.kinds, lines, strict=True)
    ]
    return LayerTable(heads, rows)


def _cell(name: str, value: float) -> Cell:
    if math.isnan(value):
        return Cell("", "")
    if math.isinf(value):
        return Cell("NaN/Inf", "1e999")
    text = (
        percent(value)
        if name.endswith("fraction")
        else f"{value:.0f}"
        if name in ("size", "nonfinite")
        else number(value)
    )
    return Cell(text, f"{value:.6g}")


def marks_of(snapshot: Snapshot, findings: Sequence[Finding]) -> dict[str, tuple[str, ...]]:
    """Return layer -> kinds of its findings; those that are gone follow in brackets.

    Example:
        >>> gone = Finding("spike", ("fc.weight",), 3, 9.0, 4.0, "it jumps", closed_step=5)
        >>> marks_of(Snapshot(6, ("fc",), params=("fc.weight",)), [gone])
        {'fc': ('(spike)',)}
    """
    marks: dict[str, dict[str, None]] = {}
    for finding in sorted(findings, key=lambda finding: not finding.is_open):
        mark = finding.kind if finding.is_open else f"({finding.kind})"
        for name in finding.layers:
            layer = layer_of(snapshot, name)
            if layer is not None and finding.kind not in marks.get(layer, {}):
                marks.setdefault(layer, {})[mark] = None
    return {layer: tuple(found) for layer, found in marks.items()}


def layer_of(snapshot: Snapshot, name: str) -> str | None:
    """Return the layer that a name of a finding is about: itself, or the one that holds the parameter; else None."""
    if name in snapshot.layers:
        return name
    owner = name.rpartition(".")[0] or "(root)"
    return owner if name in (*snapshot.params, *snapshot.left_out) and owner in snapshot.layers else None

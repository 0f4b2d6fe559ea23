"""Fields of a record's lines, each checked when it is read: a damaged line must not pass for a Snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from gradwatch.containment import OutOfService
from gradwatch.records import COLUMNS, Array, Finding, Snapshot

FORMAT, VERSION = "gradwatch", 1
NAMES = ("layers", "kinds", "params", "left_out")
NUMBERS = ("loss", "total_norm", "total_norm_after", "learning_rate", "input_rms", "loss_scale")
WORDS = ("optimizer", "dtype")
TRACES = ("trace_loss", "trace_total_norm")
ARRAYS = (*COLUMNS, "param_grad_norm", *TRACES)
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)  # of reading a damaged line

T = TypeVar("T")
Line = Mapping[str, Any]
Names = Mapping[str, tuple[str, ...]]


class NewerFormatError(ValueError):
    """A record that a newer gradwatch wrote."""


def names_of(line: Line) -> Names:
    """Return the names in a header; the functions of this module raise one of ``DAMAGE`` for a damaged line.

    Raises:
        NewerFormatError: for a version that is not known here.

    Example:
        >>> header = {"format": "gradwatch", "version": 1, "layers": ["fc"], "kinds": [], "params": [], "left_out": []}
        >>> names_of(header)["layers"]
        ('fc',)
    """
    if line["format"] != FORMAT:
        raise ValueError(f"format {line['format']!r:.50} is not {FORMAT!r}")
    version = _is(int, line["version"])
    if version > VERSION:
        raise NewerFormatError(f"has format version {version}; this gradwatch reads up to {VERSION}: update it")
    names = {name: _words(line[name]) for name in NAMES}
    if len(names["kinds"]) not in (0, len(names["layers"])):
        raise ValueError("a kind is missing")
    return names


def snapshot_of(line: Line, names: Names) -> Snapshot:
    """Return the Snapshot in a line, with the names of the header before it.

    Example:
        >>> names = {"layers": ("fc",), "kinds": (), "params": (), "left_out": ()}
        >>> snapshot_of({"step": 3, "grad_norm": [0.5], "loss": ["inf"]}, names)
        Traceback (most recent call last):
            ...
        TypeError: ['inf'] is no number
        >>> snapshot_of({"step": 3, "grad_norm": [0.5], "loss": "inf"}, names).loss
        inf
    """
    given: dict[str, Any] = {**names, **{name: _array(line[name]) for name in ARRAYS if name in line}}
    given |= {name: _number(line[name]) for name in NUMBERS if name in line}
    given |= {name: _is(str, line[name]) for name in WORDS if name in line}
    given["trace_step"] = np.array([_step(step) for step in _is(list, line.get("trace_step", []))], np.int64)
    for name, like in (("param_grad_norm", names["params"]), *((name, given["trace_step"]) for name in TRACES)):
        if len(given.setdefault(name, np.full(len(like), np.nan))) != len(like):
            raise ValueError(f"{name} has {len(given[name])} values; expected {len(like)}")
    given["calls"] = {layer: _array(norms) for layer, norms in _is(dict, line.get("calls", {})).items()}
    return Snapshot(_step(line["step"]), skipped=_is(bool, line.get("skipped", False)), **given)


def finding_of(line: Line) -> Finding:
    """Return the Finding in a line."""
    given: dict[str, Any] = {name: _is(str, line[name]) for name in ("kind", "message", "severity") if name in line}
    given |= {name: _number(line[name]) for name in ("value", "threshold")}
    closed = line.get("closed_step")
    given["closed_step"] = None if closed is None else _step(closed)
    return Finding(layers=_words(line["layers"]), step=_step(line["step"]), **given)


def lost_in(line: Line) -> int:
    """Return how many lines could not be written in the place of this one."""
    return _step(line["snapshots"]) + _step(line["findings"])


def out_of_service_of(line: Line) -> OutOfService:
    """Return the part of the watching that a line says was switched off."""
    return OutOfService(_is(str, line["part"]), _step(line["step"]), _is(str, line["error"]))


def _is(kind: type[T], value: Any) -> T:
    if type(value) is not kind:  # not isinstance: True would be an int
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value


def _step(value: Any) -> int:
    step = _is(int, value)
    if not 0 <= step < 1 << 63:
        raise ValueError(f"{step} is no step")
    return step


def _words(value: Any) -> tuple[str, ...]:
    return tuple(_is(str, word) for word in _is(list, value))


def _number(value: Any) -> float:
    if type(value) in (list, dict, bool):
        raise TypeError(f"{value!r:.50} is no number")
    return float(_array([value])[0])


def _array(values: Any) -> Array:
    array: Array = np.array(_is(list, values), np.float64)  # reads null as NaN, and the texts "inf" and "-inf"
    if array.ndim != 1:
        raise ValueError(f"{array.ndim} dimensions; expected 1")
    return array

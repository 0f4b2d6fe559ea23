"""Writes Snapshots, Findings, pictures and histograms to TensorBoard."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwatch.records import Array, Diagnosis, Finding, Snapshot
from gradwatch.reporting.events import EventWriter
from gradwatch.reporting.keys import (
    DEFAULT_COLUMNS,
    LOG,
    LOG_COLUMNS,
    RUN_KEYS,
    RUN_TAGS,
    all_values,
    place,
    require_columns,
    tensorboard_tags,
)
from gradwatch.reporting.pictures import Picture
from gradwatch.reporting.sink import Params, Sink
from gradwatch.reporting.text import escaped, findings_text

_SHARES = ("dead_fraction", "saturated_fraction")
_OPEN = "gradwatch/open findings"  # tag of a number
_ROUNDING = 1e-4  # a clip that did not act leaves a coefficient of 1 up to this: clip_grad_norm_ adds 1e-6 to the norm
_RGBA = 4  # as TensorBoard's summary.proto numbers the kinds of pixels
_ENDS = (1e-12, 9e19)  # of TensorBoard's own bins, on both sides of 0
_BINS_A_DECADE = 24  # as its own


class TensorBoardReport(Sink):
    """Writes Snapshots, Findings and pictures with a SummaryWriter of torch or tensorboardX.

    ================  ====================================================================================
    tab               content
    ================  ====================================================================================
    Time Series       the total norm first, then a group for each column; see :mod:`gradwatch.reporting.keys`
    Custom Scalars    the total norm before and after clipping, and one chart for each column, of norms their log10
    Images            ``gradient_flow``: heat map of layers by steps, bars of the latest step, calls over time
    Text              ``gradwatch/0 verdict``, also of a healthy run; ``gradwatch/findings``: causes and what to try
    Histograms        ``gradient/<place> <parameter>``, when asked for
    HParams           verdict, causes and number of open findings, where the user has no hyperparameters there
    ================  ====================================================================================

    Events that the disk has no room for are dropped and counted; later ones are written again. This also holds for
    events that the user writes with this SummaryWriter: otherwise its thread would end, and each later call would raise
    the disk's error. A SummaryWriter that was closed is opened again by the next event.

    Args:
        writer: a SummaryWriter; it is not closed here.
        columns: the columns of a Snapshot whose values are written for each layer.
        has_hparams: returns True if the user writes hyperparameters: TensorBoard reads those of a run only once.

    Raises:
        ValueError: for an unknown column.

    Cost: one event for each measured step.
    """

    shows_pictures = True

    def __init__(
        self, writer: Any, columns: Sequence[str] = DEFAULT_COLUMNS, has_hparams: Callable[[], bool] = lambda: False
    ) -> None:
        self._writer, self._has_hparams, self._open_findings = writer, has_hparams, 0
        self._events = EventWriter(writer)
        self._columns = require_columns(columns)
        self._layers: tuple[str, ...] = ()
        self._charts: list[str] = []
        self._Summary = _summary_class(writer)
        self._summary = self._Summary()
        self._present: npt.NDArray[np.bool_] = np.empty(0, np.bool_)
        self._slots: list[Any] = []
        self._has_moved: npt.NDArray[np.bool_] = np.empty(0, np.bool_)
        self._has_clipped = False
        self._step = 0

    @property
    def trouble(self) -> str:
        """The events that could not be written and the reason, in words; empty where none were lost."""
        return self._events.trouble

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write all scalars of a step as one event, and the layout of the charts where it is new."""
        values = self._without_constants(snapshot.layers, all_values(snapshot, self._columns))
        self._step = snapshot.step
        values = np.concatenate([values, _logarithms(values, len(snapshot.layers), self._columns)])
        self._make_slots(snapshot.layers, ~np.isnan(values))
        for slot, number in zip(self._slots, values[self._present].tolist(), strict=True):
            slot.simple_value = number
        self._lay_out()
        self._events.summary(self._summary, snapshot.step)

    def _without_constants(self, layers: tuple[str, ...], values: Array) -> Array:
        """Return the values without those that have been at rest so far, which would fill the page with flat lines.

        At rest are shares of units that are 0, and a clip that has changed nothing.
        """
        rest = np.repeat([0.0 if column in _SHARES else np.nan for column in self._columns], len(layers))
        moved = values[: -len(RUN_KEYS)] != rest
        if layers != self._layers or len(moved) != len(self._has_moved):
            self._has_moved = np.zeros_like(moved)
        self._has_moved |= moved & ~np.isnan(values[: -len(RUN_KEYS)])
        coefficient = values[RUN_KEYS.index("clip_coefficient") - len(RUN_KEYS)]
        self._has_clipped = self._has_clipped or bool(coefficient < 1 - _ROUNDING)
        is_shown = [*self._has_moved, *(key == "grad_norm_total" or self._has_clipped for key in RUN_KEYS)]
        return np.where(is_shown, values, np.nan)

    def _make_slots(self, layers: tuple[str, ...], present: npt.NDArray[np.bool_]) -> None:
        """Make a new message if other values are present than last time; to fill it again takes a fifth of the time."""
        if layers == self._layers and np.array_equal(present, self._present):
            return
        self._layers, self._present = layers, present
        by_layer = tensorboard_tags(layers, self._columns)
        logs = [f"{LOG}{tag}" for tag in by_layer.values() if tag.partition("/")[0] in LOG_COLUMNS]
        tags = [*by_layer.values(), *RUN_TAGS.values(), *logs]
        self._summary = self._Summary()
        self._slots = [self._summary.value.add(tag=tags[i]) for i in np.flatnonzero(present).tolist()]

    def _lay_out(self) -> None:
        """Write the layout when it is new or has grown, as some columns have no value in the first steps."""
        by_column = self._present[: len(self._columns) * len(self._layers)].reshape(
            len(self._columns), len(self._layers)
        )
        self._charts = [c for c, row in zip(self._columns, by_column, strict=True) if row.any() or c in self._charts]
        self._events.charts({"gradwatch": _charts(self._charts)})

    def findings(
        self, findings: Sequence[Finding], diagnoses: Iterable[Diagnosis] = (), step: int | None = None, note: str = ""
    ) -> None:
        """Write all findings of the run as a text; call it when one has opened or closed.

        Causes and remedies are shown for the open ones. ``step=None`` takes the step of the latest change.
        A ``note`` about the run is written below.
        """
        self._open_findings = sum(finding.is_open for finding in findings)
        changes = [f.step if f.closed_step is None else f.closed_step for f in findings]
        at = max(changes, default=0) if step is None else step
        self._events.text("gradwatch/findings", findings_text(findings, diagnoses, note), at)

    def pictures(self, pictures: Mapping[str, Picture], step: int) -> None:
        """Write finished pictures; ``add_image`` takes pixels, and makes several arrays of floats of them, 40 MB."""
        for tag, (content, height, width) in pictures.items():
            image = self._Summary.Image(height=height, width=width, colorspace=_RGBA, encoded_image_string=content)
            self._events.summary(self._Summary(value=[self._Summary.Value(tag=tag, image=image)]), step)

    def verdict(self, sentence: str, causes: Sequence[str]) -> None:
        """Write the state of the run as a text, for a healthy run too."""
        why = f"\n\nCauses, the likeliest first: **{', '.join(causes)}**." if causes[1:] else ""
        self._events.text("gradwatch/0 verdict", f"**{escaped(sentence)}**{why}", self._step)

    def end(self, sentence: str, causes: Sequence[str]) -> None:
        """Write verdict and causes as hyperparameters, by which HParams sorts and filters runs."""
        if self._has_hparams():
            return
        make = importlib.import_module(f"{_library(self._writer)}.summary").hparams
        words = {"gradwatch/verdict": sentence, "gradwatch/causes": ", ".join(causes) or "none"}
        for summary in make(words, {_OPEN: self._open_findings}):
            self._events.summary(summary, None)
        self._events.summary(self._Summary(value=[{"tag": _OPEN, "simple_value": self._open_findings}]), self._step)

    def histograms(self, params: Params, step: int) -> None:
        """Write a histogram of each gradient's finite entries; a parameter without any is left out."""
        named = dict(params)
        for position, (name, param) in enumerate(named.items()):
            entries = None if param.grad is None else _finite_entries(param.grad)
            if entries is not None and entries.size:
                tag = f"gradient/{place(position, len(named))} {name}"
                self._events.histogram(tag, entries, step, _wide_bins(entries))


def _charts(columns: Iterable[str]) -> dict[str, list[Any]]:
    """Return title -> kind of chart and the patterns of its tags."""
    patterns = {"total norm, before and after clipping": [f"{RUN_TAGS[key]}$" for key in RUN_KEYS[:2]]}
    patterns |= {_chart_title(c): [rf"{LOG if c in LOG_COLUMNS else ''}{c}/\d+ "] for c in columns}
    return {title: ["Multiline", tags] for title, tags in patterns.items()}


def _logarithms(values: Array, layers: int, columns: Sequence[str]) -> Array:
    """Return log10 of the norms: the charts with all layers have no setting that starts them on a log axis."""
    found = [values[i * layers : (i + 1) * layers] for i, column in enumerate(columns) if column in LOG_COLUMNS]
    norms = np.concatenate([np.empty(0), *found])
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(norms)
    return np.where(np.isfinite(logs), logs, np.nan)


def _chart_title(column: str) -> str:
    """Return a title of at most 46 characters, so that it stays on one line."""
    if column == "update_to_weight":
        return "log10 of update / weight, healthy about -3"
    return f"{LOG if column in LOG_COLUMNS else ''}{column}, all layers"


def _library(writer: object) -> str:
    """Return the module of the SummaryWriter's own library."""
    is_x = any(kind.__module__.partition(".")[0] == "tensorboardX" for kind in type(writer).__mro__)
    return "tensorboardX" if is_x else "torch.utils.tensorboard"


def _summary_class(writer: object) -> Any:
    """Return the class of Summary messages of the library that the writer belongs to."""
    home = "tensorboardX" if _library(writer) == "tensorboardX" else "tensorboard.compat"
    return importlib.import_module(f"{home}.proto.summary_pb2").Summary


def _finite_entries(gradient: Tensor) -> npt.NDArray[Any]:
    """Return all finite entries as one row on the host; a complex one is two entries, its real and imaginary part.

    Of a sparse gradient these are the stored entries, of a sharded one those of this process.
    """
    local = getattr(gradient, "to_local", None)
    values = (gradient if local is None else local()).detach()
    values = values.coalesce().values() if values.is_sparse else values.to_dense()
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    values = values.float() if values.itemsize < 4 else values
    array: npt.NDArray[Any] = values[torch.isfinite(values)].cpu().numpy()
    return array


def _wide_bins(entries: npt.NDArray[Any]) -> str | npt.NDArray[Any]:
    """Return the name of TensorBoard's own bins, or wider bins where an exploding gradient lies outside of them."""
    first, last = _ENDS
    largest = float(np.abs(entries).max())
    if largest < last:
        return "tensorflow"
    edges = np.geomspace(first, largest, round(np.log10(largest) - np.log10(first)) * _BINS_A_DECADE)
    return np.concatenate([-edges[::-1], [0.0], edges])

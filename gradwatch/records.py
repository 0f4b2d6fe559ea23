"""The nouns that travel through gradwatch: Snapshot, Finding, Diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Kind = Literal["vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled", "spike"]
Severity = Literal["warning", "error"]

NO_VALUES: Array = np.empty(0)


class GradientWarning(UserWarning):
    """What ``on_finding="warn"`` emits when a finding opens."""


class GradientError(RuntimeError):
    """What ``on_finding="raise"`` raises when a finding opens; ``finding`` holds it."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding

    def __reduce__(self) -> tuple[type[GradientError], tuple[Finding]]:
        return type(self), (self.finding,)


def _column() -> Any:
    return field(default=None, metadata={"column": True})


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One measured optimizer step, as columns over the layers, like a data frame.

    Every column has one value a layer, in network order. NaN means that the layer has no such value (an activation has
    no weights); it never means a bad gradient. A layer whose tensors hold NaN or Inf has the norm ``inf``, and since
    norms are safe against overflow, nothing else has.

    Attributes:
        step: index of the optimizer step, counted from 0.
        layers: names as ``named_modules()`` gives them; ``(root)`` is the model itself.
        kinds: class name of each layer.
        grad_norm: L2 norm of the gradient of the layer's own parameters.
        weight_norm: L2 norm of these parameters.
        grad_output_norm: L2 norm of the gradient at the layer's output, over all its calls.
        grad_output_rms: the same as a root mean square, which does not grow with the layer's size.
        gain: RMS of the gradient at the layer's input over that at its output. Where the input feeds several layers
            (a skip connection), its gradient is the sum over all of them.
        zero_fraction: share of exact zeros in the gradient of its parameters, 0 to 1.
        nonfinite: how many entries of the gradient of its parameters are NaN or Inf.
        output_rms: root mean square of the layer's output in the forward pass; ReLUs and normalization layers,
            which only pass on NaN and Inf, are left out.
        dead_fraction: share of the units of a ReLU that were active for no sample.
        saturated_fraction: share of a bounded activation's outputs where its slope is under 2.7 % of the steepest.
        params: names of the parameters that should learn: they require a gradient and stand in the optimizer.
        param_grad_norm: L2 norm of each one's gradient, aligned with ``params``; NaN where ``.grad`` is None.
        calls: for a layer that was called more than once (a recurrent cell), the norm of the gradient at its output at
            each call, first call first.
        total_norm: L2 norm of all parameters' gradients, before clipping.
        total_norm_after: the same when the optimizer stepped, after clipping.
        loss: the step's loss; ``inf`` where it was NaN.
        skipped: the optimizer did not step (a loss scaler met an overflow).
        trace_step, trace_loss, trace_total_norm: every optimizer step since the last Snapshot, this one included: its
            index, its loss and, where it was asked for, its total norm. Non-finite values are ``inf``.

    Example:
        >>> snapshot = Snapshot(step=0, layers=("first", "last"), grad_norm=[1e-9, 1.0], weight_norm=[2.0, 2.0])
        >>> snapshot.grad_to_weight_ratio
        array([5.e-10, 5.e-01])
        >>> snapshot.missing["gain"]
        ('first', 'last')
    """

    step: int
    layers: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    grad_norm: Array = _column()
    weight_norm: Array = _column()
    grad_output_norm: Array = _column()
    grad_output_rms: Array = _column()
    gain: Array = _column()
    zero_fraction: Array = _column()
    nonfinite: Array = _column()
    output_rms: Array = _column()
    dead_fraction: Array = _column()
    saturated_fraction: Array = _column()
    params: tuple[str, ...] = ()
    param_grad_norm: Array = field(default_factory=lambda: NO_VALUES)
    calls: Mapping[str, Array] = field(default_factory=dict)
    total_norm: float = float("nan")
    total_norm_after: float = float("nan")
    loss: float = float("nan")
    skipped: bool = False
    trace_step: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    trace_loss: Array = field(default_factory=lambda: NO_VALUES)
    trace_total_norm: Array = field(default_factory=lambda: NO_VALUES)

    def __post_init__(self) -> None:
        for name in COLUMNS:
            given = getattr(self, name)
            values = np.full(len(self.layers), np.nan) if given is None else np.asarray(given, np.float64)
            if values.shape != (len(self.layers),):
                raise ValueError(
                    f"column {name} has shape {values.shape}; expected one value for each of {len(self.layers)} layers"
                )
            object.__setattr__(self, name, values)
        if not self.kinds:
            object.__setattr__(self, "kinds", ("",) * len(self.layers))

    @property
    def grad_to_weight_ratio(self) -> Array:
        """Gradient norm over weight norm of each layer; NaN where the weights are all zero or not finite."""
        learning = (self.weight_norm > 0) & np.isfinite(self.weight_norm)
        return self.grad_norm / np.where(learning, self.weight_norm, np.nan)

    @property
    def clip_coefficient(self) -> float:
        """Total norm after clipping over that before: 1 where nothing was clipped."""
        return 1.0 if self.total_norm == 0 else self.total_norm_after / self.total_norm

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Column -> the layers that have no value in it."""
        absent = {name: np.isnan(getattr(self, name)) for name in COLUMNS}
        return {name: tuple(np.array(self.layers, object)[gone]) for name, gone in absent.items() if gone.any()}


COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(Snapshot) if f.metadata.get("column"))


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: it opens at ``step``, lasts, and closes at ``closed_step``.

    Attributes:
        kind: one of ``vanishing exploding nonfinite dead saturated stalled spike``, or the name of your own.
        layers: the layers (or parameters, or quantities such as ``loss``) it is about, in network order.
        step: optimizer step at which it began.
        value: what was measured.
        threshold: what it was held against.
        message: a sentence with value, threshold and the next thing to try.
        severity: ``"error"`` where training can't go on (NaN, Inf), else ``"warning"``.
        closed_step: optimizer step at which it was found gone; None while it lasts.

    Example:
        >>> Finding("vanishing", ("first",), step=3, value=1e-7, threshold=1e-3, message="it vanishes").is_open
        True
    """

    kind: str
    layers: tuple[str, ...]
    step: int
    value: float
    threshold: float
    message: str
    severity: Severity = "warning"
    closed_step: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the trouble was still there at the last measured step."""
        return self.closed_step is None


Detector = Callable[[Snapshot], "Iterable[Finding] | Finding | None"]
"""What looks at a Snapshot and returns what is wrong in it, if anything. A plain function is one."""


@dataclass(frozen=True)
class Diagnosis:
    """A cause for a finding, with the evidence for it, and remedies in the order to try.

    Attributes:
        finding: what it explains.
        cause: the cause in a few words, such as ``saturating activation``.
        evidence: the measured numbers that speak for it, as a sentence.
        remedies: what to do, the first thing to try first.
    """

    finding: Finding
    cause: str
    evidence: str
    remedies: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.finding.kind}: {self.cause}. {self.evidence} Try: {'; '.join(self.remedies)}."

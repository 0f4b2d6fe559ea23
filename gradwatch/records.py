"""A Snapshot: one measured optimizer step, as columns over the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

NO_VALUES: Array = np.empty(0)
RECURRENT = ("RNN", "LSTM", "GRU")  # torch's networks, whose time steps are no calls
_SELF_SCALING = ("adam", "lion", "rmsprop", "adagrad", "adafactor", "lamb")  # in the names of optimizers


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
        output_rms: root mean square of the layer's output, in the calls that a gradient of the loss came back to;
            ReLUs and normalization layers, which only pass on NaN and Inf, are left out.
        dead_fraction: share of the units of a ReLU that were active for no sample.
        weight_gain: by what a layer's weights alone multiply the RMS of a gradient, for Linears and convolutions: their
            L2 norm over the square root of the inputs (times the stride's area), as if they were independent.
        size: how many parameters of its own it has that should learn.
        saturated_fraction: share of a bounded activation's outputs where its slope is under 2.7 % of the steepest.
        params: names of the parameters that should learn: they require a gradient and stand in the optimizer.
        left_out: names of those that get a gradient in vain: in training mode, and held by no optimizer so far.
        param_grad_norm: L2 norm of each one's gradient, aligned with ``params``; NaN where ``.grad`` is None.
        calls: for a layer that was called more than once (a recurrent cell), the norm of the gradient at its output at
            each call, first call first; for torch's recurrent networks, that at their input at each time step.
        total_norm: L2 norm of all parameters' gradients, before clipping.
        total_norm_after: the same when the optimizer stepped, after clipping.
        loss: the step's loss; ``inf`` where it was NaN.
        skipped: the optimizer did not step (a loss scaler met an overflow).
        optimizer: class name of the one that stepped last.
        learning_rate: the largest of its groups.
        input_rms: root mean square of the floating tensors that the first layer was given.
        dtype: the half precision that a layer put out, such as ``float16``; empty where none did.
        loss_scale: what the loss was multiplied by for the backward pass.
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
    weight_gain: Array = _column()
    size: Array = _column()
    params: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    param_grad_norm: Array = field(default_factory=lambda: NO_VALUES)
    calls: Mapping[str, Array] = field(default_factory=dict)
    total_norm: float = float("nan")
    total_norm_after: float = float("nan")
    loss: float = float("nan")
    skipped: bool = False
    optimizer: str = ""
    learning_rate: float = float("nan")
    input_rms: float = float("nan")
    dtype: str = ""
    loss_scale: float = float("nan")
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
    def step_to_weight(self) -> Array:
        """About how large the optimizer's step is over the weights, by layer: one without momentum.

        Optimizers that divide by the gradient's own size (Adam and its kin) move every parameter by the learning rate.
        """
        if any(name in self.optimizer.lower() for name in _SELF_SCALING):
            step = self.learning_rate * np.sqrt(self.size)
        else:
            coefficient = self.clip_coefficient if np.isfinite(self.clip_coefficient) else 1.0
            step = self.learning_rate * coefficient * self.grad_norm
        known = (self.weight_norm > 0) & np.isfinite(self.weight_norm)
        ratio: Array = step / np.where(known, self.weight_norm, np.nan)
        return ratio

    @property
    def clip_coefficient(self) -> float:
        """Total norm after clipping over that before: 1 where nothing was clipped."""
        return 1.0 if self.total_norm == 0 else float(self.total_norm_after) / float(self.total_norm)

    def takes_steps(self, layer: str) -> bool:
        """Whether a layer goes through time by itself, in one call."""
        return dict(zip(self.layers, self.kinds, strict=True)).get(layer) in RECURRENT

    def calls_as_text(self, layer: str) -> str:
        """How often a layer was called, or how many time steps it took by itself.

        Example:
            >>> Snapshot(0, ("rnn",), kinds=("LSTM",), calls={"rnn": np.ones(60)}).calls_as_text("rnn")
            '60 time steps'
        """
        return f"{len(self.calls[layer])} {'time steps' if self.takes_steps(layer) else 'calls'}"

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Column -> the layers that have no value in it."""
        absent = {name: np.isnan(getattr(self, name)) for name in COLUMNS}
        return {name: tuple(np.array(self.layers, object)[gone]) for name, gone in absent.items() if gone.any()}


COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(Snapshot) if f.metadata.get("column"))


Kind = Literal["vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled", "spike"]
Severity = Literal["warning", "error"]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: it opens at ``step``, lasts, and closes at ``closed_step``.

    Attributes:
        kind: one of ``vanishing exploding nonfinite dead saturated stalled spike``, or the name of your own.
        layers: the layers (or parameters, or quantities such as ``loss``) it is about, in network order.
        step: optimizer step at which it began.
        value: what was measured.
        threshold: what it was held against.
        message: a sentence with what was measured, against what, and where.
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


class GradientWarning(UserWarning):
    """Emitted when a finding opens and ``on_finding`` is ``"warn"``."""


class GradientError(RuntimeError):
    """Raised when a finding opens and ``on_finding`` is ``"raise"``.

    Attributes:
        finding: the one that opened.
        cause: its likely cause in words, as far as it is known by then.
    """

    def __init__(self, finding: Finding, cause: str = "") -> None:
        super().__init__(f"{finding.message} {cause}".strip())
        self.finding, self.cause = finding, cause

    def __reduce__(self) -> tuple[type[GradientError], tuple[Finding, str]]:
        return type(self), (self.finding, self.cause)


Detector = Callable[[Snapshot], "Iterable[Finding] | Finding | None"]
"""What looks at a Snapshot and returns what is wrong in it, if anything. A plain function is one."""


Cause = Literal[
    "saturating activation",
    "initialization too small",
    "initialization too large",
    "learning rate too high",
    "dead ReLU",
    "zero-gradient head",
    "unscaled input",
    "unscaled target",
    "recurrent depth",
    "missing normalization or skip",
    "learning rate too low",
    "missing warm-up",
    "outlier batch",
    "unguarded operation",
    "frozen or detached part",
    "precision underflow",
    "unbounded loss",
    "weight decay too strong",
    "clipping too hard",
    "not known",
]


@dataclass(frozen=True)
class Diagnosis:
    """A cause, how strongly the evidence speaks for it, what it explains, and remedies in the order to try.

    Attributes:
        cause: the cause in a few words.
        evidence: the measured numbers that speak for it, as sentences.
        score: how strongly they do, from 0 to 1.
        findings: what it explains; may be none.
        remedies: what to do, the first thing to try first.

    Example:
        >>> print(Diagnosis("dead ReLU", "90 % of the units never fire.", 0.9, (), ("LeakyReLU", "zero biases")))
        dead ReLU. 90 % of the units never fire. Try: LeakyReLU; zero biases.
    """

    cause: Cause
    evidence: str
    score: float
    findings: tuple[Finding, ...]
    remedies: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.cause}. {self.evidence} Try: {'; '.join(self.remedies)}."

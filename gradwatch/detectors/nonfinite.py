"""NaN or Inf in the loss, the activations or the gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from gradwatch.checks import require_whole
from gradwatch.records import Finding, Snapshot
from gradwatch.snapshot import Origin


@dataclass
class NonFinite:
    """Names the first bad layer in forward order, where NaN enters the outputs, and in backward order.

    The losses of unmeasured steps are looked at too, so that the finding has the exact step. A loss scaler searches its
    scale by skipping steps whose gradients overflow: these are a finding only after ``max_skips`` in a row.

    Args:
        max_skips: skipped steps in a row that are not yet a fault. Default: halving 2 ** 16, PyTorch's initial scale,
            down to 2 ** 6.

    Raises:
        ValueError: when ``max_skips`` is not positive.

    Example:
        >>> snapshot = Snapshot(7, ("a", "b"), grad_output_norm=[float("inf"), 1.0], nonfinite=[3, 2])
        >>> [finding.layers for finding in NonFinite()(snapshot)]
        [('b',)]

    References:
        Lightning issues 12344 and 8313 ask for the layer; ``detect_anomaly`` finds it at three times the cost.
    """

    needs: ClassVar[tuple[str, ...]] = ("outputs",)
    of_losses: ClassVar[bool] = True
    max_skips: int = 10
    patience: int = field(default=1, init=False)
    _skips: int = field(default=0, init=False, repr=False)
    _places: tuple[str, ...] = field(default=(), init=False, repr=False)  # of NaN in the step before

    def __post_init__(self) -> None:
        require_whole(self, max_skips=self.max_skips)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding that tells where and since when."""
        found = list(self._look(snapshot))
        self._places = found[0].layers if found else ()
        yield from found

    def _look(self, snapshot: Snapshot) -> Iterator[Finding]:
        self._skips = self._skips + 1 if snapshot.skipped else 0
        bad_steps = snapshot.trace_step[np.isinf(snapshot.trace_loss) | np.isinf(snapshot.trace_total_norm)]
        if snapshot.origin is not None:
            yield _of_origin(snapshot.origin, snapshot)
            return
        forward, backward = first_bad_layers(snapshot)
        if len(bad_steps) == 0 and (forward or backward) is None:
            return
        if 0 < self._skips <= self.max_skips and not np.isinf(snapshot.trace_loss).any():
            return
        step = int(bad_steps[0]) if len(bad_steps) else snapshot.step
        if weights_were_bad(snapshot):
            of_weights = _of_weights(snapshot, step)  # of the trouble that was found when they turned NaN, if it was
            yield replace(of_weights, layers=self._places or of_weights.layers)
            return
        count = float(np.nansum(snapshot.nonfinite))
        places = ("loss",) if np.isinf(snapshot.trace_loss).any() else ()
        layers = tuple(dict.fromkeys([*places, *(layer for layer in (forward, backward) if layer is not None)]))
        yield Finding(
            "nonfinite", layers or ("grad_norm_total",), step, count, 0.0,
            self._message(snapshot, step, count, forward, backward), severity="error",
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The number of steps skipped in a row, and the places of NaN, for a checkpoint."""
        return {"skips": self._skips, "places": list(self._places)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._skips, self._places = state["skips"], tuple(state["places"])

    def _message(self, snapshot: Snapshot, step: int, count: float, forward: str | None, backward: str | None) -> str:
        where = [
            f"first in the forward pass in the output of layer {forward}" if forward else "",
            f"first in the backward pass at layer {backward}" if backward else "",
        ]
        places = " and ".join(text for text in where if text)
        when = f"at step {step}" + (f", seen at step {snapshot.step}" if step != snapshot.step else "")
        if not places:
            places = "in the loss" if np.isinf(snapshot.trace_loss).any() else "in the gradients"
        places += f" ({count:.0f} entries of the parameters' gradients)" if count else ""
        return f"NaN or Inf {when}: {places}."


def _of_origin(origin: Origin, snapshot: Snapshot) -> Finding:
    seen = f", seen at step {snapshot.step}" if snapshot.step != origin.step else ""
    if origin.source == "batch":
        text = f"NaN or Inf at step {origin.step}{seen}: they are in the batch of that step."
        return Finding("nonfinite", ("loss", "batch"), origin.step, 0.0, 0.0, text, "error", case="batch")
    passes = "backward" if origin.way == "backward" else "forward"
    text = f"NaN or Inf at step {origin.step}{seen}: they begin in the {passes} pass in {origin}."
    layers = ("loss", origin.layer) if origin.layer else ("loss",)
    return Finding("nonfinite", layers, origin.step, 0.0, 0.0, text, "error", case=origin.operation)


def weights_were_bad(snapshot: Snapshot) -> bool:
    """Return True if the weights held NaN or Inf before the step: then all that is computed from them does."""
    return bool(np.isinf(snapshot.param_weight_norm).any() or np.isinf(snapshot.weight_norm).any())


def _of_weights(snapshot: Snapshot, step: int) -> Finding:
    """Date NaN of a step that was not measured: the loss of the step after it shows it at the latest."""
    before = snapshot.trace_step[snapshot.trace_step < step]
    names = tuple(np.array(snapshot.params, object)[np.isinf(snapshot.param_weight_norm)])
    since = f"the losses are NaN or Inf from step {step} on" if step != snapshot.step else "no loss before it was"
    between = f"lies between {step - 1} and {step}" if len(before) or step else "is the first"
    text = (
        f"NaN or Inf: the weights held them before step {snapshot.step} (in {len(names)} parameters); {since}. The "
        f"step that did it {between}, and was not measured."
    )
    return Finding("nonfinite", ("loss",), step, float(len(names)), 0.0, text, "error", case="weights")


def first_bad_layers(snapshot: Snapshot) -> tuple[str | None, str | None]:
    """Return the first layer with a non-finite output, and the first from the loss back with such a gradient."""
    forward = np.flatnonzero(np.isinf(snapshot.output_rms))
    gradient = np.isinf(snapshot.grad_output_norm) | np.isinf(snapshot.grad_norm) | (snapshot.nonfinite > 0)
    backward, layers = np.flatnonzero(gradient), snapshot.layers
    return layers[forward[0]] if len(forward) else None, layers[backward[-1]] if len(backward) else None

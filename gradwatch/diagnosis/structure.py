"""Rules for parts of a network that no gradient reaches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradwatch.diagnosis.run import Run
from gradwatch.records import Diagnosis, Snapshot

_SOFTMAX = ("Softmax", "Softmax2d")


def detached(run: Run) -> Iterator[Diagnosis]:
    """Parameters whose ``.grad`` is None."""
    for finding in run.of("stalled"):
        norms = _norms(run.near(finding))
        none = [name for name in finding.layers if np.isnan(norms.get(name, np.nan))]
        if none:
            evidence = f"The .grad of {len(none)} parameters is None, among them {', '.join(none[:3])}."
            advice = ("remove the detach() or no_grad() before the loss", "use the module, or freeze it")
            yield Diagnosis("frozen or detached part", evidence, 0.95, (finding,), advice)


def zero_gradient(run: Run) -> Iterator[Diagnosis]:
    """Parameters whose gradient is exactly zero: the head gives none, or dead units let none pass."""
    for finding in run.of("stalled"):
        snapshot = run.near(finding)
        norms = _norms(snapshot)
        zero = [name for name in finding.layers if norms.get(name) == 0]
        if not zero:
            continue
        text = (
            f"The gradient of {len(zero)} of {len(norms)} parameters is exactly zero, {', '.join(zero[:3])} among them."
        )
        gone = float(np.nanmax(np.nan_to_num(snapshot.dead_fraction), initial=0.0))
        if gone > 0.95:
            text += f" {gone:.0%} of a ReLU's units never fire."
            advice: tuple[str, ...] = ("LeakyReLU", "He initialization with zero biases", "a lower learning rate")
            yield Diagnosis("dead ReLU", text, 0.93, (finding,), advice)
        elif len(zero) > len(norms) / 2:
            advice = ("a sigmoid and binary cross-entropy for one unit; no softmax before cross-entropy",)
            score = 0.97 if _ends_in_softmax(snapshot) else 0.86
            yield Diagnosis("zero-gradient head", text, score, (finding,), advice)
        else:
            advice = ("use the module, or freeze it", "weights that are not zero")
            yield Diagnosis("frozen or detached part", text, 0.6, (finding,), advice)


def softmax_head(run: Run) -> Iterator[Diagnosis]:
    """A softmax as the last layer, before a loss that takes one itself: the gradient is small, the loss can't fall."""
    if run.history and run.is_stuck and _ends_in_softmax(run.last):
        evidence = (
            f"The last layer is a {run.last.kinds[-1]}, and the loss is {run.end_loss:.3g} after {run.start_loss:.3g}: "
            f"cross-entropy takes logits, and of probabilities it stays above ln(classes) - 1."
        )
        advice = ("remove the softmax: cross-entropy takes logits", "or take the log of it, and nll_loss")
        yield Diagnosis("zero-gradient head", evidence, 0.9, (), advice)


def _ends_in_softmax(snapshot: Snapshot) -> bool:
    return bool(snapshot.kinds) and snapshot.kinds[-1] in _SOFTMAX


def _norms(snapshot: Snapshot) -> dict[str, float]:
    return dict(zip(snapshot.params, np.asarray(snapshot.param_grad_norm).tolist(), strict=True))

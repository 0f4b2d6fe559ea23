"""Rules for a gradient that fades or grows over the layers: activations, initialization, depth itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradwatch.diagnosis.gains import gains_as_text, split
from gradwatch.diagnosis.run import EARLY, Run
from gradwatch.records import Array, Diagnosis, Finding, Snapshot

# He's gain is 1.41, Xavier's 1, PyTorch's own for Linears and convolutions 0.58.
LARGE_GAIN, SMALL_GAIN = 1.6, 0.5
DEEP = 16  # layers with weights, from which on a gain that is a little off 1 adds up to a thousandfold


def saturating(run: Run) -> Iterator[Diagnosis]:
    """The derivative of bounded activations takes most of what is lost."""
    found = _over_depth(run, "vanishing")
    if found:
        parts = split(run.near(found[0]))
        if parts.activations:
            remedies = ("ReLU with He initialization", "a normalization layer after each Linear", "skip connections")
            yield Diagnosis("saturating activation", _text(run, found), 0.9 * parts.activations, found, remedies)


def too_small(run: Run) -> Iterator[Diagnosis]:
    """The weights take most of what is lost."""
    found = _over_depth(run, "vanishing")
    if found:
        snapshot = run.near(found[0])
        gain, parts = typical(snapshot.weight_gain), split(snapshot)
        depth = int(np.isfinite(snapshot.weight_gain).sum())
        score = (0.9 if gain < SMALL_GAIN or depth < DEEP else 0.7) * parts.weights
        if parts.weights:
            remedies = ("He or Xavier initialization", "a normalization layer", "skip connections")
            yield Diagnosis("initialization too small", _text(run, found), score, found, remedies)


def too_large(run: Run) -> Iterator[Diagnosis]:
    """The weights multiply the gradient from the first step on."""
    found = run.of("exploding", "nonfinite", "saturated", "vanishing", "spike")
    gain = typical(run.first.weight_gain) if run.history else np.nan
    if gain > LARGE_GAIN and (found or run.is_stuck or run.start_loss > 20):
        text = f"The weights alone multiply the gradient by {gain:.2g} a layer (He: 1.41, Xavier: 1)"
        evidence = f"{text}; the loss began at {run.start_loss:.3g}. {gains_as_text(run.first)}"
        remedies = ("He or Xavier initialization", "a normalization layer", "clip by the global norm")
        yield Diagnosis("initialization too large", evidence, min(0.94, 0.85 + 0.05 * gain), found, remedies)


def too_deep(run: Run) -> Iterator[Diagnosis]:
    """Each layer is a little off, and there are many, without normalization."""
    found = _over_depth(run, "vanishing") + _over_depth(run, "exploding")
    if not found:
        return
    snapshot = run.near(found[0])
    depth = int(np.isfinite(snapshot.weight_gain).sum())
    gain = typical(snapshot.weight_gain)
    if any("Norm" in kind for kind in snapshot.kinds) or depth < 5 or not SMALL_GAIN <= gain <= LARGE_GAIN:
        return
    score = (0.8 if depth >= DEEP else 0.4) * (1 - split(snapshot).activations)
    evidence = f"{depth} layers with weights stand one behind the other without a normalization layer. "
    remedies = ("a normalization layer", "skip connections", "He or Xavier initialization")
    yield Diagnosis("missing normalization or skip", evidence + _text(run, found), score, found, remedies)


def typical(gains: Array) -> float:
    """Geometric mean of the gains that are known; NaN without any."""
    known = gains[np.isfinite(gains) & (gains > 0)]
    return float(np.exp(np.log(known).mean())) if len(known) else float("nan")


def _over_depth(run: Run, kind: str) -> tuple[Finding, ...]:
    """Findings about the layers of a network, not about the calls of one."""
    found = (f for f in run.of(kind) if not any(layer in run.near(f).calls for layer in f.layers))
    return tuple(f for f in found if kind == "vanishing" or f.step < run.first.step + EARLY)


def _text(run: Run, found: tuple[Finding, ...]) -> str:
    snapshot = run.near(found[0])
    return f"{gains_as_text(snapshot)} {_altogether(snapshot)}".rstrip()


def _altogether(snapshot: Snapshot) -> str:
    norms = snapshot.grad_output_norm[~np.isnan(snapshot.grad_norm) & ~np.isnan(snapshot.grad_output_norm)]
    if len(norms) < 2 or not np.isfinite(norms).all() or not norms[-1] > 0:
        return ""
    return f"That makes {norms[0] / norms[-1]:.1e} from the last of {len(norms)} layers to the first."

"""Causes in normalization layers: weights that start near zero, and a normalization over a single unit."""

from __future__ import annotations

import numpy as np

from gradwatch.diagnosis.evidence import Evidence
from gradwatch.diagnosis.ranking import Claim
from gradwatch.layer_kinds import is_layer_norm, is_normalization
from gradwatch.progress import DOES_WELL
from gradwatch.records import Snapshot

# Normalization layers start with weights of 1. At 0.02, the deviation of other weights, what comes out is 50 times
# smaller at each of them, and so is the gradient that goes back to their biases and to the layers between.
SMALL_NORM = 0.1
MOST_NORMS = 0.5  # of them; a residual branch may end in one that starts at zero (Goyal et al., 2017, 1706.02677)
NO_GRADIENT = 0.5  # share of the parameters


def norm_weights(snapshot: Snapshot) -> dict[str, float]:
    """Return the root mean square of the weights of each normalization layer that has any.

    Example:
        >>> norm_weights(Snapshot(0, ("a",), kinds=("LayerNorm",), params=("a.weight", "a.bias"), param_size=[4, 4],
        ...                       param_weight_norm=[2.0, 0.0]))
        {'a': 1.0}
    """
    sizes, norms = snapshot.param_size.tolist(), snapshot.param_weight_norm.tolist()
    known = {name: norm / size**0.5 for name, size, norm in zip(snapshot.params, sizes, norms, strict=True) if size > 0}
    norms_of = (layer for layer, kind in zip(snapshot.layers, snapshot.kinds, strict=True) if is_normalization(kind))
    return {layer: known[f"{layer}.weight"] for layer in norms_of if f"{layer}.weight" in known}


def small_norms(evidence: Evidence) -> Claim | None:
    """Look for normalization layers whose weights start near zero, in a run that does not learn."""
    sizes = norm_weights(evidence.first)
    small = {layer: size for layer, size in sizes.items() if size < SMALL_NORM}
    if not small or len(small) < MOST_NORMS * len(sizes):
        return None
    about = tuple(f for f in evidence.found("vanishing", "stalled", "dead") if not evidence.is_over_calls(f))
    if not any(small.values()) and not _passes_nothing(evidence):
        return None  # some layers multiply by 1 + weight, which starts at zero
    if not (about or evidence.loss_fall <= DOES_WELL):
        return None
    first, rms = next(iter(small)), float(np.sqrt(np.mean(np.square([*small.values()]))))
    zero = "" if rms else " Nothing passes them but their bias, and no skip goes around them."
    text = (
        f"The weights of {len(small)} of {len(sizes)} normalization layers, {first} and so on, start at {rms:.2g} in "
        f"size (usual: 1).{zero} {evidence.loss_in_words}"
    )
    return Claim(text, about, "norms")


def _passes_nothing(evidence: Evidence) -> bool:
    norms = evidence.first.param_grad_norm
    return bool(len(norms)) and float((norms == 0).mean()) >= NO_GRADIENT


def norm_over_one_unit(snapshot: Snapshot) -> str:
    """Return the name of a LayerNorm with one weight, whose output is its bias whatever it gets; empty without one.

    Example:
        >>> norm_over_one_unit(Snapshot(0, ("a",), kinds=("LayerNorm",), size=[2]))
        'LayerNorm a'
    """
    found = zip(snapshot.kinds, snapshot.layers, snapshot.size.tolist(), strict=True)
    return next((f"{kind} {layer}" for kind, layer, size in found if is_layer_norm(kind) and size in (1, 2)), "")

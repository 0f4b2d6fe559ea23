"""Parameters that should learn and can't."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwatch.checks import require_share, require_whole
from gradwatch.records import Array, Finding, Snapshot

# Rounding leaves so much of a gradient that cancels, per entry and as a share of the largest parameter's: float32 keeps
# 6e-8 of a number.
_ROUNDING = 1e-8


@dataclass
class Stalled:
    """Parameters of the optimizer get no gradient, or one that is exactly zero.

    The usual reasons are a detached branch, an unused module, or a head that gives no gradient (a softmax over one
    unit). These parameters are only at rest, and no finding:

    - one that had a gradient before (an expert, the head of another task), unless nearly all are without;
    - one whose name differs by a number from others that come and go: an expert that was not drawn yet;
    - a bias alone, whose layer's weight has a gradient: it cancels in a difference, a normalization or a softmax.

    A step in which no parameter has a gradient is :class:`CutOff`'s.

    Args:
        share: of the parameters; where more are without a gradient, those that had one before count too.
        patience: measured steps in a row until it is a finding: a head that is used in one batch out of several, and a
            branch that starts at zero (ReZero, LoRA), are healthy.

    Raises:
        ValueError: when the patience is not positive.

    Example:
        >>> snapshot = Snapshot(0, (), params=("a.weight", "b.weight"), param_grad_norm=[0.0, 1.0])
        >>> [finding.layers for finding in Stalled()(snapshot)]
        [('a.weight',)]

    References:
        No published rule; the default is what one of 16 experts, drawn by each of 8 samples, misses in one of 30,000
        starts.
    """

    share: float = 0.9
    patience: int = 20
    _moved: set[str] = field(default_factory=set, init=False, repr=False)
    _lacked: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        require_share(self, share=self.share)
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding for all without a gradient."""
        norms = snapshot.param_grad_norm
        if np.isnan(norms).all():
            return
        without = np.isnan(norms) | (norms == 0)
        for place in np.flatnonzero(norms == 0).tolist():
            without[place] = not _cancels(place, snapshot.params, norms)
        self._moved.update(snapshot.params[i] for i in np.flatnonzero(~(without | _is_rounding(snapshot))))
        stalled = np.flatnonzero(without)
        self._lacked.update(snapshot.params[i] for i in stalled)
        if without.any() and without.mean() < self.share:
            rotating = {pattern for name in self._moved & self._lacked for pattern in _patterns(name)}
            rests = [n in self._moved or any(p in rotating for p in _patterns(n)) for n in snapshot.params]
            stalled = np.flatnonzero(without & ~np.array(rests, bool))
        if len(stalled):
            names = tuple(snapshot.params[i] for i in stalled)
            none = int(np.isnan(norms[stalled]).sum())
            message = (
                f"stalled: {len(names)} of {len(norms)} parameters get no gradient ({none} None, {len(names) - none} "
                f"exactly zero), among them {', '.join(names[:3])}."
            )
            yield Finding("stalled", names, snapshot.step, float(len(names)), 0.0, message)

    def state_dict(self) -> dict[str, Any]:
        """The parameters that had a gradient, and those that had none, for a checkpoint."""
        return {"moved": sorted(self._moved), "lacked": sorted(self._lacked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what an earlier run knows."""
        self._moved, self._lacked = set(state["moved"]), set(state["lacked"])


@dataclass
class CutOff:
    """No parameter gets a gradient, or the optimizer holds none of the model's parameters: nothing can learn.

    An optimizer that moves weights without gradients (one that perturbs them, say) is no finding.

    Args:
        patience: measured steps in a row until it is a finding.

    Raises:
        ValueError: when the patience is not positive.

    Example:
        >>> snapshot = Snapshot(0, (), params=("weight", "bias"), param_grad_norm=[np.nan, np.nan])
        >>> [finding.layers for finding in CutOff()(snapshot)]
        [('weight', 'bias')]
    """

    patience: int = 3

    def __post_init__(self) -> None:
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding for all that should learn."""
        names = snapshot.params or snapshot.left_out
        is_cut_off = np.isnan(snapshot.param_grad_norm).all() and not (snapshot.param_update_norm > 0).any()
        if not (names and is_cut_off):
            return
        some = f"among them {', '.join(names[:3])}"
        if snapshot.params:
            what, case = f"none of the {len(names)} parameters gets a gradient, {some}", "no gradient"
        else:
            what = f"the optimizer holds none of the {len(names)} parameters of the model that should learn, {some}"
            case = "no optimizer"
        yield Finding("stalled", names, snapshot.step, float(len(names)), 0.0, f"stalled: {what}.", case=case)


def _is_rounding(snapshot: Snapshot) -> npt.NDArray[np.bool_]:
    """Return True for each parameter whose gradient is no more than rounding beside the largest: it got none."""
    norms, sizes = snapshot.param_grad_norm, snapshot.param_size
    per_entry = norms / np.sqrt(np.where((sizes > 0) & np.isfinite(sizes), sizes, 1.0))
    usable = per_entry[np.isfinite(per_entry)]
    return np.asarray(per_entry < _ROUNDING * (usable.max() if len(usable) else 0.0), np.bool_)


def _cancels(place: int, names: tuple[str, ...], norms: Array) -> bool:
    """Return True if a parameter is the bias of a layer whose weight has a gradient."""
    weight = names[place].removesuffix("bias") + "weight"
    return names[place].endswith("bias") and weight in names and bool(norms[names.index(weight)] > 0)


def _patterns(name: str) -> list[str]:
    """Return the name with one of its numbers left open, for each number.

    Example:
        >>> _patterns("experts.3.0.weight")
        ['experts.*.0.weight', 'experts.3.*.weight']
    """
    parts = name.split(".")
    return [".".join([*parts[:i], "*", *parts[i + 1 :]]) for i, part in enumerate(parts) if part.isdigit()]

"""Parameters that should learn and can't."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradwatch.checks import require_share, require_whole
from gradwatch.records import Array, Finding, Snapshot


@dataclass
class Stalled:
    """Parameters of the optimizer get no gradient, or one that is exactly zero; or some belong to no optimizer.

    The usual reasons are a detached branch, an unused module, or a head that gives no gradient (a softmax over one
    unit). These parameters are only at rest, and no finding:

    - one that had a gradient before (an expert, the head of another task), unless nearly all are without;
    - one whose name differs by a number from others that come and go: an expert that was not drawn yet;
    - a bias alone, whose layer's weight has a gradient: it cancels in a difference, a normalization or a softmax.

    Parameters with a gradient that belong to no optimizer are a finding while their module is in training mode. A part
    that is kept fixed on purpose is in evaluation mode, as a rule, or frozen.

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
        """Yield one finding for all without a gradient, and one for all without an optimizer."""
        yield from _left_out(snapshot)
        norms = snapshot.param_grad_norm
        without = np.isnan(norms) | (norms == 0)
        for place in np.flatnonzero(norms == 0).tolist():
            without[place] = not _cancels(place, snapshot.params, norms)
        self._moved.update(snapshot.params[i] for i in np.flatnonzero(~without))
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


def _left_out(snapshot: Snapshot) -> Iterator[Finding]:
    if snapshot.left_out:
        message = (
            f"stalled: {len(snapshot.left_out)} parameters get a gradient, but belong to no optimizer, among them "
            f"{', '.join(snapshot.left_out[:3])}."
        )
        yield Finding("stalled", snapshot.left_out, snapshot.step, float(len(snapshot.left_out)), 0.0, message)


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

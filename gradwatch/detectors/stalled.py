"""Parameters that should learn and can't."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradwatch.detectors.thresholds import require_share, require_whole
from gradwatch.records import Array, Finding, Snapshot


@dataclass
class Stalled:
    """Parameters that the optimizer holds and that require a gradient get none, or one that is exactly zero.

    A detached branch, a module that is not used, a head that gives no gradient (a softmax over one unit). A parameter
    that had a gradient once is only at rest (an expert, a head of another task), unless nearly all are without. So is
    one whose name differs by a number from such that come and go: an expert that was not drawn yet. A bias alone, whose
    layer's weight has a gradient, cancels in what follows: a difference of two outputs, a normalization, a softmax.

    Found too are parameters that get a gradient and stand in no optimizer, though their module is in training mode: a
    part that was forgotten. One that is kept as it is on purpose is in evaluation mode, as a rule, or frozen.

    Args:
        share: of all parameters that are without a gradient, from which on those count too that had one.
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
        self._lacked.update(snapshot.params[i] for i in np.flatnonzero(without))
        stalled = np.flatnonzero(without)
        if without.any() and without.mean() < self.share:
            rotating = {pattern for name in self._moved & self._lacked for pattern in _patterns(name)}
            rests = [n in self._moved or any(p in rotating for p in _patterns(n)) for n in snapshot.params]
            stalled = np.flatnonzero(without & ~np.array(rests, bool))
        if len(stalled):
            names = tuple(snapshot.params[i] for i in stalled)
            none = int(np.isnan(norms[stalled]).sum())
            message = (
                f"stalled: {len(names)} of {len(norms)} parameters get no gradient ({none} None, {len(names) - none} "
                f"exactly zero), among them {', '.join(names[:3])}. Look for a detach(), an unused module or a head "
                f"without a gradient; freeze what should not learn."
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
            f"stalled: {len(snapshot.left_out)} parameters get a gradient, but stand in no optimizer, among them "
            f"{', '.join(snapshot.left_out[:3])}. Give the optimizer model.parameters(); freeze what should not learn."
        )
        yield Finding("stalled", snapshot.left_out, snapshot.step, float(len(snapshot.left_out)), 0.0, message)


def _cancels(place: int, names: tuple[str, ...], norms: Array) -> bool:
    """Whether a parameter is the bias of a layer whose weight has a gradient."""
    weight = names[place].removesuffix("bias") + "weight"
    return names[place].endswith("bias") and weight in names and bool(norms[names.index(weight)] > 0)


def _patterns(name: str) -> list[str]:
    """The name with one of its numbers left open, for each number.

    Example:
        >>> _patterns("experts.3.0.weight")
        ['experts.*.0.weight', 'experts.3.*.weight']
    """
    parts = name.split(".")
    return [".".join([*parts[:i], "*", *parts[i + 1 :]]) for i, part in enumerate(parts) if part.isdigit()]

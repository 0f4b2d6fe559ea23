"""Faults of the training loop: gradients not cleared, a clip that can't clip, processes that differ, wrong shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gradwatch.checks import require_whole
from gradwatch.records import Finding, Snapshot

_NAMED = 3  # tensors that a message names


@dataclass
class CarriedOver:
    """The gradient of an earlier step is still there when a step begins, and the next one is added to it.

    The optimizer then steps along the sum of all gradients so far. The loss may fall all the same, so that nothing else
    shows it. Gradients that are accumulated on purpose are none of these: the optimizer has not stepped along them yet.

    A parameter counts until its optimizer steps along a gradient that was cleared: with several optimizers it may not
    step for a while.

    Args:
        patience: measured steps in a row until it is a finding. One alone is no fault: a search for a learning rate, or
            a first backward pass by hand, leaves a gradient behind that the program clears after its first step.

    Raises:
        ValueError: when the patience is not positive.

    Example:
        >>> snapshot = Snapshot(1, (), params=("a.weight", "a.bias"), carried_over=("a.weight",))
        >>> [finding.layers for finding in CarriedOver()(snapshot)]
        [('a.weight',)]

    References:
        No published rule, and no threshold: what is added to a gradient that was used already is a fact.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    patience: int = 2
    _carried: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding for all parameters whose gradients were not cleared."""
        self._carried = (self._carried - set(snapshot.params)) | set(snapshot.carried_over)
        if self._carried:
            names = (*snapshot.carried_over, *sorted(self._carried - set(snapshot.carried_over)))
            message = (
                f"carried-over gradients: {len(names)} parameters still hold the gradient of the step before, among "
                f"them {', '.join(names[:3])}: optimizer.zero_grad() is missing."
            )
            yield Finding("carried-over", names, snapshot.step, float(len(names)), 0.0, message)

    def state_dict(self) -> dict[str, Any]:
        """The parameters that were not cleared when their optimizer stepped last, for a checkpoint."""
        return {"carried": sorted(self._carried)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what an earlier run knows."""
        self._carried = set(state["carried"])


_REASONS = {
    "before backward": "runs before backward(), when there is no gradient of this step to clip",
    "no gradients": "is given parameters none of which has a gradient, so it clips nothing",
}


@dataclass
class IdleClip:
    """``clip_grad_norm_`` is called before the backward pass, or on parameters without a gradient.

    A clip that has worked before is no finding: its part of the model is at rest. A bound that is never met is none
    either: the summary tells it, and it is a cause where the gradient explodes.

    Args:
        patience: measured steps in a row until it is a finding.

    Raises:
        ValueError: when the patience is not positive.

    Example:
        >>> snapshot = Snapshot(0, (), clip="before backward", clip_max_norm=1.0)
        >>> [(finding.value, finding.case) for finding in IdleClip()(snapshot)]
        [(1.0, 'before backward')]
    """

    needs: ClassVar[tuple[str, ...]] = ()
    patience: int = 3
    _has_worked: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding about the clip of a step."""
        self._has_worked = self._has_worked or snapshot.clip == "norm"
        if self._has_worked or snapshot.clip not in _REASONS:
            return
        bound = snapshot.clip_max_norm
        message = f"idle-clip: clip_grad_norm_(..., max_norm={bound:.3g}) {_REASONS[snapshot.clip]}."
        yield Finding("idle-clip", ("clip_grad_norm_",), snapshot.step, bound, 0.0, message, case=snapshot.clip)

    def state_dict(self) -> dict[str, Any]:
        """Return if the clip has worked, for a checkpoint."""
        return {"has_worked": self._has_worked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what an earlier run knows."""
        self._has_worked = bool(state["has_worked"])


@dataclass
class OutOfSync:
    """Parameters and buffers are not the same on all processes, bit for bit, after a step.

    Processes that train one model take the same step from the same weights. They drift apart when some batches go past
    DDP (``model.module(x)``, ``no_sync`` at a step), or when a process loads, changes or initializes weights alone.
    The sums of a measured step hold a checksum of each tensor, so this needs no communication.

    Methods that let replicas drift on purpose and average them now and then (local SGD) need detectors without this.

    Args:
        patience: measured steps in a row until it is a finding: a copy may be in the making at one of them.

    Raises:
        ValueError: when ``patience`` is not a whole number above 0.

    Example:
        >>> apart = Snapshot(4, (), out_of_sync={"w": 2})
        >>> next(OutOfSync()(apart)).message
        'replicas differ: 1 tensor is not the same on all processes: w; rank 2 holds other values than the rest.'
    """

    needs: ClassVar[tuple[str, ...]] = ()
    patience: int = 2

    def __post_init__(self) -> None:
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding on all tensors that differ."""
        apart = snapshot.out_of_sync
        if apart:
            message = f"replicas differ: {_tensors(tuple(apart))}{_rank(set(apart.values()))}."
            count = float(len(apart))
            yield Finding("out-of-sync", tuple(apart), snapshot.step, count, 0.0, message, severity="error")


@dataclass
class Broadcast:
    """The loss compares each output with each target: of shapes such as (64, 1) and (64,) broadcasting makes (64, 64).

    The best such an output can do is the mean of all targets. It is read from autograd's graph next to the loss, where
    an output meets something without a gradient. Matrices of pairs that are made on purpose (``unsqueeze``, both sides
    with a gradient, a softmax, a minimum or weights over the pairs) are none.

    Args:
        patience: measured steps in a row until it is a finding.

    Raises:
        ValueError: when the patience is not positive.

    Example:
        >>> [finding.message for finding in Broadcast()(Snapshot(0, (), broadcast="(N, 1) and (N,) to (N, N)"))]
        ['broadcast: each output meets each target: shapes (N, 1) and (N,) to (N, N), N being the samples.']

    References:
        No threshold. torch warns of it in ``mse_loss``, not where the difference is written by hand.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    patience: int = 2

    def __post_init__(self) -> None:
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding about the loss."""
        if snapshot.broadcast:
            message = f"broadcast: each output meets each target: shapes {snapshot.broadcast}, N being the samples."
            yield Finding("broadcast", ("loss",), snapshot.step, 1.0, 0.0, message)


def _tensors(names: tuple[str, ...]) -> str:
    count = f"{len(names)} tensors are" if len(names) > 1 else "1 tensor is"
    among = ", among them " if len(names) > _NAMED else ": "
    return f"{count} not the same on all processes{among}{', '.join(names[:_NAMED])}"


def _rank(ranks: set[int]) -> str:
    """Return in words which process differs, where it is one alone for all tensors of which that is known."""
    known = ranks - {-1}
    return f"; rank {min(known)} holds other values than the rest" if len(known) == 1 else ""

"""``gradwatch.diagnose``: what is wrong with a network before it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from gradwatch.preflight.believed import idle
from gradwatch.preflight.criticality import chi_of, in_words
from gradwatch.preflight.inputs import measure
from gradwatch.preflight.passes import one_pass
from gradwatch.preflight.result import Preflight
from gradwatch.preflight.rules import ranked
from gradwatch.preflight.seen import Seen
from gradwatch.reporting.words import listed

_MOST_UNLOCKS = 3  # a head and the ends of the branches are unlocked by a step each


def diagnose(module: nn.Module, batch: Any, *, loss: Callable[[Any, Any], Tensor] | None = None) -> Preflight:
    """Say what is wrong with a network before any training, from one forward and backward pass of a copy.

    Parameters that start at zero on purpose (ReZero, a zero head) keep the gradient from what is behind them until
    the first step has moved them. Where something is found, they are moved a little and the pass is made again.

    Args:
        module: a LightningModule, whose training_step is taken, or any module, with ``loss``. It stays as it is.
        batch: one batch of real data, the larger the better: from 100 samples on, dead units are looked for. With
            ``loss`` it is (inputs, targets).
        loss: for a plain module: takes its output and the targets.

    Returns:
        The causes, ranked, none for a healthy network; it prints well.

    Raises:
        TypeError: when a plain module comes without a loss, or a module can't be copied.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(-1))
        >>> batch = torch.randn(128, 4), torch.randint(0, 3, (128,))
        >>> [cause.cause for cause in diagnose(model, batch, loss=nn.CrossEntropyLoss()).diagnoses]
        ['zero-gradient head']
        >>> diagnose(model[:-1], batch, loss=nn.CrossEntropyLoss()).diagnoses
        []
    """
    first = seen = Seen(*one_pass(module, batch, loss), batch)
    zeros: set[str] = set()
    for _ in range(_MOST_UNLOCKS):
        if not seen.run.findings or set(seen.recorder.zeros) <= zeros:
            break
        zeros |= set(seen.recorder.zeros)
        seen = Seen(*one_pass(module, batch, loss, sorted(zeros)), batch)
    snapshot = first.run.history[-1] if first.run.history else None
    chi = chi_of(snapshot, first.recorder.spreads) if snapshot is not None else {}
    notes = tuple(_notes(first, chi))
    return Preflight(type(module).__name__, snapshot, ranked(seen), seen.run.findings, chi, notes)


def _notes(seen: Seen, chi: dict[str, float]) -> Iterator[str]:
    if seen.inputs is not None and seen.recorder.first is not None:
        yield f"Inputs of {seen.recorder.first[0]}: {seen.inputs}."
    if seen.target is not None:
        yield f"Targets: {measure(seen.target)}."
    if seen.run.history and (resting := idle(seen.run.history[-1], seen.recorder)):
        yield f"Not called in this pass: {listed(resting)}."
    if chi:
        yield in_words(chi)
    if seen.recorder.tiny > 0.01 or seen.recorder.largest > 65504:  # float16's largest number
        yield (
            f"In float16 without a loss scale {seen.recorder.tiny:.0%} of the gradients' entries would become 0; "
            f"the largest is {seen.recorder.largest:.2g} of 65504."
        )

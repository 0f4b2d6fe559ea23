"""``gradwatch.diagnose``: say what is wrong with a network before it is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text
from torch import Tensor, nn

from gradwatch.paths import beside_the_way
from gradwatch.preflight.first_pass import FirstPass, measure
from gradwatch.preflight.rules import diagnoses_of
from gradwatch.preflight.verdict import train_and_record, uncalled_layers
from gradwatch.probe.layers import ROOT
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.layer_table import LayerTable
from gradwatch.reporting.text import listed, verdict
from gradwatch.short_runs.run import as_text
from gradwatch.short_runs.sandbox import copy_without_trainer
from gradwatch.shown import Shown
from gradwatch.theory import chi_in_words, chi_of

Loss = Callable[[Any, Any], Tensor]
_MOST_UNLOCKS = 3  # a head and the ends of the branches are unlocked by a step each
_WORTH_TELLING = 0.01  # share of the gradients' entries that float16 would lose
_FLOAT16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False)
class Preflight(Shown):
    """The result of one forward and backward pass before any training.

    Attributes:
        name: class of the module.
        snapshot: the pass, measured; None where it crashed.
        diagnoses: what is wrong, the likeliest cause first; empty for a healthy network.
        findings: what the detectors found in the pass.
        chi: activation -> the factor by which it and the layer before it multiply the square of the gradient. Below 1
            the gradient fades with depth, above 1 it grows (Schoenholz et al., Deep Information Propagation, 2017).
        notes: further measurements, as sentences.

    Example:
        >>> print(Preflight("Net", Snapshot(0, ("a",)), notes=("The inputs are scaled.",)))
        no fault found before training: Net
        layer
        ─────
        a
        The inputs are scaled.
    """

    name: str
    snapshot: Snapshot | None = None
    diagnoses: list[Diagnosis] = field(default_factory=list)
    findings: tuple[Finding, ...] = ()
    chi: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Return True if nothing was found."""
        return not self.diagnoses

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render the layers, the notes and the verdict."""
        state, style = ("no fault found", "bold green") if self.is_healthy else ("not healthy", "bold red")
        yield Text(f"{state} before training: {self.name}", style=style)
        if self.snapshot is not None:
            yield LayerTable(self.snapshot, self.findings)
        for note in self.notes:
            yield Text(note, style="dim")
        if self.diagnoses:
            yield Text()
            yield verdict((), self.diagnoses)

    def __str__(self) -> str:
        return as_text(self)


def diagnose(module: nn.Module, batch: Any, *, loss: Loss | None = None) -> Preflight:
    """Say what is wrong with a network before any training, from one forward and backward pass of a copy.

    Parameters that start at zero on purpose (ReZero, a zero head) pass no gradient on until the first step has moved
    them. Where something is found, they are moved a little and the pass is made again.

    Args:
        module: a LightningModule, whose training_step is taken, or any module, with ``loss``. It does not change.
        batch: one batch of real data, the larger the better: from 100 samples on, dead units are looked for. With
            ``loss`` it is (inputs, targets).
        loss: for a plain module: takes its output and the targets.

    Returns:
        The causes, ranked; none for a healthy network. It prints well.

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
    first = seen = _pass(module, batch, loss)
    zeros: set[str] = set()
    for _ in range(_MOST_UNLOCKS):
        if not (seen.findings or diagnoses_of(seen)) or set(seen.recorder.zeros) <= zeros:
            break
        zeros |= set(seen.recorder.zeros)
        seen = _pass(_moved(module, zeros), batch, loss)
    snapshot = first.last if first.history else None
    chi = chi_of(snapshot, first.recorder.spreads) if snapshot is not None else {}
    return Preflight(type(module).__name__, snapshot, diagnoses_of(seen), seen.findings, chi, tuple(_notes(first, chi)))


def _pass(module: nn.Module, batch: Any, loss: Loss | None) -> FirstPass:
    run, recorder = train_and_record(module, batch, loss=loss, steps=1)
    return FirstPass(run, recorder, batch)


def _moved(module: nn.Module, names: Collection[str]) -> nn.Module:
    """Return a copy whose parameters of these names, which are zero, are moved a little, as a step would."""
    moved, generator = copy_without_trainer(module), torch.Generator().manual_seed(0)
    for name, param in moved.named_parameters():
        if name in names:
            # A tenth of what keeps a signal's size: enough to pass gradients on, too little to carry the network.
            size = 0.1 / max(param[0].numel(), 1) ** 0.5 if param.dim() > 1 else 0.1
            noise = torch.randn(param.shape, generator=generator) * size
            param.data.copy_(noise.to(param))
    return moved


def _apart(seen: FirstPass) -> list[str]:
    """Return the parameters of layers that were called, and whose output is one more that the loss does not take."""
    last, resting = seen.last, uncalled_layers(seen.last, seen.recorder)
    without = np.isnan(last.param_grad_norm) & beside_the_way(last)
    names = [name for name, is_apart in zip(last.params, without.tolist(), strict=True) if is_apart]
    found = {name for finding in seen.findings if finding.kind == "stalled" for name in finding.layers}
    return [name for name in names if name not in found and (name.rpartition(".")[0] or ROOT) not in resting]


def _notes(seen: FirstPass, chi: dict[str, float]) -> Iterator[str]:
    if seen.inputs is not None and seen.recorder.first is not None:
        yield f"Inputs of {seen.recorder.first[0]}: {seen.inputs}."
    if seen.target is not None:
        yield f"Targets: {measure(seen.target)}."
    if seen.history and (resting := uncalled_layers(seen.last, seen.recorder)):
        yield f"Not called in this pass: {listed(resting)}."
    if seen.history and (apart := _apart(seen)):
        yield f"The loss does not depend on {listed(apart)}, which get no gradient."
    if chi:
        yield chi_in_words(chi)
    if seen.recorder.tiny > _WORTH_TELLING or seen.recorder.largest > _FLOAT16_MAX:
        yield (
            f"In float16 without a loss scale {seen.recorder.tiny:.0%} of the gradients' entries would become 0; "
            f"the largest is {seen.recorder.largest:.2g} of {_FLOAT16_MAX:.0f}."
        )

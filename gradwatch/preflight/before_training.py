"""What a preflight found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text
from torch import Tensor, nn

from gradwatch.preflight.first_pass import FirstPass, Recorder, measure
from gradwatch.preflight.rules import diagnoses_of
from gradwatch.preflight.verdict import drop_premature_findings, uncalled_layers
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.terminal import layer_table
from gradwatch.reporting.text import listed, verdict
from gradwatch.short_runs.loop import train_in_a_loop
from gradwatch.short_runs.run import Run, as_text
from gradwatch.short_runs.sandbox import copy_without_trainer
from gradwatch.short_runs.trainer import train_with_a_trainer
from gradwatch.theory import chi_in_words, chi_of


@dataclass(frozen=True, eq=False)
class Preflight:
    """What one forward and backward pass tells before any training.

    Attributes:
        name: class of the module.
        snapshot: the pass, measured; None where it crashed.
        diagnoses: what is wrong, the likeliest cause first; empty for a healthy network.
        findings: what the detectors found in the pass.
        chi: activation -> by how much it and the layer before it multiply the square of the gradient: below 1 it fades
            with depth, above 1 it grows (Schoenholz et al., Deep Information Propagation, 2017).
        notes: further measurements, as sentences.

    Example:
        >>> print(Preflight("Net", Snapshot(0, ("a",)), notes=("The inputs are scaled.",)))
        healthy before training: Net
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
        """Whether nothing was found."""
        return not self.diagnoses

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render the layers, the notes and the verdict."""
        state, style = ("healthy", "bold green") if self.is_healthy else ("not healthy", "bold red")
        yield Text(f"{state} before training: {self.name}", style=style)
        if self.snapshot is not None:
            mark = "#" if options.ascii_only else "\N{BLACK SQUARE}"
            yield layer_table(self.snapshot, self.findings, "", options.max_width, mark)
        for note in self.notes:
            yield Text(note, style="dim")
        if self.diagnoses:
            yield Text()
            yield verdict((), self.diagnoses)

    def __str__(self) -> str:
        return as_text(self)


Loss = Callable[[Any, Any], Tensor]


def one_pass(module: nn.Module, batch: Any, loss: Loss | None, zeros: Sequence[str] = ()) -> tuple[Run, Recorder]:
    """Pass a batch through a copy and back.

    Args:
        module: stays as it is.
        batch: what a training step gets.
        loss: of a plain module; None for a LightningModule.
        zeros: parameters that are all zero, and are moved a little first, as a step would.

    Raises:
        TypeError: when a plain module comes without a loss, or a module can't be copied.

    Example:
        >>> run, recorder = one_pass(nn.Linear(2, 1), (torch.ones(4, 2), torch.zeros(4, 1)), nn.MSELoss())
        >>> run.steps, recorder.first[1].shape
        (1, torch.Size([4, 2]))
    """
    moved, recorder = _moved(module, zeros) if zeros else module, Recorder()
    if loss is not None:
        run = train_in_a_loop(moved, batch, loss, steps=1, observer=recorder)
        return drop_premature_findings(run, recorder), recorder
    if not isinstance(moved, LightningModule):
        raise TypeError(
            f"{type(module).__name__} is no lightning.pytorch.LightningModule; expected one, or a loss function: "
            f"gradwatch.diagnose(module, (inputs, targets), loss=torch.nn.functional.cross_entropy)"
        )
    run = train_with_a_trainer(moved, batch, steps=1, observer=recorder)
    return drop_premature_findings(run, recorder), recorder


def _moved(module: nn.Module, names: Sequence[str]) -> nn.Module:
    moved, generator = copy_without_trainer(module), torch.Generator().manual_seed(0)
    for name, param in moved.named_parameters():
        if name in names:
            # A tenth of what keeps a signal's size: enough to pass gradients on, too little to carry the network.
            size = 0.1 / max(param[0].numel(), 1) ** 0.5 if param.dim() > 1 else 0.1
            noise = torch.randn(param.shape, generator=generator) * size
            param.data.copy_(noise.to(param))
    return moved


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
    first = seen = FirstPass(*one_pass(module, batch, loss), batch)
    zeros: set[str] = set()
    for _ in range(_MOST_UNLOCKS):
        if not seen.run.findings or set(seen.recorder.zeros) <= zeros:
            break
        zeros |= set(seen.recorder.zeros)
        seen = FirstPass(*one_pass(module, batch, loss, sorted(zeros)), batch)
    snapshot = first.run.history[-1] if first.run.history else None
    chi = chi_of(snapshot, first.recorder.spreads) if snapshot is not None else {}
    notes = tuple(_notes(first, chi))
    return Preflight(type(module).__name__, snapshot, diagnoses_of(seen), seen.run.findings, chi, notes)


def _notes(seen: FirstPass, chi: dict[str, float]) -> Iterator[str]:
    if seen.inputs is not None and seen.recorder.first is not None:
        yield f"Inputs of {seen.recorder.first[0]}: {seen.inputs}."
    if seen.target is not None:
        yield f"Targets: {measure(seen.target)}."
    if seen.run.history and (resting := uncalled_layers(seen.run.history[-1], seen.recorder)):
        yield f"Not called in this pass: {listed(resting)}."
    if chi:
        yield chi_in_words(chi)
    if seen.recorder.tiny > 0.01 or seen.recorder.largest > 65504:  # float16's largest number
        yield (
            f"In float16 without a loss scale {seen.recorder.tiny:.0%} of the gradients' entries would become 0; "
            f"the largest is {seen.recorder.largest:.2g} of 65504."
        )

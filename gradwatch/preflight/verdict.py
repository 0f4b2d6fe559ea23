"""The verdict on a short training, without the findings that a longer training would take back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, get_args

from lightning.pytorch import LightningModule
from torch import nn

from gradwatch.diagnosis import diagnose
from gradwatch.diagnosis.evidence import Evidence
from gradwatch.diagnosis.ranking import NOT_LEARNING
from gradwatch.identifiers import IDENTIFIERS, name_of, with_identifier
from gradwatch.layer_kinds import is_gated_recurrent
from gradwatch.preflight.first_pass import FirstPass, Recorder
from gradwatch.preflight.rules import diagnoses_of
from gradwatch.probe.layers import ROOT
from gradwatch.progress import finding_of
from gradwatch.records import Cause, Finding, Kind, Snapshot
from gradwatch.short_runs.loop import train_in_a_loop
from gradwatch.short_runs.run import Run
from gradwatch.short_runs.trainer import train_with_a_trainer

# Half the units of a deep ReLU network may rest in one batch; AUTOTRAINER (Zhang et al., ICSE 2021) calls a network
# dying where 70 % of the gradient's entries are zero.
_DEAD = 0.7


def drop_premature_findings(run: Run, recorder: Recorder) -> Run:
    """Drop findings that need more steps than a short run has, and diagnose the others anew.

    Dropped are units that rest; gated cells over their calls, as their gates open in training; and the parameters of
    one head or expert of several that waits for its turn: not called, or with a gradient at another step.

    Example:
        >>> dead = Finding("dead", ("relu",), 0, 0.55, 0.5, "half of it is dead")
        >>> drop_premature_findings(Run("Net", (Snapshot(0, ("relu",)),), (dead,)), Recorder()).findings
        ()
    """
    if not run.history:
        return run
    kept = tuple(filter(None, (_if_lasting(finding, run.history, recorder) for finding in run.findings)))
    run = replace(run, findings=kept, chance=recorder.head.chance)
    stuck = finding_of(run.judgement, run.history[-1].step)  # anew, as the loss of a constant prediction is known now
    kept = (*kept, stuck) if stuck is not None else kept
    return replace(run, findings=kept, diagnoses=tuple(diagnose(kept, run.history)))


def uncalled_layers(snapshot: Snapshot, recorder: Recorder) -> list[str]:
    """Return the layers with parameters that were not called."""
    return [layer for layer in dict.fromkeys(map(_owner, snapshot.params)) if layer not in recorder.called]


def _if_lasting(finding: Finding, history: Sequence[Snapshot], recorder: Recorder) -> Finding | None:
    if finding.kind == NOT_LEARNING or (finding.kind == "dead" and finding.value < _DEAD):
        return None
    last = history[-1]
    gated = {layer for layer, kind in zip(last.layers, last.kinds, strict=True) if is_gated_recurrent(kind)}
    if finding.kind == "vanishing" and set(finding.layers) <= gated & set(last.calls):
        return None
    if finding.kind == "unmoved" and finding.case == "no optimizer":  # another one may still have its turn
        return finding if set(finding.layers) <= set(last.left_out) else None
    if finding.kind == "stalled" and finding.case in ("", "unused"):
        moved = Evidence((), history).params_with_gradient
        stuck = tuple(name for name in finding.layers if _owner(name) in recorder.called and name not in moved)
        return replace(finding, layers=stuck) if stuck else None
    return finding


def _owner(param: str) -> str:
    return param.rpartition(".")[0] or ROOT


_KNOWN = (*get_args(Cause), *get_args(Kind))


def check_training(module: nn.Module, data: Any, *, allow: Collection[str] = (), **settings: Any) -> Run:
    """Train a copy for a few steps, and name what is wrong with it.

    Args:
        module: a LightningModule, or any module where ``loss`` is among the settings.
        data: a batch, a DataLoader or a LightningDataModule.
        allow: causes, or kinds of findings, to ignore, by name or identifier.
        **settings: of :func:`~gradwatch.short_runs.loop.train_in_a_loop` where there is a loss, else of
            :func:`~gradwatch.short_runs.trainer.train_with_a_trainer`.

    Raises:
        TypeError: when a plain module comes without a loss, or a module can't be copied.
        ValueError: when ``allow`` has a name that is no cause and no kind of finding.

    Example:
        >>> import torch
        >>> pixels = 255 * torch.rand(64, 2), torch.rand(64, 1)
        >>> run = check_training(nn.Linear(2, 1), pixels, loss=nn.MSELoss(), steps=1, allow=["exploding"])
        >>> run.diagnoses[0].cause
        'unscaled input'
    """
    allow = known_names(allow)
    run, recorder = train_and_record(module, data, **settings)
    if not run.trouble:
        run = replace(run, diagnoses=tuple(diagnoses_of(FirstPass(run, recorder, data))))
    return _without(run, allow) if allow else run


def judge(name: str, history: Sequence[Snapshot], findings: Sequence[Finding], *, allow: Collection[str] = ()) -> Run:
    """Judge a training that was watched, as ``check_training`` judges its own, but for what a first batch tells.

    Args:
        name: class of the module.
        history: its measured steps.
        findings: what the detectors found in them.
        allow: causes, or kinds of findings, to ignore, by name or identifier.

    Raises:
        ValueError: when ``allow`` has an unknown name.

    Example:
        >>> resting = Finding("dead", ("relu",), 0, 0.55, 0.5, "half of it is dead")
        >>> judge("Net", [Snapshot(0, ("relu",), loss=1.0)], [resting]).is_healthy
        True
    """
    recorder = Recorder()
    for snapshot in history:
        recorder.called |= {layer for layer, ran in zip(snapshot.layers, snapshot.ran, strict=True) if ran == 1}
    run = Run(name, tuple(history), tuple(findings), tuple(diagnose(findings, history)))
    return _without(drop_premature_findings(run, recorder), known_names(allow))


def train_and_record(module: nn.Module, data: Any, *, loss: Any = None, **settings: Any) -> tuple[Run, Recorder]:
    """Train a copy for a few steps, as ``check_training`` does, and record its first pass; drop premature findings."""
    recorder = Recorder()
    if loss is not None:
        run = train_in_a_loop(module, data, loss, observer=recorder, **settings)
    elif isinstance(module, LightningModule):
        run = train_with_a_trainer(module, data, observer=recorder, **settings)
    else:
        raise TypeError(
            f"{type(module).__name__} is no lightning.pytorch.LightningModule; expected one, or a loss function, such "
            f"as loss=torch.nn.functional.cross_entropy, and (inputs, targets) as a batch"
        )
    return drop_premature_findings(run, recorder), recorder


def known_names(allow: Iterable[str]) -> frozenset[str]:
    """Return the names of causes and findings that are given by name or by identifier.

    Raises:
        ValueError: for what is neither, with the nearest one and the names there are.

    Example:
        >>> sorted(known_names(["GW101", "dead"]))
        ['dead', 'saturating activation']
    """
    names = {given: name_of(given) for given in allow}
    unknown = [given for given, name in names.items() if name not in _KNOWN]
    if unknown:
        near = get_close_matches(unknown[0], (*_KNOWN, *IDENTIFIERS), n=1)
        question = f"; did you mean {near[0]!r}?" if near else "."
        known = ", ".join(map(with_identifier, _KNOWN))
        raise ValueError(
            f"allow has {unknown[0]!r}{question} Expected names or identifiers of causes or findings: {known}"
        )
    return frozenset(names.values())


def _without(run: Run, allow: Collection[str]) -> Run:
    excused = {finding for cause in run.diagnoses if cause.cause in allow for finding in cause.findings}

    def stays(finding: Finding) -> bool:
        return finding.kind not in allow and finding not in excused

    findings = tuple(filter(stays, run.findings))
    diagnoses = [
        replace(cause, findings=tuple(filter(stays, cause.findings)))
        for cause in run.diagnoses
        if cause.cause not in allow and (not cause.findings or any(map(stays, cause.findings)))
    ]
    return replace(run, findings=findings, diagnoses=tuple(diagnoses))

"""A short training, judged by what is seen over its steps and in its first pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, get_args

from lightning.pytorch import LightningModule
from torch import nn

from gradwatch.preflight.believed import believed
from gradwatch.preflight.recorder import Recorder
from gradwatch.preflight.rules import ranked
from gradwatch.preflight.seen import Seen
from gradwatch.records import Cause, Finding, Kind
from gradwatch.runs import Run, train_in_a_loop, train_with_a_trainer

_KNOWN = (*get_args(Cause), *get_args(Kind))


def judged_training(module: nn.Module, data: Any, *, allow: Collection[str] = (), **settings: Any) -> Run:
    """Train a copy for a few steps, and judge it.

    Args:
        module: a LightningModule, or any module where ``loss`` is among the settings.
        data: a batch, a DataLoader or a LightningDataModule.
        allow: causes, or kinds of findings, that are no fault here.
        **settings: of :func:`gradwatch.runs.train_in_a_loop` where there is a loss, else of
            :func:`gradwatch.runs.train_with_a_trainer`.

    Raises:
        TypeError: when a plain module comes without a loss, or a module can't be copied.
        ValueError: when ``allow`` has a name that is no cause and no kind of finding.

    Example:
        >>> import torch
        >>> pixels = 255 * torch.rand(64, 2), torch.rand(64, 1)
        >>> run = judged_training(nn.Linear(2, 1), pixels, loss=nn.MSELoss(), steps=1, allow=["exploding"])
        >>> run.diagnoses[0].cause
        'unscaled input'
    """
    require_known(allow)
    recorder = Recorder()
    train: Callable[..., Run] = train_in_a_loop if settings.get("loss") is not None else train_with_a_trainer
    if train is train_with_a_trainer and not isinstance(module, LightningModule):
        raise TypeError(
            f"{type(module).__name__} is no lightning.pytorch.LightningModule; expected one, or a loss function, such "
            f"as loss=torch.nn.functional.cross_entropy, and (inputs, targets) as a batch"
        )
    run = train(module, data, observer=recorder, **settings)
    run = believed(run, recorder)
    if not run.trouble:
        run = replace(run, diagnoses=tuple(ranked(Seen(run, recorder, data))))
    return _without(run, allow) if allow else run


def require_known(allow: Iterable[str]) -> None:
    """Refuse what is no cause and no kind of finding.

    Raises:
        ValueError: with the names there are.

    Example:
        >>> require_known(["unscaled input", "dead"])
    """
    unknown = [name for name in allow if name not in _KNOWN]
    if unknown:
        raise ValueError(f"allow has {unknown[0]!r}; expected names of causes or findings: {', '.join(_KNOWN)}")


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

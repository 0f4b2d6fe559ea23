"""Callback that runs transforms on the gradients of each optimizer that steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from gradwatch.callbacks.either import KeptCallback
from gradwatch.callbacks.optimizer_run import OptimizerRun, total_norm
from gradwatch.callbacks.refusals import check_monitor, check_trainer, find_monitor
from gradwatch.probe.layers import plain_name
from gradwatch.transforms import Chain, StepContext, Transform
from gradwatch.transforms.transform import walk

_ENOUGH_STEPS = 100  # before a share of clipped steps says anything about the learning rate


class GradientTransform(KeptCallback):
    """Clip, normalize or otherwise edit gradients just before each optimizer step.

    The transforms see what the optimizer is about to use: unscaled, accumulated, of its own parameters alone. With
    several optimizers each has its own state (a history of norms, say); name parameters with ``Only`` to treat them
    differently. Put it behind a ``GradientMonitor`` in the Trainer's list, so that the monitor reads them as they were.

    Args:
        transforms: a transform, a function of ``(params, context)``, or a list of them, applied in order.

    Raises:
        ValueError: at the start of the fit, when a pattern matches no parameter, ``When`` has no monitor to ask, or
            another setting of the Trainer would act on the same gradients or hide them.

    Logged every ``log_every_n_steps`` steps of an optimizer (with several optimizers, as ``<key>/optimizer_<i>``):

    ======================== ==========================================================================
    ``grad_norm_total``       norm before the transforms; left to the monitor where there is one
    ``grad_norm_total_after`` norm after them; the same
    ``clip_coefficient``      what a clip on all gradients multiplied them by
    ``clipped_share``         share of the steps so far in which a clip met its bound
    ``skipped_steps``         how many steps were left out so far
    ======================== ==========================================================================

    The last two are in ``trainer.callback_metrics`` too.

    Example:
        >>> from gradwatch.transforms import ClipByGlobalNorm, SkipNonFinite
        >>> GradientTransform([SkipNonFinite(), ClipByGlobalNorm(1.0)]).transform
        Chain(transforms=(SkipNonFinite(budget=10), ClipByGlobalNorm(max_norm=1.0, p=2.0)))
    """

    def __init__(self, transforms: list[Transform | Callable[..., Any]] | Transform | Callable[..., Any]) -> None:
        self.transform = Chain(transforms if isinstance(transforms, (list, tuple)) else [transforms])
        self._runs: dict[int, OptimizerRun] = {}
        self._names: dict[int, str] = {}
        self._advised = False

    @property
    def state_key(self) -> str:
        """Differs between callbacks with different transforms, so that a Trainer may have several."""
        return self._generate_state_key(transforms=[type(part).__name__ for part in walk(self.transform)])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what could not work."""
        self._names = _parameter_names(pl_module)
        self.transform.check(list(self._names.values()))
        check_monitor(self, self.transform, trainer)
        check_trainer(self.transform, trainer)
        for index in range(len(trainer.optimizers)):
            self._run_of(index)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Run the chain on this optimizer's parameters."""
        index = next((i for i, known in enumerate(trainer.optimizers) if known is optimizer), 0)
        run, params = self._run_of(index), self._params_of(optimizer, pl_module)
        monitor = find_monitor(trainer)
        kinds = frozenset(finding.kind for finding in monitor.findings if finding.is_open) if monitor else frozenset()
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs = every > 0 and run.steps % every == 0
        before = total_norm(params) if logs and monitor is None else None
        outcome = run.step(params, StepContext(trainer.global_step, kinds))
        if logs:
            after = None if before is None else total_norm(params)
            self._log(trainer, pl_module, index, run.numbers(outcome, before, after))

    def _run_of(self, index: int) -> OptimizerRun:
        if index not in self._runs:
            chain = self.transform if index == 0 else copy.deepcopy(self.transform)
            self._runs[index] = OptimizerRun(chain)
        return self._runs[index]

    def _params_of(self, optimizer: Optimizer, pl_module: LightningModule) -> dict[str, nn.Parameter]:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        if any(id(param) not in self._names for param in params):
            self._names = _parameter_names(pl_module)
        return {self._names.get(id(param), f"(parameter {i})"): param for i, param in enumerate(params)}

    def _log(self, trainer: Trainer, pl_module: LightningModule, index: int, numbers: dict[str, float]) -> None:
        suffix = f"/optimizer_{index}" if len(trainer.optimizers) > 1 else ""
        for logger in trainer.loggers:
            logger.log_metrics({key + suffix: value for key, value in numbers.items()}, step=trainer.global_step)
        for key in ("clipped_share", "skipped_steps"):
            if key in numbers:
                pl_module.log(key + suffix, numbers[key], on_step=True, on_epoch=False, logger=False)
        self._advise(index, numbers)

    def _advise(self, index: int, numbers: dict[str, float]) -> None:
        share, steps = numbers.get("clipped_share", 0.0), self._runs[index].steps
        learns = any(part.learns_bound for part in walk(self.transform))
        if share > 0.5 and steps >= _ENOUGH_STEPS and not learns and not self._advised:
            self._advised = True
            rank_zero_warn(
                f"{share:.0%} of {steps} steps were clipped by {self.transform}. A clip is for the odd step; where it "
                "acts on most, a lower learning rate is the likelier remedy (or a higher bound)."
            )

    def state_dict(self) -> dict[str, Any]:
        """The chain's state and the counts, for each optimizer."""
        return {str(index): run.state_dict() for index, run in self._runs.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        for index, state in sorted(state_dict.items(), key=lambda item: -int(item[0])):
            self._run_of(int(index)).load_state_dict(state)


def _parameter_names(pl_module: nn.Module) -> dict[int, str]:
    return {id(param): plain_name(name) for name, param in pl_module.named_parameters()}

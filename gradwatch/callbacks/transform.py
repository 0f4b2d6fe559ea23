"""Callback that edits gradients just before each optimizer step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.callbacks.releases_module import ReleasesModule
from gradwatch.callbacks.steps_past_lightning import StepsPastLightning
from gradwatch.callbacks.trainer_checks import check_monitor, check_trainer, find_monitor
from gradwatch.containment import Containment, OnError, say
from gradwatch.probe.layers import named_parameters, plain_name
from gradwatch.torch_internals import has_unscaled, unscales_itself
from gradwatch.transforms import Chain, Gradients, Outcome, StepContext, Transform
from gradwatch.transforms.transform import walk

_ENOUGH_STEPS = 100  # before a share of clipped steps says anything about the learning rate
_ENOUGH_BATCHES = 100  # without any step: more than manual accumulation goes over

_SCALED = (
    "GradientTransform does not change the gradients of {optimizer}: they are still multiplied by the loss scale "
    "(precision={precision!r}), as this optimizer steps past Lightning, which would divide them. Get the optimizer "
    "from self.optimizers(), without use_pl_optimizer=False."
)
_IDLE = (
    "GradientTransform has transformed nothing: there were gradients, but no optimizer was seen to step. Its "
    "transforms run when a torch.optim.Optimizer with parameters of the module steps. They do not run where weights "
    "are updated by hand, by another kind of optimizer, or by a step in code that torch.compile compiles."
)


class GradientTransform(ReleasesModule):
    """Clip, normalize or otherwise edit gradients just before each optimizer step.

    The transforms see the gradients that the optimizer is about to use: unscaled, accumulated, of its own parameters
    only. With several optimizers each has its own state, such as a history of norms; name parameters with ``Only`` to
    treat them differently. Put it after a ``GradientMonitor`` in the Trainer's list, so that the monitor reads the
    gradients before they are edited.

    Optimizers that step past Lightning are included: ``self.optimizers(use_pl_optimizer=False)``, optimizers made by
    hand, and those that step inside the backward pass. Under ``precision="16-mixed"`` the gradients of such an
    optimizer may still be scaled; then they are not changed, and a warning says so.

    Args:
        transforms: a transform, a function of ``(params, context)``, or a list of them, applied in order.
        on_error: ``"warn"`` goes on without a logger that fails, ``"raise"`` ends the fit; None takes the environment
            variable ``GRADWATCH_ON_ERROR``, and ``"warn"`` where it is not set. An error of a transform always ends
            the fit.

    Raises:
        ValueError: for an unknown ``on_error``; at the start of the fit, when a pattern matches no parameter, ``When``
            has no monitor to ask, or another setting of the Trainer would clip or scale the same gradients.

    Logged every ``log_every_n_steps`` steps of an optimizer; with several optimizers, as ``<key>/optimizer_<i>``.
    Optimizers that the Trainer does not know are numbered after its own, and logged against their own steps.

    ========================= ==========================================================================
    logged key                value
    ========================= ==========================================================================
    ``grad_norm_total``       L2 norm before the transforms; logged by the monitor where there is one
    ``grad_norm_total_after`` L2 norm after the transforms; the same
    ``clip_coefficient``      factor by which a clip multiplied all gradients
    ``clipped_share``         share of the steps so far in which a clip met its bound
    ``skipped_steps``         number of steps skipped so far
    ========================= ==========================================================================

    The last two are in ``trainer.callback_metrics`` too.

    Example:
        >>> from gradwatch.transforms import ClipByGlobalNorm, SkipNonFinite
        >>> GradientTransform([SkipNonFinite(), ClipByGlobalNorm(1.0)]).transform
        Chain(transforms=(SkipNonFinite(budget=10), ClipByGlobalNorm(max_norm=1.0, p=2.0)))
    """

    def __init__(
        self,
        transforms: list[Transform | Callable[..., Any]] | Transform | Callable[..., Any],
        on_error: OnError | None = None,
    ) -> None:
        self.transform = Chain(transforms if isinstance(transforms, (list, tuple)) else [transforms])
        self._containment = Containment(on_error)
        self._runs = OptimizerRuns(self.transform)
        self._names: dict[int, str] = {}
        self._fit = _Fit()
        self._past_lightning: StepsPastLightning | None = None

    @property
    def state_key(self) -> str:
        """Differs between callbacks with different transforms, so that a Trainer may have several."""
        return self._generate_state_key(transforms=[type(part).__name__ for part in walk(self.transform)])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the settings, and begin to look for steps that Lightning does not announce."""
        self._names = _parameter_names(pl_module)
        self.transform.check(list(self._names.values()))
        check_monitor(self, self.transform, trainer)
        check_trainer(self.transform, trainer)
        for index in range(len(trainer.optimizers)):
            self._runs[index]  # made here, so that no step pays for the copy
        self._containment = Containment(self._containment.on_error, speaks=trainer.is_global_zero)
        self._fit = _Fit()
        self._past_lightning = StepsPastLightning(partial(self._before_step_past_lightning, trainer, pl_module))
        self._past_lightning.open(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Run the chain; at this hook gradients are unscaled and accumulated, and Lightning has not clipped them."""
        if self._past_lightning is not None:
            self._past_lightning.mark_announced(optimizer)
        self._edit(trainer, pl_module, optimizer, is_announced=True)

    def _before_step_past_lightning(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._fit.has_stepped = True
        if is_scaled(optimizer, getattr(trainer.precision_plugin, "scaler", None)):
            self._say_once(_SCALED.format(optimizer=type(optimizer).__name__, precision=trainer.precision))
        else:
            self._edit(trainer, pl_module, optimizer, is_announced=False)

    def _edit(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, *, is_announced: bool) -> None:
        self._fit.has_stepped = True
        params = self._params_of(optimizer, pl_module)
        index = self._runs.index_of(optimizer, tuple(params), trainer.optimizers)
        run, monitor = self._runs[index], find_monitor(trainer)
        kinds = frozenset(finding.kind for finding in monitor.findings if finding.is_open) if monitor else frozenset()
        # Lightning counts only the steps that it announces.
        step = self._containment.step = trainer.global_step if is_announced else run.steps
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs = every > 0 and run.steps % every == 0
        before = self._norm(params) if logs and monitor is None else None
        outcome = run.step(params, StepContext(step, kinds))
        if logs:
            after = None if before is None else self._norm(params)
            self._containment.run("the logged numbers", self._log, trainer, index, step, outcome, before, after)

    def _params_of(self, optimizer: Optimizer, pl_module: LightningModule) -> dict[str, nn.Parameter]:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        if any(id(param) not in self._names for param in params):
            self._names = _parameter_names(pl_module)
        return {self._names.get(id(param), f"(parameter {i})"): param for i, param in enumerate(params)}

    def _norm(self, params: dict[str, nn.Parameter]) -> Tensor | None:
        return self._containment.run("the logged norms", total_norm, params)

    def _log(
        self, trainer: Trainer, index: int, step: int, outcome: Outcome, before: Tensor | None, after: Tensor | None
    ) -> None:
        run = self._runs[index]
        suffix = f"/optimizer_{index}" if len(trainer.optimizers) > 1 or index > 0 else ""
        numbers = {key + suffix: value for key, value in run.numbers(outcome, before, after).items()}
        for logger in trainer.loggers:
            log = partial(logger.log_metrics, step=step)
            self._containment.run(f"logger {type(logger).__name__}", log, numbers)
        for key in ("clipped_share" + suffix, "skipped_steps" + suffix):
            if key in numbers:  # not pl_module.log, which raises in a training_step that takes the dataloader_iter
                trainer.callback_metrics[key] = torch.tensor(numbers[key])
        self._advise(run, numbers.get("clipped_share" + suffix, 0.0))

    def _advise(self, run: OptimizerRun, share: float) -> None:
        learns = any(part.learns_bound for part in walk(self.transform))
        if share > 0.5 and run.steps >= _ENOUGH_STEPS and not learns and not self._fit.was_advised:
            self._fit.was_advised = True
            self._say_once(
                f"{share:.0%} of {run.steps} steps were clipped by {self.transform}. A clip is for the odd step; where "
                "it acts on most, a lower learning rate is the likelier remedy (or a higher bound)."
            )

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there are gradients."""
        self._fit.has_gradients = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Warn after many batches in which no optimizer has stepped."""
        fit = self._fit
        if not fit.has_stepped:
            fit.batches += 1
            enough = max(_ENOUGH_BATCHES, trainer.accumulate_grad_batches)
            if fit.batches <= enough and not fit.has_gradients:  # the user's own call of backward()
                fit.has_gradients = any(param.grad is not None for _, param, _ in named_parameters(pl_module))
            if fit.batches == enough:
                self._warn_if_idle()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of the same at the end of a short fit."""
        self._warn_if_idle()

    def _warn_if_idle(self) -> None:
        fit = self._fit
        if fit.batches and fit.has_gradients and not fit.has_stepped:
            self._say_once(_IDLE)

    def _say_once(self, message: str) -> None:
        if self._containment.speaks and message not in self._fit.said:
            say(message)
        self._fit.said.add(message)

    def release(self) -> None:
        """Remove the hooks, and drop all references to the module."""
        if self._past_lightning is not None:
            self._past_lightning.close()
            self._past_lightning = None
        super().release()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, pickled or deep, has no hooks."""
        return {**super().__getstate__(), "_past_lightning": None}

    def state_dict(self) -> dict[str, Any]:
        """Return the chain's state and the counts, for each optimizer."""
        return self._runs.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        self._runs.load_state_dict(state_dict)


@dataclass
class _Fit:
    """The state of one fit that decides which warnings are due, each given once."""

    has_stepped: bool = False
    has_gradients: bool = False
    batches: int = 0
    was_advised: bool = False
    said: set[str] = field(default_factory=set)


def _parameter_names(pl_module: nn.Module) -> dict[int, str]:
    return {id(param): plain_name(name) for name, param, _ in named_parameters(pl_module)}


class OptimizerRun:
    """One optimizer's chain, and the counts of its steps."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.steps = 0
        self.skipped = 0
        self._clipped: Tensor | None = None

    def step(self, params: Mapping[str, nn.Parameter], context: StepContext) -> Outcome:
        """Run the chain and count."""
        outcome = self.chain(params, context)
        self.steps += 1
        self.skipped += outcome.skipped
        if outcome.clipped is not None:
            clipped = outcome.clipped.to(torch.int64)
            self._clipped = clipped if self._clipped is None else self._clipped.to(clipped.device) + clipped
        return outcome

    def numbers(self, outcome: Outcome, before: Tensor | None, after: Tensor | None) -> dict[str, float]:
        """Return the numbers to log, brought to the host in one transfer."""
        waiting = {
            "grad_norm_total": before,
            "grad_norm_total_after": after,
            "clip_coefficient": outcome.coefficient,
            "clipped_share": None if self._clipped is None else self._clipped / self.steps,
        }
        present = {key: value for key, value in waiting.items() if value is not None}
        home = next((value.device for value in present.values()), None)
        numbers = [value.to(home, torch.float32) for value in present.values()]
        found = dict(zip(present, torch.stack(numbers).tolist() if numbers else [], strict=True))
        return found | {"skipped_steps": float(self.skipped)}

    def state_dict(self) -> dict[str, Any]:
        """Return the chain's state and the counts."""
        clipped = None if self._clipped is None else int(self._clipped)
        return {"chain": self.chain.state_dict(), "steps": self.steps, "skipped": self.skipped, "clipped": clipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.chain.load_state_dict(state["chain"])
        self.steps, self.skipped = state["steps"], state["skipped"]
        self._clipped = None if state["clipped"] is None else torch.tensor(state["clipped"])


class OptimizerRuns:
    """The runs of all optimizers of a fit, each with its own copy of the chain; the first has the chain itself."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._pristine = _copy_of(chain)
        self._runs: dict[int, OptimizerRun] = {}
        self._others: dict[tuple[str, ...], int] = {}

    def __getitem__(self, index: int) -> OptimizerRun:
        if index not in self._runs:
            chain = self._chain if index == 0 else copy.deepcopy(self._pristine or self._chain)
            self._runs[index] = OptimizerRun(chain)
        return self._runs[index]

    def index_of(self, optimizer: Optimizer, names: Sequence[str], known: Sequence[Optimizer]) -> int:
        """Return an optimizer's index among the Trainer's, or an index after them.

        Other optimizers are told apart by the names of their parameters, as some users make a new one for each batch,
        and a resumed run has other objects.
        """
        index = next((i for i, one in enumerate(known) if one is optimizer), None)
        if index is not None:
            return index
        return len(known) + self._others.setdefault(tuple(names), len(self._others))

    def state_dict(self) -> dict[str, Any]:
        """Return index -> state of the run."""
        return {str(index): run.state_dict() for index, run in self._runs.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        for index, of_run in sorted(state.items(), key=lambda item: -int(item[0])):
            self[int(index)].load_state_dict(of_run)


def _copy_of(chain: Chain) -> Chain | None:
    try:
        return copy.deepcopy(chain)
    except Exception:  # a user's transform that can't be copied; with one optimizer no copy is needed
        return None


def total_norm(params: Mapping[str, nn.Parameter]) -> Tensor | None:
    """Return the L2 norm of all gradients, on the device; None without any gradient."""
    with torch.no_grad():
        gradients = Gradients(params)
        return gradients.total_norm() if gradients.values else None


def is_scaled(optimizer: Optimizer, scaler: Any) -> bool:
    """Return True if the gradients of an optimizer that is about to step are still multiplied by a loss scale.

    The Trainer's scaler, if there is one, has unscaled them where the user steps through it.

    Example:
        >>> is_scaled(torch.optim.SGD([torch.ones(1)]), scaler=None)
        False
    """
    if unscales_itself(optimizer) and getattr(optimizer, "grad_scale", None) is not None:
        return True  # a scaler, perhaps the user's own, has left the division to the optimizer
    if scaler is None or not scaler.is_enabled():
        return False
    return not has_unscaled(scaler, optimizer)

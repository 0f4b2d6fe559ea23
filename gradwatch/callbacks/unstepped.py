"""Batches whose gradients come, and that no optimizer of the module steps: what is read of them, and what is said."""

from __future__ import annotations

from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from gradwatch.containment import say
from gradwatch.pipeline.step_in_progress import StepInProgress
from gradwatch.pipeline.watcher import Watcher

_LATE_BATCHES = 10  # without any optimizer step; an optimizer_step of the module's own may let some batches pass
_MOST_BATCHES = 64  # of one step of unknown length; manual accumulation rarely goes over more


@dataclass
class UnsteppedBatches:
    """Takes care of a fit's batches that do not end in a step of an optimizer that holds parameters of the module.

    Attributes:
        has_read: an optimizer that holds parameters of the module has stepped.
    """

    has_read: bool = False
    _never_stepped: bool = False  # gradients come, and no optimizer steps
    _has_warned: bool = False

    def note_stranger(self, step: StepInProgress | None, optimizer: Optimizer) -> None:
        """Note an optimizer that holds no parameter of the module: where no other one steps, it should hold them."""
        if step is not None and not self.has_read:
            step.stranger = optimizer

    def read(self, step: StepInProgress, watcher: Watcher, trainer: Trainer, module: LightningModule) -> None:
        """Take a batch for a step where gradients come and no optimizer of the module has ever stepped."""
        if step.was_read or self.has_read or not step.has_gradients(watcher):
            return
        if step.stranger is not None:
            step.was_read = True
            watcher.read(step.stranger)
            return
        is_late = step.batches >= _LATE_BATCHES * trainer.accumulate_grad_batches
        is_plain = module.automatic_optimization and not hasattr(trainer.precision_plugin, "scaler")
        self._never_stepped = self._never_stepped or (is_late and is_plain)
        if self._never_stepped:
            step.loss = None if step.loss is None else step.loss / step.batches
            for optimizer in trainer.optimizers:
                step.read(watcher, optimizer, None)

    def ends(self, step: StepInProgress, watcher: Watcher, trainer: Trainer, module: LightningModule) -> bool:
        """Abandon a step that no optimizer ends: its hooks would slow down every batch. Return True if it is over."""
        if watcher.is_shared or not watcher.is_measuring:
            return False
        declared = trainer.accumulate_grad_batches if module.automatic_optimization else 1
        if not watcher.has_seen_gradients and (declared == 1 or step.batches > 1):
            watcher.abandon()  # a batch without a backward pass
        elif step.batches >= max(declared, _MOST_BATCHES):
            watcher.abandon()
            self.warn_of_no_step(step.batches, watcher)
        else:
            return False
        return declared == 1

    def warn_of_no_step(self, batches: int, watcher: Watcher) -> None:
        """Say, once, that nothing can be measured without a step."""
        if watcher.steps == 0 and not self._has_warned:
            self._has_warned = True
            say(
                f"gradients came in {batches} batches, and no optimizer was seen to step, so nothing can be measured: "
                "expected a torch.optim.Optimizer that holds the model's parameters and whose step() is called."
            )

    def warn_of_scaled_gradients(self, optimizer: Optimizer) -> None:
        """Say, once, that an optimizer's gradients can't be read."""
        if not self._has_warned:
            self._has_warned = True
            say(
                f"{type(optimizer).__name__} steps past the loss scaler of the Trainer, so its gradients can't be told "
                "from scaled ones and are not read; expected self.optimizers(), without use_pl_optimizer=False."
            )

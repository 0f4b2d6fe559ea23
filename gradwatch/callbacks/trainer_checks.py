"""Questions to the Trainer, and the settings of it with which gradients can't be watched or edited."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from gradwatch.containment import SettingError
from gradwatch.probe.deepspeed import WAY_OUT, is_of_deepspeed
from gradwatch.probe.ranks import Ranks, find_ranks
from gradwatch.records import Finding
from gradwatch.torch_internals import unscales_itself
from gradwatch.transforms import Transform, When
from gradwatch.transforms.transform import walk


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the Trainer's callbacks, in order."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def find_monitor(trainer: Trainer) -> Any:
    """Return the first callback with Findings, if there is one."""
    return next(filter(_has_findings, callbacks_of(trainer)), None)


def has_class_named(value: object, name: str) -> bool:
    """Return True if a value's class, or a base class of it, has this name.

    ``isinstance`` is no use here: ``pytorch_lightning`` has other classes of the same names as ``lightning.pytorch``.
    """
    return any(kind.__name__ == name for kind in type(value).__mro__)


def ranks_of(trainer: Trainer) -> Ranks | None:
    """Return the processes of a Trainer's strategy; None for a single process.

    Raises:
        ValueError: for DeepSpeed.
        NotImplementedError: where parameters are sharded in a way that is not supported.
    """
    _refuse_deepspeed(trainer, "watch")
    model = trainer.strategy.model  # DDP and FSDP wrap the LightningModule
    return None if model is None else find_ranks(model)


def is_last_step(trainer: Trainer, batch_idx: int, *, is_shared: bool = False) -> bool:
    """Return True if a batch begins the last optimizer step of a fit, as far as the Trainer knows it.

    A fit may end sooner, by a callback or ``max_time``.

    Args:
        trainer: of the fit.
        batch_idx: the first batch that the step accumulates.
        is_shared: several processes measure the same steps. Then only ``max_steps`` counts, which is the same in all,
            while the number of their batches may differ.
    """
    if 0 < trainer.max_steps <= trainer.global_step + len(trainer.optimizers):
        return True
    epochs = trainer.max_epochs
    if is_shared or epochs is None or not 0 < epochs <= trainer.current_epoch + 1:
        return False
    batches = trainer.num_training_batches
    if math.isinf(batches):  # Lightning looks one batch ahead
        return trainer.is_last_batch
    accumulated = max(trainer.accumulate_grad_batches, 1)
    return batch_idx >= (int(batches) - 1) // accumulated * accumulated


def check_monitor(callback: Callback, transform: Transform, trainer: Trainer) -> None:
    """Raise a ValueError for a ``When`` without a monitor; warn of a monitor that would see edited gradients."""
    monitor = find_monitor(trainer)
    waiting = [part for part in walk(transform) if isinstance(part, When)]
    if waiting and monitor is None:
        raise ValueError(f"{waiting[0]} waits for a finding, but the Trainer has no GradientMonitor; add one before it")
    callbacks = callbacks_of(trainer)
    if monitor is not None and callbacks.index(monitor) > callbacks.index(callback):
        rank_zero_warn(
            "GradientTransform comes before the monitor, which then reads gradients that are already edited: "
            "expected Trainer(callbacks=[GradientMonitor(...), GradientTransform(...)])"
        )


def check_trainer(transform: Transform, trainer: Trainer) -> None:
    """Raise a ValueError where the Trainer clips too, or its gradients are scaled or sharded and can't be edited."""
    parts = list(walk(transform))
    clips = [part for part in parts if part.is_clip]
    if clips and trainer.gradient_clip_val:
        raise ValueError(
            f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) and {clips[0]} in GradientTransform would both "
            "clip; remove one of the two settings"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        for optimizer in trainer.optimizers:
            if unscales_itself(optimizer):
                raise ValueError(
                    f"{type(optimizer).__name__}(fused=True) undoes the loss scale in its own step under "
                    f"precision={trainer.precision!r}, so transforms would see scaled gradients; use fused=False, or "
                    "precision='bf16-mixed'"
                )
    _check_sharding([part for part in parts if not part.parts], trainer)


def _has_findings(callback: Callback) -> bool:
    findings = getattr(callback, "findings", None)  # a user's callback may use the name for something else
    return isinstance(findings, list) and all(isinstance(finding, Finding) for finding in findings)


def _check_sharding(parts: list[Transform], trainer: Trainer) -> None:
    _refuse_deepspeed(trainer, "transform")
    if has_class_named(trainer.strategy, "FSDPStrategy"):
        for part in parts:
            if not part.elementwise:
                raise ValueError(
                    f"{part} needs whole gradients, and strategy='fsdp' holds flat pieces of them; "
                    "use FSDP2 (ModelParallelStrategy with fully_shard), for which it is exact"
                )


def _refuse_deepspeed(trainer: Trainer, what: str) -> None:
    if is_of_deepspeed(trainer.strategy):
        strategy = type(trainer.strategy).__name__
        raise SettingError(f"the Trainer's strategy is a {strategy}. {WAY_OUT.format(what=what)}")

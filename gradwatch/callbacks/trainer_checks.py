"""What a callback that edits gradients asks of the Trainer, and what it refuses to run with."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from gradwatch.containment import SettingError
from gradwatch.pipeline.optimizer_step import unscales_itself
from gradwatch.probe.ranks import Ranks, find_ranks
from gradwatch.records import Finding
from gradwatch.transforms import Transform, When
from gradwatch.transforms.transform import walk


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The Trainer's callbacks, in order."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def find_monitor(trainer: Trainer) -> Any:
    """Return the callback that knows findings, if there is one."""
    return next(filter(_knows_findings, callbacks_of(trainer)), None)


def _knows_findings(callback: Callback) -> bool:
    findings = getattr(callback, "findings", None)  # which a callback of the user's may have too, of another kind
    return isinstance(findings, list) and all(isinstance(finding, Finding) for finding in findings)


def is_a(value: object, name: str) -> bool:
    """Whether a value's class, or one it is derived from, has this name.

    A project that imports ``pytorch_lightning`` has other classes of the same names than ``lightning.pytorch``.

    Example:
        >>> is_a(True, "int"), is_a(True, "Trainer")
        (True, False)
    """
    return any(kind.__name__ == name for kind in type(value).__mro__)


def ranks_of(trainer: Trainer) -> Ranks | None:
    """The processes that a Trainer's strategy has; None for one alone.

    Raises:
        ValueError: for DeepSpeed.
        NotImplementedError: where parameters are cut up in a way whose parts are not told apart.
    """
    _refuse_deepspeed(trainer, "watch")
    model = trainer.strategy.model  # DDP and FSDP wrap the LightningModule, which does not know of them
    return None if model is None else find_ranks(model)


def check_monitor(callback: Callback, transform: Transform, trainer: Trainer) -> None:
    """Raise a ValueError for a ``When`` that nobody can answer; warn of a monitor that would see edited gradients."""
    monitor = find_monitor(trainer)
    waiting = [part for part in walk(transform) if isinstance(part, When)]
    if waiting and monitor is None:
        raise ValueError(f"{waiting[0]} waits for a finding, but the Trainer has no GradientMonitor; add one in front")
    callbacks = callbacks_of(trainer)
    if monitor is not None and callbacks.index(monitor) > callbacks.index(callback):
        rank_zero_warn(
            "GradientTransform stands in front of the monitor, which then reads gradients that are already edited: "
            "expected Trainer(callbacks=[GradientMonitor(...), GradientTransform(...)])"
        )


def check_trainer(transform: Transform, trainer: Trainer) -> None:
    """Raise a ValueError where the Trainer clips too, or holds gradients in a form that can't be edited rightly."""
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


def _check_sharding(parts: list[Transform], trainer: Trainer) -> None:
    _refuse_deepspeed(trainer, "transform")
    if is_a(trainer.strategy, "FSDPStrategy"):
        for part in parts:
            if not part.elementwise:
                raise ValueError(
                    f"{part} needs whole gradients, and strategy='fsdp' holds flat pieces of them; "
                    "use FSDP2 (ModelParallelStrategy with fully_shard), for which it is exact"
                )


def _refuse_deepspeed(trainer: Trainer, what: str) -> None:
    if is_a(trainer.strategy, "DeepSpeedStrategy"):
        raise SettingError(f"DeepSpeed keeps gradients to itself, so there is nothing to {what}; use FSDP2 or DDP")

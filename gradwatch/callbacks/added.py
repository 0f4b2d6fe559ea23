"""The monitor of a Trainer that nobody gave one: added by the environment, or by pytest."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from gradwatch.callbacks.monitor import GradientMonitor
from gradwatch.containment import RaisedOnPurpose, say
from gradwatch.pipeline.watcher import Watcher


class AddedMonitor(GradientMonitor):
    """A monitor that gives way to one that the Trainer has, and refuses nothing.

    The user's Trainer may get a monitor from its ``callbacks``, from ``configure_callbacks`` of the module, or from a
    list that an earlier Trainer had. All are there when a fit is set up, so that is when one of two leaves.

    Example:
        >>> trainer = Trainer(callbacks=[AddedMonitor(), GradientMonitor()], logger=False, enable_checkpointing=False)
        >>> trainer.callbacks[0].setup(trainer, LightningModule(), "fit")
        >>> [type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, GradientMonitor)]
        ['GradientMonitor']
    """

    _is_settled = False

    @property
    def state_key(self) -> str:
        """The monitor's own, so that a run goes on with either; a Trainer that is made refuses a second one of it."""
        return GradientMonitor.__qualname__ if self._is_settled else f"{type(self).__qualname__} {id(self)}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the Trainer if another monitor is there: one of the user's, or one that was added earlier."""
        others = [each for each in trainer.callbacks if isinstance(each, GradientMonitor)]  # type: ignore[attr-defined]
        stays = next((each for each in others if not isinstance(each, AddedMonitor)), others[0])
        self._is_settled = stays is self
        if not self._is_settled:
            # A new list: Lightning goes through the old one while it calls this.
            trainer.callbacks = [each for each in trainer.callbacks if each is not self]  # type: ignore[attr-defined]

    def _watcher_of(self, trainer: Trainer, pl_module: LightningModule) -> Watcher:
        """Return a Watcher of the module; a blank one where a setting, or the kind of training, is refused."""
        try:
            return super()._watcher_of(trainer, pl_module)
        except RaisedOnPurpose as error:
            say(f"this fit is not watched: {error}")
            return self._make_blank()

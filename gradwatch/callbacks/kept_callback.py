"""What callbacks are derived from: Lightning's Callback, and in a project of ``pytorch_lightning`` that one's too."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    EitherCallback = Callback
else:
    _twin = sys.modules.get("pytorch_lightning")
    EitherCallback = Callback if _twin is None else type("EitherCallback", (Callback, _twin.Callback), {})


_LENT = ("log", "log_dict")  # the module's methods, which a Trainer puts on every callback, and the module with them


class KeptCallback(EitherCallback):
    """A callback that is often kept after its fit: neither it nor a copy of it holds the module then.

    Example:
        >>> callback = KeptCallback()
        >>> callback.log = LightningModule().log
        >>> callback.let_go()
        >>> vars(callback)
        {}
    """

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the module."""
        self.let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the module."""
        self.let_go()

    def let_go(self) -> None:
        """Drop what holds the module; the next fit puts it there again."""
        for name in _LENT:
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, pickled or deep, is one of the callback alone."""
        return {name: value for name, value in self.__dict__.items() if name not in _LENT}

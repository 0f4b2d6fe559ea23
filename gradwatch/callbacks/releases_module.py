"""The base of all callbacks: a callback of both Lightning packages that releases the module after a fit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

# `lightning.pytorch` and `pytorch_lightning` have classes of the same names that are not each other's. In a project of
# the second its command line accepts only its own Callback, so a callback is derived from both.
if TYPE_CHECKING:
    CallbackOfBothPackages = Callback
else:
    _other = sys.modules.get("pytorch_lightning")
    CallbackOfBothPackages = (
        Callback if _other is None else type("CallbackOfBothPackages", (Callback, _other.Callback), {})
    )


_BOUND = ("log", "log_dict")  # the module's methods, which a Trainer sets on every callback, and the module with them


class ReleasesModule(CallbackOfBothPackages):
    """A callback that may be kept after its fit: neither it nor a copy of it holds the module.

    Example:
        >>> callback = ReleasesModule()
        >>> callback.log = LightningModule().log
        >>> callback.release()
        >>> vars(callback)
        {}
    """

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the module."""
        self.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the module: after an exception Lightning does not call ``teardown``."""
        self.release()

    def release(self) -> None:
        """Drop all references to the module; the next fit sets them again."""
        for name in _BOUND:
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, pickled or deep, holds the callback alone."""
        return {name: value for name, value in self.__dict__.items() if name not in _BOUND}

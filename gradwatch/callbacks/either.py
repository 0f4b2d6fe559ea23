"""What callbacks are derived from: Lightning's Callback, and in a project of ``pytorch_lightning`` that one's too."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lightning.pytorch import Callback

if TYPE_CHECKING:
    EitherCallback = Callback
else:
    # The two packages hold the same code twice. Their Trainers take any object with the right methods; the
    # LightningCLI of each asks for its own class.
    _twin = sys.modules.get("pytorch_lightning")
    EitherCallback = Callback if _twin is None else type("EitherCallback", (Callback, _twin.Callback), {})

"""Private names of the trainers: Lightning, Fabric and TRL; each with the versions it was seen in and a fallback.

Those of torch and TensorBoard are in ``torch_internals.py``. No other file of gradwatch reads a private name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def owners_of(module: nn.Module) -> list[Any]:
    """Return the Trainer and the Fabric that hold a LightningModule (seen in Lightning 2.4 to 2.6).

    Without the names, a copy of the module copies its Trainer too, which costs memory or fails with a TypeError.
    """
    return [owner for name in ("_trainer", "_fabric") if (owner := getattr(module, name, None)) is not None]


def wrapped_by_fabric(module: Any) -> Any:
    """Return a model as Fabric's strategy has wrapped it, in DDP for instance (seen in Lightning 2.4 to 2.6).

    Without the name it is what Fabric gave to the user: the processes that train it together are then not found.
    """
    return getattr(module, "_forward_module", module)


def callbacks_of_fabric(fabric: Any) -> list[Any] | None:
    """Return the callbacks of a Fabric (seen in Lightning 2.4 to 2.6); None without the name."""
    return getattr(fabric, "_callbacks", None)


def notes_of_trl(trainer: Any) -> Mapping[str, Any]:
    """Return the numbers that a trainer of TRL has noted since its last log, by their names (seen in TRL 1.16).

    Without the name, and for other trainers, it is empty: a reward without spread is then not named.
    """
    noted = getattr(trainer, "_metrics", None)
    found = noted.get("train") if isinstance(noted, Mapping) else None
    return found if isinstance(found, Mapping) else {}

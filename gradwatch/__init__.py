"""gradwatch: which layer's gradient is sick, why, and what to do, for PyTorch Lightning and plain PyTorch."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Lightning and pytest load a module of this package at each start, whether it is used or not. So the package alone
# loads nothing: torch and Lightning take seconds.
if TYPE_CHECKING:
    from gradwatch.public import *  # noqa: F403
    from gradwatch.public import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        """Load a module of the package, or all public names at the first that is asked for."""
        if name.startswith("__") and name != "__all__":  # asked of any module, by doctest and inspect
            raise AttributeError(f"module 'gradwatch' has no attribute {name!r}")
        if find_spec(f"gradwatch.{name}") is not None:
            return import_module(f"gradwatch.{name}")
        public = import_module("gradwatch.public")
        names = {each: getattr(public, each) for each in ("__all__", *public.__all__)}
        globals().update(names)
        if name not in names:
            raise AttributeError(f"module 'gradwatch' has no attribute {name!r}")
        return names[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("gradwatch.public").__all__})

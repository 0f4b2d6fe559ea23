"""The readings of a measured step that can be left out; the gradients and weights are always read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

# Reading -> the columns that it gives.
COLUMNS_OF = {
    "outputs": {"output_rms"},
    "units": {"dead_fraction"},
    "saturation": {"saturated_fraction"},
    "zeros": {"zero_fraction"},
    "updates": {"update_norm", "update_to_weight", "param_update_norm", "param_changed", "param_put_back"},
}


@dataclass(frozen=True)
class Readings:
    """The readings of a measured step that can be left out; all are done by default.

    Attributes:
        outputs: norms of the layers' outputs.
        units: which units of ReLUs fire.
        saturation: at which outputs bounded activations are flat.
        zeros: numbers of exact zeros in the gradients.
        updates: changes of the weights, which takes copies of them.
    """

    outputs: bool = True
    units: bool = True
    saturation: bool = True
    zeros: bool = True
    updates: bool = True

    @classmethod
    def wanted(cls, is_kept: Callable[[str], bool], detectors: Sequence[Any]) -> Readings:
        """Return the readings of which a column is kept, or that a detector needs.

        Args:
            is_kept: tells if a column is kept.
            detectors: each with ``needs``, the names of the readings that it needs. One without needs all of them.

        Example:
            >>> class Flat:
            ...     needs = ("saturation",)
            >>> Readings.wanted(lambda column: column == "zero_fraction", [Flat()])
            Readings(outputs=False, units=False, saturation=True, zeros=True, updates=False)
        """
        needs: list[Collection[str]] = [getattr(detector, "needs", COLUMNS_OF) for detector in detectors]
        return cls(
            **{
                reading: any(map(is_kept, columns)) or any(reading in needed for needed in needs)
                for reading, columns in COLUMNS_OF.items()
            }
        )


ALL = Readings()

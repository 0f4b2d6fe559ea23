"""Names of the logged values: a flat key for any logger, and a tag in TensorBoard.

==============================  ===================================  ==============================================
key (any logger)                TensorBoard tag                      value
==============================  ===================================  ==============================================
``grad_norm/conv1``             ``grad_norm/03 conv1``               norm of the gradient of its own parameters
``grad_output_norm/conv1``      ``grad_output_norm/03 conv1``        norm of the gradient at its output
``update_to_weight/conv1``      ``update_to_weight/03 conv1``        size of the step over that of its weights
``dead_fraction/relu1``         ``dead_fraction/04 relu1``           share of a ReLU's units that never fire
``saturated_fraction/tanh1``    ``saturated_fraction/04 tanh1``      share of outputs where an activation is flat
``grad_to_weight_ratio/conv1``  ``grad_to_weight_ratio/03 conv1``    gradient norm over weight norm; only if asked for
``<column>/<layer>``            ``<column>/<place> <layer>``         any other column of a Snapshot, if asked for
``grad_norm_total``             ``0 total/1 grad_norm_total``        norm of all gradients, before clipping
``grad_norm_total_after``       ``0 total/2 grad_norm_total_after``  the same when the optimizer stepped
``clip_coefficient``            ``0 total/3 clip_coefficient``       norm after over before: 1 without clipping
the norms and ratios            ``log10 grad_norm/03 conv1``         their log10, in TensorBoard alone
==============================  ===================================  ==============================================

TensorBoard sorts tags by name. The place in the network, counted from 0, puts them in network order:
``grad_norm/03 conv1`` shows ``snapshot.grad_norm[3]``. It opens t he first groups of Time Series, so the total norm is
in the first. There, shares of units that are 0 so far and a clip that has changed nothing so far are left out.
Keys are API: they do not change with the version.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from gradwatch.records import COLUMNS, Array, Snapshot

# The gradient of a layer's parameters, the gradient that flows through it, the step that the weights really take, and
# the two ways in which units die. The other columns move with these, and every value costs TensorBoard's writer about
# 0.5 us. The table at the end of the fit and the JSONL record have more columns.
DEFAULT_COLUMNS = ("grad_norm", "grad_output_norm", "update_to_weight", "dead_fraction", "saturated_fraction")
RUN_KEYS = ("grad_norm_total", "grad_norm_total_after", "clip_coefficient")
RUN_TAGS = {key: f"0 total/{place} {key}" for place, key in enumerate(RUN_KEYS, 1)}  # a digit sorts before all letters
LOG = "log10 "
LOG_COLUMNS = ("grad_norm", "grad_output_norm", "update_to_weight")
LAYER_COLUMNS = (*COLUMNS, "grad_to_weight_ratio")


def require_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the columns, or raise a ValueError for the first that a Snapshot doesn't have; it lists all there are."""
    columns = tuple(columns)
    for column in columns:
        if column not in LAYER_COLUMNS:
            raise ValueError(f"{column!r} is no column of a Snapshot; expected one of {', '.join(LAYER_COLUMNS)}")
    return columns


def layer_values(snapshot: Snapshot, column: str) -> Array:
    """Return a column of a Snapshot, or its ratio of gradient to weight.

    Example:
        >>> layer_values(Snapshot(0, ("a",), grad_norm=[1.0], weight_norm=[4.0]), "grad_to_weight_ratio")
        array([0.25])
    """
    with np.errstate(invalid="ignore"):  # inf over inf, once the weights are not finite
        values: Array = getattr(snapshot, column)
    return values


def all_values(snapshot: Snapshot, columns: Iterable[str] = DEFAULT_COLUMNS) -> Array:
    """Return column after column, then the values of ``RUN_KEYS``; NaN means no value.

    Example:
        >>> all_values(Snapshot(0, ("a", "b"), grad_norm=[1.0, 2.0], total_norm=4, total_norm_after=1), ["grad_norm"])
        array([1.  , 2.  , 4.  , 1.  , 0.25])
    """
    before, after = snapshot.total_norm, snapshot.total_norm_after
    clipped = snapshot.clip_coefficient if math.isfinite(before + after) else math.nan
    return np.concatenate([*(layer_values(snapshot, column) for column in columns), [before, after, clipped]])


@lru_cache(maxsize=8)
def _all_keys(layers: tuple[str, ...], columns: tuple[str, ...]) -> tuple[str, ...]:
    return (*(f"{column}/{layer}" for column in require_columns(columns) for layer in layers), *RUN_KEYS)


def scalars(snapshot: Snapshot, columns: Iterable[str] = DEFAULT_COLUMNS) -> dict[str, float]:
    """Return the values of one step by key, layers in network order; keys without a value (NaN) are left out."""
    columns = tuple(columns)
    keys = _all_keys(snapshot.layers, columns)
    values = all_values(snapshot, columns).tolist()
    return {key: value for key, value in zip(keys, values, strict=True) if value == value}


def place(position: int, count: int) -> str:
    """Return a layer's place in the network as sortable text.

    Example:
        >>> place(3, 15), place(3, 129)
        ('03', '003')
    """
    return f"{position:0{max(2, len(str(count - 1)))}}"


def tensorboard_tags(layers: Sequence[str], columns: Iterable[str] = DEFAULT_COLUMNS) -> dict[str, str]:
    """Return key -> TensorBoard tag for all layers."""
    names = {layer: f"{place(position, len(layers))} {layer}" for position, layer in enumerate(layers)}
    return {f"{column}/{layer}": f"{column}/{name}" for column in columns for layer, name in names.items()}

"""What a training must leave as it was: the module, the random numbers, the warnings, the log, the folder."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from gradwatch.detectors import default_detectors
from gradwatch.records import Detector, Finding

T = TypeVar("T")
_LOGGERS = ("lightning.pytorch", "lightning.fabric")


@contextmanager
def aside(seed: int = 0) -> Iterator[None]:
    """Train here: random numbers start from ``seed`` and are put back; nothing is warned of or logged.

    Example:
        >>> before = torch.get_rng_state()
        >>> with aside():
        ...     _ = torch.rand(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings(), isolate_rng():
        warnings.simplefilter("ignore")
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - data sets of users draw from the old generator
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def copied(module: T) -> T:
    """A deep copy, which can be trained while the original stays as it is.

    Raises:
        TypeError: when something in the module can't be copied.

    Example:
        >>> copied([1, 2])
        [1, 2]
    """
    try:
        return deepcopy(module)
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} can't be copied ({error}); expected a module that copy.deepcopy takes, as the "
            f"original must stay untouched. Tensors that are the result of a computation belong into forward()."
        ) from error


def within(steps: int) -> list[Detector]:
    """The default detectors, none of them more patient than the run is long.

    Example:
        >>> max(getattr(detector, "patience", 1) for detector in within(5))
        5
    """
    return [_hurried(detector, steps) for detector in default_detectors()]


def _hurried(detector: Any, steps: int) -> Detector:
    if getattr(detector, "patience", 1) <= steps:
        return cast(Detector, detector)
    return cast(Detector, replace(detector, patience=steps))


def ignore(_: Finding) -> None:
    """Findings are read at the end."""


@contextmanager
def kept_randomness(seed: int | None = None) -> Iterator[None]:
    """Seed torch, NumPy and Python inside, and put their states back at the end.

    Args:
        seed: to start from; None goes on with the present states.

    Example:
        >>> with kept_randomness(1):
        ...     first = torch.rand(1)
        >>> with kept_randomness(1):
        ...     print(bool(torch.rand(1) == first))
        True
    """
    states = random_states()
    try:
        if seed is not None:
            set_seed(seed)
        yield
    finally:
        set_random_states(states)


def set_seed(seed: int) -> None:
    """Seed all three."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 a user's data may draw from it
    random.seed(seed)


def random_states() -> tuple[Any, ...]:
    """The states of all three, and of the devices in use."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call] # torch has not typed it
    on_device = torch.cuda.get_rng_state_all() if in_use else []
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), on_device  # noqa: NPY002 as above


def set_random_states(states: tuple[Any, ...]) -> None:
    """Put them back."""
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002 as above
    random.setstate(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])

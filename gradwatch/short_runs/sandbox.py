"""Isolation of a short training: random numbers, warnings, log levels, Ctrl+C, and a copy of the module.

No lightning here: remedies copy modules and keep random numbers too.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from gradwatch.trainer_internals import owners_of

T = TypeVar("T")
_LOGGERS = ("lightning.pytorch", "lightning.fabric")


@contextmanager
def isolated(seed: int = 0) -> Iterator[None]:
    """Start random numbers from a seed, silence warnings and Lightning's log; put everything back at the end.

    Example:
        >>> before = torch.get_rng_state()
        >>> with isolated():
        ...     _ = torch.rand(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    # A Trainer that is interrupted ignores Ctrl+C from then on. Only the main thread may set a handler.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    with warnings.catch_warnings(), kept_randomness(seed):
        warnings.simplefilter("ignore")
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if handler is not None:
                signal.signal(signal.SIGINT, handler)


def copy_without_trainer(part: T) -> T:
    """Return a deep copy of a module or callback without its Trainer, which would be copied too, data and all.

    Raises:
        TypeError: when something in it can't be copied.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> copied = copy_without_trainer(layer)
        >>> copied.weight is layer.weight, bool((copied.weight == layer.weight).all())
        (False, True)
    """
    modules = part.modules() if isinstance(part, nn.Module) else ()
    memo: dict[int, Any] = {id(owner): None for module in modules for owner in owners_of(module)}
    try:
        return deepcopy(part, memo)
    except Exception as error:
        raise TypeError(
            f"{type(part).__name__} can't be copied ({error}); expected a module that copy.deepcopy takes, as only a "
            "copy is trained. Compute tensors in forward() and keep none of them."
        ) from error


@contextmanager
def kept_randomness(seed: int | None = None) -> Iterator[None]:
    """Seed torch, NumPy and Python inside, unless ``seed`` is None, and put their states back at the end.

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
    """Seed all three, and the CUDA devices in use."""
    # torch.manual_seed would also queue this seed for a CUDA that starts later, long after the states were put back.
    torch.default_generator.manual_seed(seed)
    if _uses_cuda():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 data sets of users draw from the old generator
    random.seed(seed)


def random_states() -> tuple[Any, ...]:
    """Return the states of all three, and of the CUDA devices in use."""
    on_device = torch.cuda.get_rng_state_all() if _uses_cuda() else []
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), on_device  # noqa: NPY002 as above


def set_random_states(states: tuple[Any, ...]) -> None:
    """Put them back."""
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002 as above
    random.setstate(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call] # torch has not typed it

"""Random numbers that leave the user's own as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


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

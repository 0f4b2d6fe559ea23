"""Random numbers that leave the user's own as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

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
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 the user's data may use it
    on_device = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call] # torch has not typed it
    try:
        if seed is not None:
            set_seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 as above
        random.setstate(states[2])
        if on_device:
            torch.cuda.set_rng_state_all(on_device)


def set_seed(seed: int) -> None:
    """Seed all three."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 as above
    random.seed(seed)

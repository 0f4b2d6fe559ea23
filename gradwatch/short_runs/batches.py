"""The same batches in the same order for every training, whatever random numbers the models draw."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gradwatch.short_runs.sandbox import kept_randomness, random_states, set_random_states, set_seed
from gradwatch.short_runs.wrap_method import wrap_method


class SameBatches:
    """A loader whose epochs draw from random numbers of their own, seeded by the number of the epoch.

    Args:
        loader: any iterable of batches.
        seed: of its first epoch.

    Example:
        >>> data = torch.utils.data.DataLoader(range(8), batch_size=8, shuffle=True)
        >>> first, again = (next(iter(SameBatches(data, seed=1))) for _ in range(2))
        >>> bool((first == again).all())
        True
    """

    def __init__(self, loader: Any, seed: int) -> None:
        self.loader, self.seed, self.epoch = loader, seed, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        given = getattr(self.loader, "generator", None)
        own = given if isinstance(given, torch.Generator) else torch.Generator()
        before = own.get_state()
        with kept_randomness():
            set_seed(self.seed + self.epoch)
            own.manual_seed(self.seed + self.epoch)
            iterator = iter(self.loader)
            states = random_states()
        self.epoch += 1
        try:
            yield from _drawn_apart(iterator, states)
        finally:
            own.set_state(before)


def _drawn_apart(iterator: Iterator[Any], states: Any) -> Iterator[Any]:
    while True:
        with kept_randomness():
            set_random_states(states)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            states = random_states()
        yield batch


class SameTraining:
    """Wraps a data module's ``train_dataloader``."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The loader, seeded; several loaders in a list or dict are left to the user's own seeds."""
        loader = method(*args, **kwargs)
        return loader if isinstance(loader, (list, tuple, dict)) else SameBatches(loader, self.seed)


def with_same_batches(data: Any, seed: int) -> Any:
    """A data module or loader that gives each training the same batches; the original stays as it is."""
    if not callable(getattr(data, "train_dataloader", None)):
        return SameBatches(data, seed)
    seeded = copy.copy(data)
    wrap_method(seeded, "train_dataloader", SameTraining(seed))
    return seeded


def first_batch(data: Any, seed: int) -> Any:
    """A batch of training data, for remedies that have to see one; None where none can be had outside of a Trainer."""
    with kept_randomness(seed):
        try:
            batches = iter(SameBatches(_train_loader(copy.copy(data)), seed))
            return next(batches, None)
        except Exception:  # whatever a user's data module raises outside of a Trainer
            return None


def _train_loader(data: Any) -> Any:
    if not callable(getattr(data, "train_dataloader", None)):
        return data
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader()

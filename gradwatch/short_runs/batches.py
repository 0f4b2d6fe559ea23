"""The batches of a short training: the same for every training, or one of them again and again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from gradwatch.short_runs.sandbox import kept_randomness, random_states, set_random_states, set_seed
from gradwatch.short_runs.wrap_method import wrap_method


def endless_batches(data: Any) -> Iterator[Any]:
    """Yield the batches of a DataLoader, again and again, or copies of the one batch that was given.

    Example:
        >>> list(islice(endless_batches("one batch"), 2))
        ['one batch', 'one batch']
    """
    while True:
        count = 0
        for batch in data if isinstance(data, DataLoader) else [copy.deepcopy(data)]:
            count += 1
            yield batch
        if not count:
            return


class RepeatedBatch:
    """One batch, a number of times. Not a list, which Lightning takes for several loaders."""

    def __init__(self, batch: Any, count: int) -> None:
        self._batch, self._count = batch, count

    def __iter__(self) -> Iterator[Any]:
        return islice(endless_batches(self._batch), self._count)

    def __len__(self) -> int:
        return self._count


class SameBatches:
    """A loader that gives the same batches in the same order, whatever random numbers the models draw.

    Each epoch is drawn from the next seed.

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
            yield from _drawn_separately(iterator, states)
        finally:
            own.set_state(before)


def _drawn_separately(iterator: Iterator[Any], states: Any) -> Iterator[Any]:
    """Yield batches that are drawn from the loader's random states, while the model draws from the global ones."""
    while True:
        with kept_randomness():
            set_random_states(states)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            states = random_states()
        yield batch


class _SeedLoader:
    """Wraps a data module's ``train_dataloader``."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Seed the loader; several loaders in a list or dict keep the user's own seeds."""
        loader = method(*args, **kwargs)
        return loader if isinstance(loader, (list, tuple, dict)) else SameBatches(loader, self.seed)


def with_same_batches(data: Any, seed: int) -> Any:
    """Return a data module or loader that gives each training the same batches; the original is not changed."""
    if not callable(getattr(data, "train_dataloader", None)):
        return SameBatches(data, seed)
    seeded = copy.copy(data)
    wrap_method(seeded, "train_dataloader", _SeedLoader(seed))
    return seeded


def first_batch(data: Any, seed: int) -> Any:
    """Return a batch of training data for remedies that need one; None where the data needs a Trainer to be loaded."""
    with kept_randomness(seed):
        try:
            return next(iter(SameBatches(_train_loader(copy.copy(data)), seed)), None)
        except Exception:  # whatever a user's data module raises outside of a Trainer
            return None


def _train_loader(data: Any) -> Any:
    if not callable(getattr(data, "train_dataloader", None)):
        return data
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader()

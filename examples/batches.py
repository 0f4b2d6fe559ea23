"""Data in memory, served in whole batches, which costs a fraction of collating them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, Tensor]


class Batches(Dataset[Batch]):
    """Inputs and their targets, of which a DataLoader takes a whole batch at once.

    Any sampler works with it, so that Lightning can put in its own to share the samples among ranks.

    Example:
        >>> data = Batches(torch.zeros(10, 5), torch.arange(10))
        >>> [targets.tolist() for _, targets in data.loader(batch_size=4)]
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Batch:
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """One batch: a DataLoader calls this where a data set has it."""
        chosen = torch.as_tensor(indices)
        return self.inputs[chosen], self.targets[chosen]

    def loader(self, batch_size: int, shuffle_seed: int | None = None, num_workers: int = 0) -> DataLoader[Batch]:
        """A DataLoader over all samples; the last batch may be smaller.

        Args:
            batch_size: samples a batch.
            shuffle_seed: seed of an order that is new in each epoch; None keeps the order.
            num_workers: processes that make batches; 0 is quickest for data in memory.
        """
        return DataLoader(
            self,
            batch_size=batch_size,
            shuffle=shuffle_seed is not None,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(shuffle_seed or 0),  # its own: the global state stays as it is
        )


class ImageBatches(Batches):
    """Images and their labels.

    Example:
        >>> ImageBatches(torch.zeros(10, 1, 8, 8), torch.arange(10)).images.shape
        torch.Size([10, 1, 8, 8])
    """

    @property
    def images(self) -> Tensor:
        """All images."""
        return self.inputs

    @property
    def labels(self) -> Tensor:
        """All labels."""
        return self.targets


def _as_it_is(batch: Any) -> Any:
    return batch

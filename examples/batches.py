"""Data in memory, served in whole batches: collating single samples takes many times longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, Tensor]


class Batches(Dataset[Batch]):
    """Inputs and their targets, from which a DataLoader reads a whole batch at once.

    It works with any sampler, so that Lightning can insert its own to split the samples among ranks.

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
        """Return one batch. A DataLoader calls this method if a data set has it."""
        chosen = torch.as_tensor(indices)
        return self.inputs[chosen], self.targets[chosen]

    def loader(self, batch_size: int, shuffle_seed: int | None = None, num_workers: int = 0) -> DataLoader[Batch]:
        """Return a DataLoader over all samples; the last batch may be smaller.

        Args:
            batch_size: samples a batch.
            shuffle_seed: seed of the order, which changes each epoch; None keeps the order.
            num_workers: processes that load batches; 0 is fastest for data in memory.
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

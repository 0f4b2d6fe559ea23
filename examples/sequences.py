"""Base of the data sets of sequences: one length, three parts in memory, and their loaders."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from gradwatch.examples.batches import Batch, Batches


class SequenceData(LightningDataModule):
    """Sequences of one length, in training, validation and test parts, which ``setup`` puts into ``parts``.

    Args:
        length: time steps of a sequence, at least 2.
        batch_size: sequences a batch; an epoch's last batch may be smaller.
        seed: of the order of the training sequences.

    Attributes:
        in_features: numbers (or size of the alphabet) at each time step.
        num_classes: classes of the target at each time step; None if the target is one number at the end.

    Raises:
        ValueError: for a length below 2 or a batch size below 1.
    """

    in_features: int
    num_classes: int | None = None

    def __init__(self, length: int = 100, batch_size: int = 64, seed: int = 42) -> None:
        super().__init__()
        if length < 2:
            raise ValueError(f"length is {length}; expected 2 time steps or more")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.parts: dict[str, Batches] = {}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader with a new order each epoch, by the seed."""
        return self.parts["train"].loader(self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return a loader with a fixed order."""
        return self.parts["val"].loader(self.batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return a loader with a fixed order."""
        return self.parts["test"].loader(self.batch_size)

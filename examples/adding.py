"""The adding problem: two numbers of a long sequence are marked, and their sum is asked for at its end.

It is generated, so it needs no files, and any distance between a number and its use can be had. Predicting the mean, 1,
has a mean squared error of 1/6 = 0.167; to get below, a network has to carry a number over half the sequence.

S. Hochreiter and J. Schmidhuber, Long short-term memory, 1997, https://doi.org/10.1162/neco.1997.9.8.1735, section 5.4;
here in the version of Q. Le, N. Jaitly and G. Hinton, A simple way to initialize recurrent networks of rectified linear
units, 2015, https://arxiv.org/abs/1504.00941: numbers from 0 to 1, one mark in each half, the sum as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradwatch.examples.batches import Batches
from gradwatch.examples.sequences import SequenceData

SIZES = {"train": 16_000, "val": 1_000, "test": 2_000}


class AddingData(SequenceData):
    """Sequences of pairs (number, mark) and the sum of the two marked numbers.

    Args:
        length: time steps of a sequence.
        batch_size: sequences a batch.
        seed: of the sequences and of the order of those for training.

    Example:
        >>> data = AddingData(length=50)
        >>> data.setup()
        >>> sequences, sums = next(iter(data.train_dataloader()))
        >>> sequences.shape, sums.shape
        (torch.Size([64, 50, 2]), torch.Size([64]))
    """

    in_features = 2

    def setup(self, stage: str | None = None) -> None:
        """Draw all parts; later calls do nothing."""
        if not self.parts:
            generator = torch.Generator().manual_seed(self.seed)  # its own: the global state stays as it is
            self.parts = {part: Batches(*draw(size, self.length, generator)) for part, size in SIZES.items()}


def draw(size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``size`` sequences with one mark in each half, and their sums.

    Example:
        >>> sequences, sums = draw(3, 4, torch.Generator().manual_seed(0))
        >>> bool((sequences.prod(2).sum(1) == sums).all())
        True
    """
    numbers, marks = torch.rand(size, length, generator=generator), torch.zeros(size, length)
    for begin, end in ((0, length // 2), (length // 2, length)):
        marks[torch.arange(size), torch.randint(begin, end, (size,), generator=generator)] = 1
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(1)

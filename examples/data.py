"""Two real image data sets for the examples: scikit-learn's digits, and Fashion-MNIST from its official files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from gradwatch.examples.batches import Batch, ImageBatches
from gradwatch.examples.idx import SOURCE, read_images_and_labels

Name = Literal["digits", "fashion-mnist"]

IMAGE_SHAPES: dict[str, tuple[int, int, int]] = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28)}


class ImageData(LightningDataModule):
    """Images scaled to 0..1 and their labels, in training, validation and test parts.

    Each class has the same share of all parts. Digits are split into 1,257, 180 and 360 images, Fashion-MNIST into
    54,000, 6,000 and its own 10,000 test images.

    Args:
        dataset: ``"digits"`` (8 x 8, comes with scikit-learn) or ``"fashion-mnist"`` (28 x 28).
        data_dir: folder of Fashion-MNIST's four ``.gz`` files, or its parent; digits need none.
        batch_size: images a batch; an epoch's last batch may be smaller.
        seed: of the split and of the order of the training images.
        num_workers: processes that load batches; 0 is fastest for data in memory.

    Raises:
        ValueError: for an unknown data set, a missing ``data_dir`` or a batch size below 1.

    Example:
        >>> data = ImageData(batch_size=64)
        >>> data.setup()
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, data.in_features, data.num_classes
        (torch.Size([64, 1, 8, 8]), 64, 10)
    """

    num_classes = 10

    def __init__(
        self,
        dataset: Name = "digits",
        data_dir: str | Path | None = None,
        batch_size: int = 512,
        seed: int = 42,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if dataset not in get_args(Name):
            raise ValueError(f"dataset is {dataset!r}; expected one of {', '.join(map(repr, get_args(Name)))}")
        if dataset == "fashion-mnist" and data_dir is None:
            raise ValueError(f"fashion-mnist needs data_dir, the folder of the four .gz files of {SOURCE}; got None")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        self.dataset, self.data_dir, self.seed = dataset, data_dir, seed
        self.batch_size, self.num_workers = batch_size, num_workers
        self.parts: dict[str, ImageBatches] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return IMAGE_SHAPES[self.dataset]

    @property
    def in_features(self) -> int:
        """Pixels of one image."""
        return math.prod(self.image_shape)

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data; later calls do nothing."""
        if self.parts:
            return
        if self.dataset == "digits":
            rest, test = _split(_digits(), 360, self.seed)
            train, val = _split(rest, 180, self.seed)
        else:
            train, val = _split(_fashion_mnist(self.data_dir, "train"), 6000, self.seed)
            test = _fashion_mnist(self.data_dir, "t10k")
        self.parts = {"train": train, "val": val, "test": test}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader with a new order each epoch, by the seed."""
        return self.parts["train"].loader(self.batch_size, self.seed, self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return a loader with a fixed order."""
        return self.parts["val"].loader(self.batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return a loader with a fixed order."""
        return self.parts["test"].loader(self.batch_size, num_workers=self.num_workers)


def _digits() -> ImageBatches:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return _scaled(digits.images, digits.target, brightest=16)


def _fashion_mnist(data_dir: str | Path | None, part: str) -> ImageBatches:
    images, labels = read_images_and_labels(Path(data_dir or "."), part)
    return _scaled(images, labels, brightest=255)


def _scaled(images: npt.NDArray[Any], labels: npt.NDArray[Any], brightest: int) -> ImageBatches:
    pixels = torch.from_numpy(images.astype(np.float32)).div_(brightest)
    return ImageBatches(pixels.unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


def _split(data: ImageBatches, size: int, seed: int) -> tuple[ImageBatches, ImageBatches]:
    """Split off ``size`` images; return the rest and them."""
    from sklearn.model_selection import train_test_split

    rest, drawn = train_test_split(np.arange(len(data)), test_size=size, random_state=seed, stratify=data.labels)
    return ImageBatches(*data.__getitems__(rest)), ImageBatches(*data.__getitems__(drawn))

"""The vanishing case: seven Sigmoid layers, and no gradient left for the first.

- Symptom: the loss stays at log(10) and the accuracy at 10 %, as for a guess.
- Idea: the slope of a Sigmoid is at most 1/4, and PyTorch draws weights too small to make up for it, so each layer
  passes back about a seventh of the gradient it gets.
- Paper: X. Glorot and Y. Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010,
  https://proceedings.mlr.press/v9/glorot10a.html.
- The change: none; the remedies beside this file each differ from it in one marked block.
- Measured: test accuracy 0.1000 on Fashion-MNIST; 0.102 ± 0.002 on digits, mean and deviation of three seeds. At the
  first step the first Linear's gradient has 4e-6 times the norm of the head's.
  ``python examples/baseline.py --dataset fashion-mnist --data-dir DIR``
- When not to use it: wherever the network should learn.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy


class Baseline(LightningModule):
    """Classifies images by Flatten, ``depth`` blocks of Linear and Sigmoid, and a Linear to the logits.

    A remedy is a subclass that overrides what it changes, between the same marks.

    Args:
        in_features: pixels of an image.
        num_classes: number of logits.
        width: units of a hidden layer.
        depth: number of hidden layers.
        lr: learning rate.
        init_std: draw all weights from N(0, init_std^2), with biases of 0; None leaves them as PyTorch draws them.

    Example:
        >>> Baseline(in_features=64, depth=1)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int = 10,
        width: int = 128,
        depth: int = 7,
        lr: float = 1e-2,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = self.build_network([in_features, *[width] * depth], num_classes)
        for module in self.network.modules():
            if isinstance(module, nn.Linear):
                self.initialize(module)
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(num_classes, average="micro", validate_args=False) for _ in range(3)
        )

    # --- what a remedy changes ---------------------------------------------------------------------------------------
    def build_block(self, inputs: int, outputs: int) -> nn.Module:
        """One hidden layer."""
        return nn.Sequential(OrderedDict(linear=nn.Linear(inputs, outputs), activation=nn.Sigmoid()))

    def build_network(self, sizes: list[int], num_classes: int) -> nn.Module:
        """Blocks of the given sizes between Flatten and the head."""
        blocks = [(f"block{i}", self.build_block(*pair)) for i, pair in enumerate(pairwise(sizes), start=1)]
        head = nn.Linear(sizes[-1], num_classes)
        return nn.Sequential(OrderedDict([("flatten", nn.Flatten()), *blocks, ("head", head)]))

    def initialize(self, linear: nn.Linear) -> None:
        """Draw the weights of one Linear."""
        if self.hparams.init_std is not None:
            nn.init.normal_(linear.weight, std=self.hparams.init_std)
            nn.init.zeros_(linear.bias)

    def configure_optimizers(self) -> Any:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    def configure_trainer(self) -> dict[str, Any]:
        """Further arguments of the Trainer."""
        return {}

    # -----------------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a training batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._step(batch, "test")

    def _step(self, batch: tuple[Tensor, Tensor], part: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels)
        accuracy = getattr(self, f"{part}_accuracy")
        accuracy.update(logits, labels)
        log = partial(self.log, on_step=False, on_epoch=True, batch_size=len(labels))
        log(f"{part}_loss", loss, sync_dist=True)
        log(f"{part}_accuracy", accuracy, prog_bar=True)
        return loss


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(Baseline)
